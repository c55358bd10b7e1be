//! Tensors on their way into a packed file.

use gristmill_formats::Progress;
use gristmill_formats::codec::{PANEL_ROWS, QuantizedRow, panel_count};
use gristmill_formats::container::PackedWriter;
use gristmill_formats::source::{ModelSource, TensorData};
use rayon::prelude::*;

use crate::calibrate::{Work, packed_file};
use crate::plan::TensorPlan;
use crate::rtn::{MAX_MAGNITUDE, RowRounder};
use crate::tune::tuned_file;
use crate::{Method, QuantizeError, Result};

/// Bound on the weights of one batch, as f32. A batch is the unit of parallel work: its packed bytes
/// are held until they are written. A single panel that is larger is a batch of its own.
pub const MAX_BATCH_BYTES: usize = 64 << 20;

/// Squared error and squared norm of some weights.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    error: f64,
    norm: f64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.error += other.error;
        self.norm += other.norm;
    }

    pub(crate) fn relative(self) -> f64 {
        if self.norm > 0.0 { self.error / self.norm } else { 0.0 }
    }
}

/// Refuses weights that cannot be rounded before anything is computed with them.
pub(crate) fn check_weights(source: &dyn ModelSource, plan: &[TensorPlan]) -> Result<()> {
    for plan in plan.iter().filter(|t| t.shape.len() == 2) {
        let data = source.tensor(&plan.name)?;
        let job = PanelJob { plan, data: &data, rounder: None };
        let check = |panel: usize| {
            let weights = job.weights(panel)?;
            if plan.codec.is_dense() {
                Ok(())
            } else {
                job.check_magnitude(panel * PANEL_ROWS, &weights)
            }
        };
        let checked: Vec<_> = (0..panel_count(data.rows())).into_par_iter().map(check).collect();
        // In order, so that the reported error is that of a single thread.
        checked.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

/// The state of a pass over the tensors.
pub(crate) struct Pass<'a> {
    pub(crate) writer: &'a mut PackedWriter,
    /// How matrices are rounded that are not yet.
    pub(crate) method: Method,
    /// Where matrices that are already rounded are.
    pub(crate) work: Option<&'a Work>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) peak_bytes: u64,
}

impl Pass<'_> {
    pub(crate) fn tensor(&mut self, plan: &TensorPlan, data: &TensorData) -> Result<Tally> {
        if self.progress.cancelled() {
            return Err(QuantizeError::Cancelled);
        }
        self.writer.begin_tensor(&plan.name, &plan.shape, &plan.encoding)?;
        let tally = if plan.shape.len() == 1 {
            self.vector(plan, data)?
        } else if let Some(bytes) = self.rounded(plan)? {
            self.copy(plan, data, &bytes)?
        } else {
            self.matrix(plan, data)?
        };
        self.writer.end_tensor();
        Ok(tally)
    }

    fn rounded(&self, plan: &TensorPlan) -> Result<Option<Vec<u8>>> {
        let Some(work) = self.work else { return Ok(None) };
        match work.read(&tuned_file(&plan.name))? {
            None => work.read(&packed_file(&plan.name)),
            tuned => Ok(tuned),
        }
    }

    /// Writes panels that are ready.
    fn copy(&mut self, plan: &TensorPlan, data: &TensorData, bytes: &[u8]) -> Result<Tally> {
        let (rows, cols) = (data.rows(), data.cols());
        let panel_bytes = plan.encoding.panel_bytes(cols);
        let job = PanelJob { plan, data, rounder: None };
        let results: Vec<Result<Tally>> = bytes
            .par_chunks_exact(panel_bytes)
            .enumerate()
            .map(|(panel, bytes)| job.measure(panel, &job.weights(panel)?, bytes))
            .collect();
        let mut tally = Tally::default();
        for result in results {
            tally.add(result?);
        }
        self.writer.write(bytes)?;
        self.progress.advance((rows * cols) as u64);
        Ok(tally)
    }

    fn vector(&mut self, plan: &TensorPlan, data: &TensorData) -> Result<Tally> {
        let mut values = vec![0.0f32; data.cols()];
        data.decode_row(0, &mut values);
        check_finite(&plan.name, 0, &values)?;
        let bytes = plan.encoding.encode_linear(&values);
        let mut stored = vec![0.0f32; values.len()];
        plan.encoding.decode_linear(&bytes, 0, &mut stored);
        let tally = compare(plan, 0, &values, &stored)?;
        self.writer.write(&bytes)?;
        self.progress.advance(values.len() as u64);
        Ok(tally)
    }

    fn matrix(&mut self, plan: &TensorPlan, data: &TensorData) -> Result<Tally> {
        let (rows, cols) = (data.rows(), data.cols());
        let panel_bytes = plan.encoding.panel_bytes(cols);
        let decoded_bytes = PANEL_ROWS * cols * size_of::<f32>();
        let panels = panel_count(rows);
        let batch = (MAX_BATCH_BYTES / decoded_bytes).clamp(1, panels);
        let mut packed = vec![0u8; batch * panel_bytes];
        let in_flight = batch.min(rayon::current_num_threads()) * decoded_bytes;
        self.peak_bytes = self.peak_bytes.max((packed.len() + in_flight) as u64);
        let rounder = RowRounder::new(&plan.encoding).map(|rounder| (rounder, self.method));
        let job = PanelJob { plan, data, rounder };
        let progress = self.progress;
        let mut tally = Tally::default();
        for first in (0..panels).step_by(batch) {
            let bytes = &mut packed[..batch.min(panels - first) * panel_bytes];
            // All results are looked at in order, so that sums and the reported error are those of a
            // single thread.
            let results: Vec<Result<Tally>> = bytes
                .par_chunks_exact_mut(panel_bytes)
                .enumerate()
                .map(|(i, bytes)| {
                    if progress.cancelled() {
                        return Err(QuantizeError::Cancelled);
                    }
                    let tally = job.run(first + i, bytes)?;
                    let rows = PANEL_ROWS.min(rows - (first + i) * PANEL_ROWS);
                    progress.advance((rows * cols) as u64);
                    Ok(tally)
                })
                .collect();
            for result in results {
                tally.add(result?);
            }
            self.writer.write(bytes)?;
        }
        Ok(tally)
    }
}

