//! Models of known shapes with random weights, for measuring speed.

use std::path::Path;
use std::str::FromStr;

use gristmill_formats::codec::{
    BLOCK_COLS, Codec, PANEL_ROWS, QuantizedRow, block_count, panel_count,
};
use gristmill_formats::container::{Header, PackedWriter, Provenance};
use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
    RopeScaling, RopeSpec, TensorRole,
};
use gristmill_runtime::RuntimeError;
use half::bf16;

use crate::error::Result;
use crate::stats::SplitMix64;

/// A shape that models have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Llama 3.2 1B.
    Llama1b,
    /// Two layers of width 64, for tests.
    Tiny,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Llama1b, Self::Tiny];

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama1b => "llama-1b",
            Self::Tiny => "tiny",
        }
    }

    /// The description of a model of this shape.
    pub fn spec(self) -> ModelSpec {
        let (d_model, layers, heads, kv_heads, d_ff, vocab_size, max_context) = match self {
            Self::Llama1b => (2048, 16, 32, 8, 8192, 128_256, 131_072),
            Self::Tiny => (64, 2, 4, 2, 96, 500, 256),
        };
        let size = Size { d_model, layers, heads, kv_heads, head_dim: d_model / heads, d_ff };
        size.spec(vocab_size, max_context)
    }
}

/// Measures of a model of the usual kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) d_model: u32,
    pub(crate) layers: usize,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) d_ff: u32,
}

impl Size {
    pub(crate) fn spec(self, vocab_size: u32, max_context: u32) -> ModelSpec {
        let Self { d_model, layers, heads, kv_heads, head_dim, d_ff } = self;
        let norm = NormSpec { eps: 1e-5, plus_one: false };
        let block = |mixer| BlockSpec { pre_norm: norm, post_norm: None, mixer };
        let attention = AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            softcap: None,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            rope: Some(RopeSpec { base: 500_000.0, scaling: RopeScaling::None }),
        };
        let mlp = MlpSpec { d_ff, activation: Activation::Silu, bias: false };
        let blocks = vec![block(Mixer::Attention(attention)), block(Mixer::Mlp(mlp))];
        ModelSpec {
            architecture: "llama".into(),
            vocab_size,
            d_model,
            max_context,
            embedding_scale: 1.0,
            tied_head: true,
            logit_softcap: None,
            final_norm: norm,
            layers: vec![LayerSpec { blocks }; layers],
        }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|shape| shape.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("unknown shape `{name}`; known: {known}")
        })
    }
}

/// Writes a packed file of a shape whose matrices are random in `codec`, panel by panel, and whose norms
/// do nothing. It has no tokenizer. Outputs of a layer are about as large as its inputs.
///
/// # Errors
/// When the file cannot be written; nothing appears at the path then.
pub fn write_synthetic(path: &Path, shape: Shape, codec: &Codec) -> Result<()> {
    write_random(path, shape.name(), shape.spec(), codec)
}

/// [`write_synthetic`] of any description.
pub(crate) fn write_random(path: &Path, name: &str, model: ModelSpec, codec: &Codec) -> Result<()> {
    write(path, name, model, codec).map_err(|error| RuntimeError::from(error).into())
}

fn write(
    path: &Path,
    name: &str,
    model: ModelSpec,
    codec: &Codec,
) -> gristmill_formats::Result<()> {
    let mut writer = PackedWriter::create(path)?;
    for (seed, tensor) in model.tensors().into_iter().enumerate() {
        match (tensor.role, &tensor.shape[..]) {
            (TensorRole::Vector, &[len]) => {
                writer.begin_tensor(&tensor.name, &tensor.shape, &Codec::F32)?;
                writer.write(&Codec::F32.encode_linear(&vec![1.0; len as usize]))?;
            }
            (_, &[rows, cols]) => {
                writer.begin_tensor(&tensor.name, &tensor.shape, codec)?;
                let mut source = PanelSource::new(codec, cols as usize, seed as u64);
                let mut left = rows as usize;
                for _ in 0..panel_count(rows as usize) {
                    writer.write(source.panel(left.min(PANEL_ROWS)))?;
                    left = left.saturating_sub(PANEL_ROWS);
                }
            }
            (_, shape) => unreachable!("`{}` has shape {shape:?}", tensor.name),
        }
        writer.end_tensor();
    }
    let provenance = Provenance {
        source: format!("synthetic {name}"),
        tool: format!("gristmill {}", env!("CARGO_PKG_VERSION")),
        recipe: format!("random weights in {}", codec.id()),
        ..Provenance::default()
    };
    let header = Header {
        model,
        tensors: Vec::new(),
        tokenizer: None,
        text: Default::default(),
        generation: Default::default(),
        provenance,
        quality: None,
    };
    writer.finish(header).map(drop)
}

/// Random panels of one matrix, with weights whose mean square is one over the columns.
pub(crate) struct PanelSource<'a> {
    codec: &'a Codec,
    cols: usize,
    random: SplitMix64,
    row_scale: bf16,
    bytes: Vec<u8>,
}

impl<'a> PanelSource<'a> {
    pub(crate) fn new(codec: &'a Codec, cols: usize, seed: u64) -> Self {
        let bytes = vec![0; codec.panel_bytes(cols)];
        let row_scale = bf16::ONE;
        let mut source = Self { codec, cols, random: SplitMix64::new(seed), row_scale, bytes };
        if !codec.id().is_dense() {
            let mut row = vec![0.0; cols];
            codec.decode_row(source.panel(1), 0, &mut row);
            let squares: f32 = row.iter().map(|x| x * x).sum();
            source.row_scale = bf16::from_f32(1.0 / squares.sqrt());
        }
        source
    }

    /// The next panel, of `rows` rows; those missing to 16 are zero.
    pub(crate) fn panel(&mut self, rows: usize) -> &[u8] {
        let Self { codec, cols, .. } = *self;
        if codec.id().is_dense() {
            let limit = (3.0 / cols as f32).sqrt();
            let values = (0..rows * cols).map(|_| limit * self.random.symmetric());
            codec.encode_dense_panel(&values.collect::<Vec<_>>(), cols, &mut self.bytes);
        } else {
            let rows: Vec<_> = (0..rows).map(|_| self.row()).collect();
            codec.pack_panel(&rows, cols, &mut self.bytes);
        }
        &self.bytes
    }

    fn row(&mut self) -> QuantizedRow {
        let blocks = block_count(self.cols);
        // Scales within a factor of two, and shifts where the codec has them.
        let scales = self.random.bytes(blocks).map(|byte| byte | 64).collect();
        let codes = self.random.bytes(blocks * BLOCK_COLS).collect();
        QuantizedRow { row_scale: self.row_scale, block_scales: scales, codes }
    }
}
