//! How far a prediction was from what was measured.

use serde::{Deserialize, Serialize};

use super::report::Prediction;
use crate::bench::BenchReport;
use crate::table::number;

/// A row of a benchmark beside its prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictionError {
    /// Threads.
    pub threads: usize,
    /// Tokens in the context before the prompt.
    pub depth: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Predicted tokens generated per second.
    pub predicted_decode_tok_s: f64,
    /// Predicted over measured, less 1.
    pub decode_error: f64,
    /// Predicted tokens of the prompt per second.
    pub predicted_prefill_tok_s: f64,
    /// Predicted over measured, less 1.
    pub prefill_error: f64,
    /// Whether the measured decoding rate lies in the predicted interval.
    pub decode_in_interval: bool,
}

/// Compares the rows of a benchmark with those of a prediction for the same lengths and numbers of
/// threads; rows that were not predicted are left out.
pub fn score(prediction: &Prediction, report: &BenchReport) -> Vec<PredictionError> {
    let place = (prediction.depth, prediction.prompt);
    let measured = report.rows.iter().filter(|row| report.place_of(row) == place);
    let rows = measured.filter_map(|measured| {
        let row = prediction.rows.iter().find(|row| row.threads == measured.threads)?;
        let (decode, prefill) = (row.decode_tok_s, row.prefill_tok_s);
        Some(PredictionError {
            threads: row.threads,
            depth: prediction.depth,
            prompt: prediction.prompt,
            predicted_decode_tok_s: decode.mid,
            decode_error: decode.mid / measured.decode_tok_s - 1.0,
            predicted_prefill_tok_s: prefill.mid,
            prefill_error: prefill.mid / measured.prefill_tok_s - 1.0,
            decode_in_interval: (decode.low..=decode.high).contains(&measured.decode_tok_s),
        })
    });
    rows.collect()
}

impl PredictionError {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        format!(
            "predicted for {} threads, prompt {}, depth {}: decode {} tok/s ({:+.1} %), prefill {} tok/s ({:+.1} %)",
            self.threads,
            self.prompt,
            self.depth,
            number(self.predicted_decode_tok_s),
            100.0 * self.decode_error,
            number(self.predicted_prefill_tok_s),
            100.0 * self.prefill_error,
        )
    }
}
