//! The header: everything about the file except the tensors themselves, as strict JSON.

use serde::{Deserialize, Serialize};

use crate::codec::{Codec, CodecId, Grid};
use crate::limits::{
    MAX_NAME_BYTES, MAX_TENSORS, MAX_TOKENIZER_SECTION_BYTES, PANEL_ALIGN, SECTION_ALIGN,
};
use crate::model::{ModelSpec, TensorRole};
use crate::source::{GenerationDefaults, TextAssets};
use crate::{FormatError, Result};

/// The header of a packed file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// What the model is.
    pub model: ModelSpec,
    /// The tensors, sorted by offset.
    pub tensors: Vec<TensorEntry>,
    /// Where the tokenizer is.
    pub tokenizer: Option<SectionEntry>,
    /// Special tokens and chat template.
    pub text: TextAssets,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// Where the weights came from and how the file was made.
    pub provenance: Provenance,
    /// What the packing cost, as measured when the file was made.
    pub quality: Option<QualityReport>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Canonical name.
    pub name: String,
    /// `[n_out, n_in]` or `[n]`.
    pub shape: Vec<u64>,
    /// Codec.
    pub codec: CodecId,
    /// Table of a tensor in a table codec: 2 to the power of the codec's bits int8 values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Vec<i8>>,
    /// Shift of that table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_shift: Option<i8>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes, hexadecimal.
    pub blake3: String,
}

/// A section that is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectionEntry {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes, hexadecimal.
    pub blake3: String,
}

/// Where the weights came from and how the file was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Name of the source (repository id, or name of the directory).
    pub source: String,
    /// Revision of the source, if known.
    pub revision: Option<String>,
    /// The source's files with their digests.
    pub files: Vec<SourceFile>,
    /// Licence of the weights as the source states it.
    pub licence: Option<String>,
    /// Program and version that wrote the file.
    pub tool: String,
    /// The recipe: method and options, enough to do it again.
    pub recipe: String,
    /// BLAKE3 of the calibration text, if one was used.
    pub calibration_blake3: Option<String>,
}

/// A file of the source checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Name within the source.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// What the packing cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualityReport {
    /// Bits per weight of the whole file, everything counted.
    pub bits_per_weight: f64,
    /// Bytes that one decoded token reads from the weights.
    pub bytes_per_token: u64,
    /// Relative output error of each quantized tensor.
    pub tensors: Vec<TensorQuality>,
    /// Protocol of the figures below with tokens of a window and windows, e.g. `chunk 512 x 40`; empty
    /// when none were measured.
    pub protocol: String,
    /// BLAKE3 of the evaluation text.
    pub text_blake3: Option<String>,
    /// Perplexity of the packed file.
    pub ppl: Option<f64>,
    /// Its 95 % confidence interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl_ci95: Option<[f64; 2]>,
    /// Perplexity of the source.
    pub ppl_reference: Option<f64>,
    /// Mean KL divergence from the source, in nats per token.
    pub kld_mean: Option<f64>,
    /// Half width of its 95 % confidence interval.
    pub kld_ci95: Option<f64>,
    /// 99th percentile of the divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kld_p99: Option<f64>,
    /// Its 99.9th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kld_p999: Option<f64>,
    /// Share of positions at which both agree on the likeliest token.
    pub same_top1: Option<f64>,
    /// Root mean square of the difference between the probabilities of the token that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_p_rms: Option<f64>,
    /// Tokens scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Element type of the key/value cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<String>,
    /// Fingerprint of what the file was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Program and version that measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_by: Option<String>,
}

impl QualityReport {
    /// Whether it has a member that version 1.0 did not have at first, and whose readers refuse it.
    pub(super) fn has_details(&self) -> bool {
        let Self {
            ppl_ci95,
            kld_p99,
            kld_p999,
            delta_p_rms,
            tokens,
            kv,
            reference,
            measured_by,
            ..
        } = self;
        let numbers = [kld_p99, kld_p999, delta_p_rms].into_iter().any(Option::is_some);
        let texts = [kv, reference, measured_by].into_iter().any(Option::is_some);
        numbers || texts || ppl_ci95.is_some() || tokens.is_some()
    }
}

/// What the packing cost one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorQuality {
    /// Canonical name.
    pub name: String,
    /// Codec.
    pub codec: CodecId,
    /// Squared error of the weights over their squared norm.
    pub relative_error: f64,
}

