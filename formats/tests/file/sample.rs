//! A small model with every kind of tensor, as a file and in parts.

use std::path::{Path, PathBuf};

use gristmill_formats::SharedBytes;
use gristmill_formats::codec::{Codec, Grid, NamedGrid};
use gristmill_formats::container::{
    Header, PackedFile, PackedWriter, Provenance, QualityReport, SourceFile, Superblock,
    TensorQuality, VERSION,
};
use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
    RopeScaling, RopeSpec, TensorRole,
};
use gristmill_formats::source::{GenerationDefaults, SpecialToken, TextAssets};
use gristmill_formats::tokenizer::TokenizerData;

/// Splitmix64: the same inputs in every run.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.bits() >> 56) as u8).collect()
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

pub(crate) fn norm() -> NormSpec {
    NormSpec { eps: 1e-5, plus_one: false }
}

pub(crate) fn attention() -> AttentionSpec {
    AttentionSpec {
        heads: 4,
        kv_heads: 2,
        head_dim: 10,
        scale: 0.316_227_76,
        window: Some(64),
        softcap: Some(50.0),
        qkv_bias: true,
        out_bias: true,
        qk_norm: Some(norm()),
        rope: Some(RopeSpec {
            base: 500_000.0,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 8192,
            },
        }),
    }
}

/// Two layers; widths that are no multiple of 32, rows that are no multiple of 16.
pub(crate) fn model() -> ModelSpec {
    let block = |mixer, post_norm| BlockSpec { pre_norm: norm(), post_norm, mixer };
    let mlp = |bias| Mixer::Mlp(MlpSpec { d_ff: 70, activation: Activation::Silu, bias });
    let mut plain = attention();
    plain.qkv_bias = false;
    plain.out_bias = false;
    plain.qk_norm = None;
    plain.rope = None;
    ModelSpec {
        architecture: "sample".into(),
        vocab_size: 37,
        d_model: 40,
        max_context: 256,
        embedding_scale: 1.0,
        tied_head: false,
        logit_softcap: Some(30.0),
        final_norm: norm(),
        layers: vec![
            LayerSpec {
                blocks: vec![
                    block(Mixer::Attention(attention()), Some(norm())),
                    block(mlp(true), None),
                ],
            },
            LayerSpec {
                blocks: vec![block(Mixer::Attention(plain), None), block(mlp(false), None)],
            },
        ],
    }
}

/// Every codec in turn; vectors get the dense ones.
pub(crate) fn codec(index: usize, role: TensorRole) -> Codec {
    let dense = [Codec::F32, Codec::Bf16, Codec::F16];
    if role == TensorRole::Vector {
        return dense[index % 3].clone();
    }
    let learned: [i8; 16] = std::array::from_fn(|i| (i * i / 2) as i8 - 60);
    let learned = Grid::new(&learned, -7).expect("increasing and within int8");
    let named =
        [NamedGrid::Nf4, NamedGrid::Mix6, NamedGrid::Mix5, NamedGrid::Mix3, NamedGrid::Mix2];
    let tables = named.map(|g| g.grid()).into_iter().chain([learned]).map(Codec::Table);
    let codecs: Vec<_> = dense.into_iter().chain([Codec::Q8]).chain(tables).collect();
    codecs[index % codecs.len()].clone()
}

pub(crate) fn tokenizer() -> TokenizerData {
    let json = r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":
        {"a":0,"b":1,"c":2,"ab":3,"abc":4},"merges":[["a","b"],["ab","c"]]}}"#;
    TokenizerData::from_json(json.as_bytes()).expect("a tokenizer")
}

/// Everything in a header that is not the tensor table.
pub(crate) fn header() -> Header {
    let token = |text: &str, id| Some(SpecialToken { text: text.into(), id });
    Header {
        model: model(),
        tensors: Vec::new(),
        tokenizer: None,
        text: TextAssets {
            bos: token("<s>", 1),
            eos: token("</s>", 2),
            pad: None,
            unk: token("<unk>", 0),
            stop_ids: vec![2, 7],
            chat_template: Some("{% for m in messages %}\"é\u{1f600}\"{% endfor %}".into()),
        },
        generation: GenerationDefaults {
            do_sample: Some(true),
            temperature: Some(0.7),
            top_k: Some(40),
            top_p: Some(0.95),
            min_p: None,
            repetition_penalty: Some(1.1),
        },
        provenance: Provenance {
            source: "someone/something".into(),
            revision: Some("main".into()),
            files: vec![SourceFile {
                name: "model.safetensors".into(),
                bytes: 5,
                blake3: "00".into(),
            }],
            licence: Some("apache-2.0".into()),
            tool: "gristmill 0.1.0".into(),
            recipe: "rtn".into(),
            calibration_blake3: None,
        },
        quality: None,
    }
}

