//! One matrix: error feedback where it helps, plain rounding where it does not.

use std::time::Instant;

use serde::{Deserialize, Deserializer, Serialize};

use crate::grid::RowGrid;
use crate::hessian::{Factor, Fallback, Moment};
use crate::ldlq::{Left, loss, round_matrix, round_nearest};
use crate::network::Matrix;
use crate::recipe::Method;
use crate::refine::refine;

/// What was done to a matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundedTensor {
    /// How: by plain rounding or error feedback, on scaled channels or not.
    pub method: Method,
    /// Predicted divergence from the reference, nats per token, that rounding this matrix causes. NaN
    /// (null in JSON) where activations or weights are too large to say.
    #[serde(deserialize_with = "number_or_nan")]
    pub predicted_kld: f64,
    /// The same for plain rounding.
    #[serde(deserialize_with = "number_or_nan")]
    pub predicted_kld_rtn: f64,
    /// Damping of the inputs' moment.
    pub damping: f64,
    /// Input columns that were always zero.
    pub dead_columns: usize,
    /// Why error feedback was not used.
    pub fallback: Option<Fallback>,
    /// Seconds.
    pub seconds: f64,
}

fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::deserialize(deserializer).map(|number| number.unwrap_or(f64::NAN))
}

/// What is known of a matrix.
pub(crate) struct Moments<'a> {
    pub(super) input: &'a Moment,
    pub(super) output: Option<&'a Moment>,
    /// Shares of the rows in the loss where there is no `output`; empty for equal ones.
    pub(super) rows: &'a [f32],
}

/// Rounds a matrix with error feedback, or plainly where that cannot be done or is no better. `fisher` is
/// the trace of the Fisher information of the matrix, per token; `sweeps` is how often coordinate
/// descent goes over it afterwards.
pub(super) fn round<G: RowGrid>(
    grid: &G,
    weights: &Matrix,
    moments: &Moments<'_>,
    fisher: f64,
    sweeps: usize,
) -> (Vec<G::Row>, RoundedTensor) {
    round_by(grid, weights, moments, fisher, Some(sweeps))
}

/// The same without error feedback: each weight to the nearest value, columns weighed by their energy.
pub(super) fn round_plainly<G: RowGrid>(
    grid: &G,
    weights: &Matrix,
    moments: &Moments<'_>,
    fisher: f64,
) -> (Vec<G::Row>, RoundedTensor) {
    round_by(grid, weights, moments, fisher, None)
}

fn round_by<G: RowGrid>(
    grid: &G,
    weights: &Matrix,
    moments: &Moments<'_>,
    fisher: f64,
    feedback: Option<usize>,
) -> (Vec<G::Row>, RoundedTensor) {
    let start = Instant::now();
    let cols = weights.cols();
    let input = moments.input.mean();
    let factor =
        feedback.map(|sweeps| (Factor::new(&input, moments.input.counts().0, G::GROUP), sweeps));
    let output = moments.output.and_then(|moment| {
        let mean = moment.mean();
        let factor = Factor::new(&mean, moment.counts().0, 1).ok()?;
        Some((mean, factor, moment.trace()))
    });
    let trusted = (0..cols).all(|j| input[(j, j)].is_finite());
    let importance: Vec<f32> =
        (0..cols).map(|j| if trusted { input[(j, j)] } else { 1.0 }).collect();
    let equal = 1.0 / weights.rows() as f64;
    let (left, left_trace) = match &output {
        Some((mean, _, trace)) => (Left::Moment(mean), *trace),
        None if moments.rows.is_empty() => (Left::Equal, 1.0 / equal),
        None => (Left::Rows(moments.rows), 1.0),
    };
    let fitted = moments.input.trace() * left_trace;
    let scale = if fitted > 0.0 { 0.5 * fisher / fitted } else { 0.0 };
    let predict = |rows: &[_]| scale * loss(grid, rows, weights.data(), cols, &input, left);

    let mut rows = round_nearest(grid, weights.data(), cols, &importance);
    let predicted_kld_rtn = predict(&rows);
    let mut report = RoundedTensor {
        method: Method::Rtn,
        predicted_kld: predicted_kld_rtn,
        predicted_kld_rtn,
        damping: 0.0,
        dead_columns: 0,
        fallback: None,
        seconds: 0.0,
    };
    match factor {
        None => {}
        Some((Err(fallback), _)) => report.fallback = Some(fallback),
        Some((Ok(factor), sweeps)) => {
            let feedback = output.as_ref().map(|(_, factor, _)| factor);
            let mut fed = round_matrix(grid, weights.data(), cols, &factor, feedback);
            if sweeps > 0 {
                // On what error feedback saw: without damping, descent fits the calibration text.
                let right = factor.conditioned(&input);
                let left = output.as_ref().map(|(mean, factor, _)| factor.conditioned(mean));
                refine(grid, &mut fed, weights.data(), cols, &right, left.as_ref(), sweeps);
            }
            let predicted = predict(&fed);
            report.damping = factor.damping;
            report.dead_columns = factor.dead;
            if predicted < predicted_kld_rtn {
                rows = fed;
                report.predicted_kld = predicted;
                report.method = Method::Gptq;
            } else {
                report.fallback = Some(Fallback::WorseThanRtn);
            }
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    (rows, report)
}

#[cfg(test)]
mod tests;
