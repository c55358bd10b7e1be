//! What was made and what it cost.

use gristmill_formats::codec::CodecId;
use gristmill_formats::container::Provenance;
use serde::Serialize;

use crate::calibrate::{Calibration, RoundedTensor, Swap};
use crate::plan::PartBytes;
use crate::tune::TuningReport;

/// Version of the layout of `report.json`; it grows when a field changes its meaning or goes.
pub const REPORT_SCHEMA_VERSION: u32 = 1;

/// The outcome of [`crate::quantize`]; serialized, it is `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// [`REPORT_SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The recipe in words.
    pub recipe: String,
    /// Where the weights came from, and what wrote the file.
    pub provenance: Provenance,
    /// Digest that identifies the source.
    pub source_fingerprint: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of the parts of the file.
    pub bytes: PartBytes,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bits per weight of the whole file, everything counted.
    pub bits_per_weight: f64,
    /// Bytes that one decoded token reads from the weights.
    pub bytes_per_token: u64,
    /// Squared error of all weights over their squared norm.
    pub relative_error: f64,
    /// What was calibrated on; null when nothing was.
    pub calibration: Option<CalibrationReport>,
    /// Sum of what rounding each matrix was predicted to cost, nats per token; null without
    /// calibration. Loss that 8-bit activations cost at run time is not in it.
    pub predicted_kld: Option<f64>,
    /// What corrects predictions by role; empty where codecs were not chosen by size. The figures of single
    /// tensors are uncorrected, [`Self::predicted_kld`] is corrected.
    pub swaps: Vec<Swap>,
    /// What tuning did; null when there was none.
    pub tuning: Option<TuningReport>,
    /// Time from start to the finished file.
    pub seconds: f64,
    /// Threads used.
    pub threads: usize,
    /// Most memory that weights in flight took: decoded rows of all threads and one batch of packed
    /// bytes.
    pub peak_batch_bytes: u64,
    /// The tensors in the order of the file.
    pub tensors: Vec<TensorReport>,
}

/// A calibration text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CalibrationReport {
    /// What the text is called.
    pub name: String,
    /// BLAKE3 of the text.
    pub blake3: String,
    /// Tokens looked at.
    pub tokens: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
}

impl CalibrationReport {
    pub(crate) fn of(calibration: &Calibration) -> Self {
        Self {
            name: calibration.name.clone(),
            blake3: calibration.digest.clone(),
            tokens: calibration.tokens.len(),
            sequence: calibration.sequence,
        }
    }
}

/// What became of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// Canonical name.
    pub name: String,
    /// `[n_out, n_in]` or `[n]`.
    pub shape: Vec<u64>,
    /// Its codec.
    pub codec: CodecId,
    /// Bytes in the file.
    pub bytes: u64,
    /// `8 bytes / elements`.
    pub bits_per_weight: f64,
    /// Squared error of the weights as stored over their squared norm; 0 for a tensor of zeros.
    pub relative_error: f64,
    /// Time it took, writing included.
    pub seconds: f64,
    /// How its weights were rounded; null when plainly, without calibration.
    pub rounding: Option<RoundedTensor>,
}