impl TensorEntry {
    /// An entry for a tensor whose place and digest are not known yet.
    pub(super) fn new(name: &str, shape: &[u64], codec: &Codec) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            codec: codec.id(),
            table: codec.grid().map(|grid| grid.values().to_vec()),
            table_shift: codec.grid().map(Grid::shift),
            offset: 0,
            bytes: 0,
            blake3: String::new(),
        }
    }

    /// The codec with its parameters.
    ///
    /// # Errors
    /// When parameters are missing, invalid, or belong to another codec.
    pub fn codec(&self) -> Result<Codec> {
        let invalid =
            |what: String| FormatError::InvalidHeader(format!("tensor `{}`: {what}", self.name));
        match (self.codec, &self.table, self.table_shift) {
            (CodecId::F32, None, None) => Ok(Codec::F32),
            (CodecId::Bf16, None, None) => Ok(Codec::Bf16),
            (CodecId::F16, None, None) => Ok(Codec::F16),
            (CodecId::Q8, None, None) => Ok(Codec::Q8),
            (id, Some(table), Some(shift)) if id.has_table() => {
                let (values, needed) = (table.len(), 1usize << id.code_bits());
                if values != needed {
                    return Err(invalid(format!("a table of {values} values, {id} has {needed}")));
                }
                Ok(Codec::Table(Grid::new(table, shift)?))
            }
            (id, ..) => Err(invalid(format!("parameters do not fit codec {id}"))),
        }
    }
}

impl Header {
    /// The header as JSON. JSON has no word for a number that is not finite: it comes out as `null`,
    /// and the writer refuses a header that does not read back as it was.
    ///
    /// # Errors
    /// When the header cannot be expressed.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| FormatError::InvalidHeader(e.to_string()))
    }

    /// Parses a header and checks all that can be checked without the tensors' bytes: the model
    /// description, and that tensors and sections tile the file from 16 KiB up to `header_offset` in
    /// the order of the description.
    ///
    /// # Errors
    /// [`FormatError::InvalidHeader`] or what the description or the tensor table has wrong.
    pub fn parse(bytes: &[u8], header_offset: u64) -> Result<Self> {
        let header: Self =
            serde_json::from_slice(bytes).map_err(|e| FormatError::InvalidHeader(e.to_string()))?;
        header.model.validate()?;
        header.check_layout(header_offset)?;
        Ok(header)
    }

    /// The tensor table is complete, in order, without holes, and every size follows from its shape.
    fn check_layout(&self, header_offset: u64) -> Result<()> {
        if self.tensors.len() > MAX_TENSORS {
            let count = self.tensors.len();
            return Err(FormatError::InvalidHeader(format!("{count} tensors")));
        }
        // Counted before the list is built: a description can name more tensors than the table has.
        let expected = self.model.tensors();
        let mut end = SECTION_ALIGN;
        for (i, spec) in expected.iter().enumerate() {
            let Some(entry) = self.tensors.get(i) else {
                return Err(FormatError::MissingTensor(spec.name.clone()));
            };
            let invalid = |what: String| {
                Err(FormatError::InvalidHeader(format!("tensor `{}`: {what}", spec.name)))
            };
            if entry.name.len() > MAX_NAME_BYTES || entry.name != spec.name {
                return invalid(format!("the table has `{:.64}` in its place", entry.name));
            }
            if entry.shape != spec.shape {
                return Err(FormatError::ShapeMismatch {
                    name: spec.name.clone(),
                    expected: spec.shape.clone(),
                    found: entry.shape.clone(),
                });
            }
            let codec = entry.codec()?;
            if spec.role == TensorRole::Vector && !entry.codec.is_dense() {
                return invalid(format!("a vector cannot be {}", entry.codec));
            }
            let bytes = codec.tensor_bytes(&entry.shape)?;
            if entry.bytes != bytes {
                return invalid(format!("{} bytes, its shape needs {bytes}", entry.bytes));
            }
            end = check_placement(&spec.name, entry.offset, entry.bytes, end)?;
        }
        if let Some(extra) = self.tensors.get(expected.len()) {
            return Err(FormatError::InvalidHeader(format!(
                "tensor `{:.64}` is not part of the model",
                extra.name
            )));
        }
        if let Some(section) = &self.tokenizer {
            if section.bytes > MAX_TOKENIZER_SECTION_BYTES {
                return Err(FormatError::InvalidHeader("the tokenizer section is too long".into()));
            }
            end = check_placement("tokenizer section", section.offset, section.bytes, end)?;
        }
        if super::align_up(end, PANEL_ALIGN as u64) != Some(header_offset) {
            return Err(FormatError::InvalidHeader("a hole before the header".into()));
        }
        Ok(())
    }
}

/// A part starts on the first 64-byte boundary after the one before; returns its end.
fn check_placement(what: &str, offset: u64, bytes: u64, previous_end: u64) -> Result<u64> {
    if super::align_up(previous_end, PANEL_ALIGN as u64) != Some(offset) {
        return Err(FormatError::InvalidHeader(format!(
            "{what} starts at {offset}, the part before it ends at {previous_end}"
        )));
    }
    offset
        .checked_add(bytes)
        .ok_or_else(|| FormatError::InvalidHeader(format!("{what} ends beyond any file")))
}
