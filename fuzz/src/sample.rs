//! A packed file with one tensor of every kind, and everything that may be done with a file that opens.

use std::sync::OnceLock;

use gristmill_formats::codec::{Codec, Grid, NamedGrid};
use gristmill_formats::container::{
    Header, PackedFile, Provenance, SectionEntry, Superblock, TensorEntry, VERSION, verify,
};
use gristmill_formats::limits::SECTION_ALIGN;
use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
    RopeScaling, RopeSpec, TensorRole,
};
use gristmill_formats::source::{GenerationDefaults, ModelSource, TextAssets, check_tensors};
use gristmill_formats::tokenizer::TokenizerData;
use gristmill_formats::{Result, SharedBytes, Silent};

/// A model of one layer.
pub fn model() -> ModelSpec {
    let norm = NormSpec { eps: 1e-5, plus_one: false };
    let attention = AttentionSpec {
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        scale: 0.5,
        window: Some(16),
        softcap: None,
        qkv_bias: false,
        out_bias: false,
        qk_norm: None,
        rope: Some(RopeSpec {
            base: 10_000.0,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 64,
            },
        }),
    };
    let mlp = MlpSpec { d_ff: 12, activation: Activation::Silu, bias: false };
    let block = |mixer| BlockSpec { pre_norm: norm, post_norm: None, mixer };
    ModelSpec {
        architecture: "sample".into(),
        vocab_size: 5,
        d_model: 8,
        max_context: 64,
        embedding_scale: 1.0,
        tied_head: true,
        logit_softcap: None,
        final_norm: norm,
        layers: vec![LayerSpec {
            blocks: vec![block(Mixer::Attention(attention)), block(Mixer::Mlp(mlp))],
        }],
    }
}

/// The section of a tokenizer of five tokens. Compressing it takes longer than all the rest, so it is
/// done once.
pub fn section() -> &'static [u8] {
    static SECTION: OnceLock<Vec<u8>> = OnceLock::new();
    SECTION.get_or_init(|| {
        let json = r#"{"model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2,"ab":3,"abc":4},
            "merges":[["a","b"],["ab","c"]]}}"#;
        TokenizerData::from_json(json.as_bytes()).expect("a tokenizer").to_section()
    })
}

/// The header of a file of that model whose tensors are all zeros.
pub fn header() -> Header {
    let model = model();
    let tables = [NamedGrid::Nf4, NamedGrid::Mix6, NamedGrid::Mix3].map(|g| Codec::Table(g.grid()));
    let [q4, q6, q3] = tables;
    let codecs = [Codec::Q8, q4, Codec::F16, q6, Codec::Bf16, q3];
    let mut tensors = Vec::new();
    for (i, spec) in model.tensors().into_iter().enumerate() {
        let codec = match spec.role {
            TensorRole::Vector => Codec::F32,
            _ => codecs[i % codecs.len()].clone(),
        };
        tensors.push(TensorEntry {
            name: spec.name,
            bytes: 0,
            offset: 0,
            codec: codec.id(),
            table: codec.grid().map(|grid| grid.values().to_vec()),
            table_shift: codec.grid().map(Grid::shift),
            shape: spec.shape,
            blake3: String::new(),
        });
    }
    let tokenizer = Some(SectionEntry {
        offset: 0,
        bytes: section().len() as u64,
        blake3: blake3::hash(section()).to_hex().to_string(),
    });
    let mut header = Header {
        model,
        tensors,
        tokenizer,
        text: TextAssets::default(),
        generation: GenerationDefaults::default(),
        provenance: Provenance::default(),
        quality: None,
    };
    place(&mut header);
    header
}

/// Gives every part the size and place that follow from codecs and shapes, as far as they do; returns
/// where the header goes.
pub fn place(header: &mut Header) -> u64 {
    let mut end = SECTION_ALIGN;
    for entry in &mut header.tensors {
        entry.offset = end;
        let size = entry.codec().and_then(|codec| codec.tensor_bytes(&entry.shape));
        entry.bytes = size.unwrap_or(entry.bytes);
        end = end.saturating_add(entry.bytes).checked_next_multiple_of(64).unwrap_or(1 << 63);
    }
    if let Some(section) = &mut header.tokenizer {
        section.offset = end;
        end = end.saturating_add(section.bytes).checked_next_multiple_of(64).unwrap_or(1 << 63);
    }
    end
}

/// A file of zeros, with the sample's tokenizer where the header says it is, around a header; all
/// digests that opening checks are right.
pub fn seal(header: &[u8], header_offset: u64, tokenizer_offset: u64) -> Vec<u8> {
    let start = header_offset as usize;
    let mut file = vec![0; start];
    if let Some(place) = file.get_mut(tokenizer_offset as usize..)
        && place.len() >= section().len()
    {
        place[..section().len()].copy_from_slice(section());
    }
    file.extend_from_slice(header);
    file.resize(file.len().next_multiple_of(64), 0);
    let superblock = Superblock {
        version: VERSION,
        required_features: 0,
        optional_features: 0,
        header_offset,
        header_bytes: header.len() as u64,
        file_bytes: (file.len() + gristmill_formats::container::FOOTER_BYTES) as u64,
        header_blake3: *blake3::hash(header).as_bytes(),
    };
    file.extend_from_slice(&superblock.footer());
    let front = superblock.to_bytes();
    file[..front.len()].copy_from_slice(&front);
    file
}

/// Opens a file and, when that works, reads all of it.
pub fn exercise(bytes: Vec<u8>) -> Result<()> {
    let file = PackedFile::from_bytes(SharedBytes::from_vec(bytes))?;
    check_tensors(&file)?;
    let damage = verify(&file, &Silent);
    assert!(damage.len() <= 2 * file.header().tensors.len() + 5);
    assert!(file.bits_per_weight() > 0.0);
    for entry in &file.header().tensors {
        let tensor = file.tensor(&entry.name)?;
        let mut row = vec![0.0; tensor.cols()];
        tensor.decode_row(0, &mut row);
        tensor.decode_row(tensor.rows() - 1, &mut row);
    }
    // The section may hold anything: what counts is that reading it returns.
    let _ = file.tokenizer();
    let _ = (file.text(), file.generation(), file.fingerprint());
    for layer in &file.spec().layers {
        for block in &layer.blocks {
            if let Mixer::Attention(a) = &block.mixer
                && let Some(rope) = &a.rope
            {
                assert_eq!(rope.frequencies(a.head_dim).len(), a.head_dim as usize / 2);
            }
        }
    }
    Ok(())
}
