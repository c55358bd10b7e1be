//! Where a model comes from. The runtime knows models only through [`ModelSource`]; a packed file and
//! an unpacked checkpoint directory are two implementations.

use serde::{Deserialize, Serialize};

use crate::bytes::SharedBytes;
use crate::codec::Codec;
use crate::model::ModelSpec;
use crate::tokenizer::TokenizerData;
use crate::{FormatError, Result};

/// Order of a tensor's elements in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One row after the other, as checkpoints store matrices. Dense codecs only. Vectors are this.
    RowMajor,
    /// Panels of 16 rows (see [`crate::codec`]), as packed files store matrices.
    Panels,
}

/// A tensor in place: nothing is copied or decoded.
#[derive(Debug, Clone)]
pub struct TensorData {
    /// `[n_out, n_in]` or `[n]`.
    pub shape: Vec<u64>,
    /// How elements are encoded.
    pub codec: Codec,
    /// How elements are ordered.
    pub layout: Layout,
    /// The bytes.
    pub bytes: SharedBytes,
}

impl TensorData {
    /// Rows of a matrix; 1 for a vector.
    pub fn rows(&self) -> usize {
        if self.shape.len() == 2 { self.shape[0] as usize } else { 1 }
    }

    /// Columns of a matrix; the length of a vector.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0) as usize
    }

    /// Decodes one row into `out` (`cols` values). This is the scalar reference, whatever the layout.
    ///
    /// # Panics
    /// When `row` or `out` does not fit the shape; sources hand out only tensors whose bytes do.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let cols = self.cols();
        match self.layout {
            Layout::RowMajor => self.codec.decode_linear(&self.bytes, row * cols, out),
            Layout::Panels => {
                let size = self.codec.panel_bytes(cols);
                let panel = row / crate::codec::PANEL_ROWS;
                let bytes = &self.bytes[panel * size..(panel + 1) * size];
                self.codec.decode_row(bytes, row % crate::codec::PANEL_ROWS, out);
            }
        }
    }
}

/// Special tokens and the chat template, as text and as ids.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextAssets {
    /// Beginning-of-sequence token.
    pub bos: Option<SpecialToken>,
    /// End-of-sequence token of the tokenizer (templates refer to it).
    pub eos: Option<SpecialToken>,
    /// Padding token.
    pub pad: Option<SpecialToken>,
    /// Unknown token.
    pub unk: Option<SpecialToken>,
    /// Every id that ends a generation (generation_config's `eos_token_id` and the above).
    pub stop_ids: Vec<u32>,
    /// Jinja chat template.
    pub chat_template: Option<String>,
}

/// A special token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialToken {
    /// Its text.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// The checkpoint's own sampling defaults; absent fields mean the runtime's defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationDefaults {
    /// False when the checkpoint asks for greedy decoding.
    pub do_sample: Option<bool>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Keep this many most likely tokens.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens with this much probability.
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this share of the most likely one.
    pub min_p: Option<f32>,
    /// Divide positive and multiply negative logits of seen tokens by this.
    pub repetition_penalty: Option<f32>,
}

/// A model that can be run or quantized.
pub trait ModelSource: Send + Sync + std::fmt::Debug {
    /// What the model is.
    fn spec(&self) -> &ModelSpec;

    /// A tensor by its canonical name.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`] when there is none, or what reading it met.
    fn tensor(&self, name: &str) -> Result<TensorData>;

    /// The tokenizer; `None` when the source has none.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    fn tokenizer(&self) -> Result<Option<TokenizerData>>;

    /// Special tokens and chat template.
    fn text(&self) -> &TextAssets;

    /// Sampling defaults.
    fn generation(&self) -> &GenerationDefaults;

    /// Bytes of the weights and of everything else on disk.
    fn file_bytes(&self) -> u64;

    /// A short hexadecimal digest that identifies the content, for reports.
    fn fingerprint(&self) -> String;
}

/// Checks that a source has every tensor its description calls for, in the right shape.
///
/// # Errors
/// [`FormatError::MissingTensor`] or [`FormatError::ShapeMismatch`] naming the first that is wrong.
pub fn check_tensors(source: &dyn ModelSource) -> Result<()> {
    for expected in source.spec().tensors() {
        let found = source.tensor(&expected.name)?;
        if found.shape != expected.shape {
            return Err(FormatError::ShapeMismatch {
                name: expected.name,
                expected: expected.shape,
                found: found.shape,
            });
        }
    }
    Ok(())
}