/// Rounds the panels of one matrix.
struct PanelJob<'a> {
    plan: &'a TensorPlan,
    data: &'a TensorData,
    rounder: Option<(RowRounder, Method)>,
}

impl PanelJob<'_> {
    /// Decodes, rounds and packs one panel, then measures what was packed.
    fn run(&self, panel: usize, bytes: &mut [u8]) -> Result<Tally> {
        let cols = self.data.cols();
        let weights = self.weights(panel)?;
        let codec = &self.plan.encoding;
        match &self.rounder {
            None => codec.encode_dense_panel(&weights, cols, bytes),
            Some((rounder, method)) => {
                self.check_magnitude(panel * PANEL_ROWS, &weights)?;
                let round = |row| match method {
                    Method::Absmax => rounder.round_absmax(row),
                    _ => rounder.round(row, None),
                };
                let quantized: Vec<QuantizedRow> = weights.chunks_exact(cols).map(round).collect();
                codec.pack_panel(&quantized, cols, bytes);
            }
        }
        self.measure(panel, &weights, bytes)
    }

    /// The weights of a panel's rows.
    fn weights(&self, panel: usize) -> Result<Vec<f32>> {
        let (rows, cols) = (self.data.rows(), self.data.cols());
        let first = panel * PANEL_ROWS;
        let mut weights = vec![0.0f32; PANEL_ROWS.min(rows - first) * cols];
        for (r, row) in weights.chunks_exact_mut(cols).enumerate() {
            self.data.decode_row(first + r, row);
            check_finite(&self.plan.name, first + r, row)?;
        }
        Ok(weights)
    }

    /// The error of a packed panel.
    fn measure(&self, panel: usize, weights: &[f32], bytes: &[u8]) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut stored = vec![0.0f32; self.data.cols()];
        for (r, row) in weights.chunks_exact(stored.len()).enumerate() {
            self.plan.encoding.decode_row(bytes, r, &mut stored);
            tally.add(compare(self.plan, panel * PANEL_ROWS + r, row, &stored)?);
        }
        Ok(tally)
    }

    fn check_magnitude(&self, first: usize, weights: &[f32]) -> Result<()> {
        match weights.iter().position(|w| w.abs() >= MAX_MAGNITUDE) {
            None => Ok(()),
            Some(at) => {
                let (row, col) = (first + at / self.data.cols(), at % self.data.cols());
                Err(out_of_range(self.plan, row, col, weights[at]))
            }
        }
    }
}

pub(crate) fn check_finite(tensor: &str, row: usize, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(col) => {
            let value = values[col];
            Err(QuantizeError::NotFinite { tensor: tensor.into(), row, col, value })
        }
    }
}

fn out_of_range(plan: &TensorPlan, row: usize, col: usize, value: f32) -> QuantizeError {
    QuantizeError::OutOfRange { tensor: plan.name.clone(), row, col, value, codec: plan.codec }
}

/// The error of a row as stored. A dense codec may have turned a large weight into an infinity.
fn compare(plan: &TensorPlan, row: usize, values: &[f32], stored: &[f32]) -> Result<Tally> {
    let mut tally = Tally::default();
    for (&x, &y) in values.iter().zip(stored) {
        tally.error += (f64::from(x) - f64::from(y)).powi(2);
        tally.norm += f64::from(x).powi(2);
    }
    if tally.error.is_finite() {
        return Ok(tally);
    }
    let col = stored.iter().position(|y| !y.is_finite()).unwrap_or_default();
    Err(out_of_range(plan, row, col, values[col]))
}