/// A report of numbers that have no short decimal form.
pub(crate) fn quality() -> QualityReport {
    QualityReport {
        bits_per_weight: 4.0 + 1.0 / 3.0,
        bytes_per_token: 123_456,
        tensors: vec![TensorQuality {
            name: "embed".into(),
            codec: gristmill_formats::codec::CodecId::Q8,
            relative_error: 1e-5 / 7.0,
        }],
        protocol: "chunk 512 x 40".into(),
        text_blake3: None,
        ppl: Some(std::f64::consts::PI * 4.0),
        ppl_reference: Some(0.1 + 0.2),
        kld_mean: Some(1e-300 / 3.0),
        kld_ci95: Some(5e-324),
        same_top1: Some(1.0 - f64::EPSILON),
        ..QualityReport::default()
    }
}

/// Writes the sample model with random tensor bytes in pieces of uneven size.
pub(crate) fn write(path: &Path, header: Header) -> gristmill_formats::Result<Header> {
    let mut rng = Rng::new(1);
    let mut writer = PackedWriter::create(path)?;
    for (i, tensor) in model().tensors().into_iter().enumerate() {
        let codec = codec(i, tensor.role);
        writer.begin_tensor(&tensor.name, &tensor.shape, &codec)?;
        let bytes = rng.bytes(codec.tensor_bytes(&tensor.shape)? as usize);
        for piece in bytes.chunks(1 + rng.below(997)) {
            writer.write(piece)?;
        }
        writer.end_tensor();
    }
    writer.tokenizer(&tokenizer().to_section())?;
    writer.finish(header)
}

/// The sample file's bytes.
pub(crate) fn bytes() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("sample.grist");
    write(&path, header()).expect("the sample is written");
    std::fs::read(path).expect("the sample is there")
}

pub(crate) fn open(bytes: &[u8]) -> gristmill_formats::Result<PackedFile> {
    PackedFile::from_bytes(SharedBytes::from_vec(bytes.to_vec()))
}

/// The file with another header in its place: digests and lengths are right, so that only the header
/// itself can be at fault.
pub(crate) fn with_header(bytes: &[u8], header: &[u8]) -> Vec<u8> {
    let old = Superblock::parse(bytes).expect("a good file");
    let mut new = bytes[..old.header_offset as usize].to_vec();
    new.extend_from_slice(header);
    new.resize(new.len().next_multiple_of(64), 0);
    seal(new, old.header_offset, header, |_| {})
}

/// Adds footer and superblock to a file that ends after its padded header.
pub(crate) fn seal(
    mut bytes: Vec<u8>,
    header_offset: u64,
    header: &[u8],
    change: impl FnOnce(&mut Superblock),
) -> Vec<u8> {
    let mut superblock = Superblock {
        version: VERSION,
        required_features: 0,
        optional_features: 0,
        header_offset,
        header_bytes: header.len() as u64,
        file_bytes: (bytes.len() + gristmill_formats::container::FOOTER_BYTES) as u64,
        header_blake3: *blake3::hash(header).as_bytes(),
    };
    change(&mut superblock);
    bytes.extend_from_slice(&superblock.footer());
    let front = superblock.to_bytes();
    bytes[..front.len()].copy_from_slice(&front);
    bytes
}

/// The parts of a file by name: every byte is in one of them.
pub(crate) fn parts(file: &PackedFile) -> Vec<(String, std::ops::Range<usize>)> {
    let mut parts: Vec<(String, std::ops::Range<usize>)> = Vec::new();
    let mut end = 0;
    let mut add = |name: &str, start: u64, bytes: u64| {
        if (end as u64) < start {
            parts.push((format!("padding before {name}"), end..start as usize));
        }
        end = (start + bytes) as usize;
        parts.push((name.into(), start as usize..end));
    };
    let superblock = file.superblock();
    add("superblock", 0, gristmill_formats::container::SUPERBLOCK_BYTES as u64);
    for tensor in &file.header().tensors {
        add(&tensor.name, tensor.offset, tensor.bytes);
    }
    let tokenizer = file.header().tokenizer.as_ref().expect("the sample has one");
    add("tokenizer", tokenizer.offset, tokenizer.bytes);
    add("header", superblock.header_offset, superblock.header_bytes);
    let footer = gristmill_formats::container::FOOTER_BYTES as u64;
    add("footer", superblock.file_bytes - footer, footer);
    parts
}

pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a file name").to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}
