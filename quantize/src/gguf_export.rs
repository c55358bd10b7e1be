//! The pass over a model into a GGUF file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use gristmill_formats::gguf::{
    GgmlType, GgufData, GgufModel, GgufTensor, GgufWriter, RowOrder, TensorInfo,
};
use gristmill_formats::source::ModelSource;
use gristmill_formats::{FormatError, Progress};
use half::f16;
use rayon::prelude::*;

use crate::calibrate::{
    Calibration, GgufTarget, RoundedTensor, Wanted, Work, collect, packed_file, round_model,
};
use crate::fold::{FoldedSource, Folds};
use crate::gguf_types::GgufFileType;
use crate::grid::gguf::{GgufGrid, GridVisitor, pack_rows, visit};
use crate::pass::{MAX_BATCH_BYTES, check_finite};
use crate::quantize::work_identity;
use crate::{QuantizeError, Result, output};

/// Version of the block formats (`general.quantization_version`).
const QUANTIZATION_VERSION: u32 = 2;

/// What an export is made of.
#[derive(Debug, Clone, Copy)]
pub struct GgufExport<'a> {
    /// The weights.
    pub source: &'a dyn ModelSource,
    /// Their names and order in the file, and the metadata.
    pub model: &'a GgufModel,
    /// What file to make.
    pub file_type: GgufFileType,
    /// Whether types are those of a calibrated file; see [`GgufFileType::tensors`].
    pub calibrated: bool,
    /// Files of the source, which must not be overwritten.
    pub source_paths: &'a [PathBuf],
}

/// Bytes of a matrix that was rounded elsewhere, all rows in the order of the file; `None` leaves the
/// matrix to plain rounding.
pub type RoundedRows<'a> = dyn FnMut(&GgufTensor, GgmlType) -> Result<Option<Vec<u8>>> + 'a;

impl GgufExport<'_> {
    /// Rounds all matrices with error feedback on a calibration text, and writes the file; returns its
    /// size in bytes and what was done to each matrix, by the model's own names.
    ///
    /// # Errors
    /// As [`Self::write`], and when the work directory beside `out` cannot be used.
    pub fn write_calibrated(
        &self,
        out: &Path,
        calibration: &Calibration,
        resume: bool,
        progress: &dyn Progress,
    ) -> Result<(u64, HashMap<String, RoundedTensor>)> {
        output::check(out, self.source_paths)?;
        let (source, file_type) = (self.source, self.file_type.name());
        let identity = work_identity(source, &format!("gguf {file_type}"), calibration);
        for tensor in self.model.tensors.iter().filter(|t| t.shape.len() == 2) {
            let weights = Weights::open(source, tensor)?;
            (0..tensor.rows()).into_par_iter().try_for_each(|row| weights.row(row).map(drop))?;
        }
        let work = Work::open(out, &identity, resume)?;
        collect(source, calibration, Wanted::default(), &work, progress)?;
        let infos = self.file_type.tensors(self.model, self.calibrated);
        let types = self.model.tensors.iter().zip(&infos).filter_map(|(tensor, info)| {
            let GgufData::Source { name, .. } = &tensor.data else { return None };
            (tensor.shape.len() == 2).then(|| (name.clone(), info.ty))
        });
        let target = GgufTarget { types: types.collect() };
        let source = FoldedSource::new(source, Folds::default());
        let done = round_model(&source, &target, calibration, &work, progress)?;
        let mut rounded = |tensor: &GgufTensor, ty: GgmlType| {
            let GgufData::Source { name, order, .. } = &tensor.data else { return Ok(None) };
            let Some(bytes) = work.read(&packed_file(name))? else { return Ok(None) };
            let size = ty.row_bytes(tensor.cols()).expect("rows of whole blocks");
            let row = |r: usize| &bytes[order.source_row(r) * size..][..size];
            Ok(Some((0..tensor.rows()).flat_map(row).copied().collect()))
        };
        let file_bytes = self.write(out, &mut rounded, progress)?;
        work.remove()?;
        Ok((file_bytes, done))
    }

    /// Writes the file; returns its size in bytes. Each matrix is asked of `rounded` first. The file
    /// appears by rename, complete, or not at all.
    ///
    /// # Errors
    /// When the source cannot be read or has a weight that is not finite, `out` cannot be written, or
    /// [`Progress::cancelled`] says so ([`QuantizeError::Cancelled`]).
    pub fn write(
        &self,
        out: &Path,
        rounded: &mut RoundedRows<'_>,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let tensors = self.file_type.tensors(self.model, self.calibrated);
        let sizes: Vec<u64> =
            tensors.iter().map(TensorInfo::bytes).collect::<Result<_, FormatError>>()?;
        output::check(out, self.source_paths)?;
        output::check_space(out, sizes.iter().sum())?;
        let mut metadata = self.model.metadata.clone();
        metadata.set("general.file_type", self.file_type.id());
        metadata.set("general.quantization_version", QUANTIZATION_VERSION);
        let mut writer = GgufWriter::begin(out, &metadata, &tensors)
            .map_err(|error| output::explain_create(out, error))?;
        let weights = |t: &TensorInfo| t.shape.iter().product::<u64>();
        progress.begin("exporting", tensors.iter().map(weights).sum(), "weights");
        for (tensor, info) in self.model.tensors.iter().zip(&tensors) {
            if progress.cancelled() {
                return Err(QuantizeError::Cancelled);
            }
            let finished = if info.ty.is_dense() { None } else { rounded(tensor, info.ty)? };
            match finished {
                Some(bytes) => writer.tensor(&tensor.name, &bytes)?,
                None => self.tensor(tensor, info.ty, &mut writer, progress)?,
            }
            progress.advance(weights(info));
        }
        Ok(writer.finish()?)
    }

    /// Rounds a tensor batch by batch.
    fn tensor(
        &self,
        tensor: &GgufTensor,
        ty: GgmlType,
        writer: &mut GgufWriter,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let batch = (MAX_BATCH_BYTES / (cols * size_of::<f32>())).clamp(1, rows);
        let weights = Weights::open(self.source, tensor)?;
        for first in (0..rows).step_by(batch) {
            if progress.cancelled() {
                return Err(QuantizeError::Cancelled);
            }
            let rows: Vec<Vec<u8>> = (first..rows.min(first + batch))
                .into_par_iter()
                .map(|row| {
                    let values = weights.row(row)?;
                    check_magnitude(tensor, ty, &values)?;
                    Ok(round_row(ty, &values, None))
                })
                .collect::<Result<_>>()?;
            writer.tensor(&tensor.name, &rows.concat())?;
        }
        Ok(())
    }
}

/// The values of a tensor in the order of the file.
#[derive(Debug)]
pub struct Weights<'a> {
    tensor: &'a GgufTensor,
    source: Option<gristmill_formats::source::TensorData>,
}

impl<'a> Weights<'a> {
    /// Finds the tensor in the source.
    ///
    /// # Errors
    /// When it is missing there.
    pub fn open(source: &dyn ModelSource, tensor: &'a GgufTensor) -> Result<Self> {
        let source = match &tensor.data {
            GgufData::Source { name, .. } => Some(source.tensor(name)?),
            GgufData::Values(_) => None,
        };
        Ok(Self { tensor, source })
    }

    /// A row of the file; a vector is its only row.
    ///
    /// # Errors
    /// When a value is not finite.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> Result<Vec<f32>> {
        let cols = self.tensor.cols();
        let (source, order, add) = match (&self.tensor.data, &self.source) {
            (GgufData::Source { order, add, .. }, Some(source)) => (source, *order, *add),
            (GgufData::Values(values), _) => return Ok(values.clone()),
            (GgufData::Source { .. }, None) => unreachable!("`open` found the tensor"),
        };
        let vector = self.tensor.shape.len() == 1;
        let source_row = if vector { 0 } else { order.source_row(row) };
        let mut values = vec![0.0f32; cols];
        source.decode_row(source_row, &mut values);
        check_finite(&self.tensor.name, source_row, &values)?;
        if vector && order != RowOrder::Same {
            values = (0..cols).map(|i| values[order.source_row(i)]).collect();
        }
        values.iter_mut().for_each(|v| *v += add);
        Ok(values)
    }
}

/// Half-precision scales hold this much; no sane checkpoint comes near.
fn check_magnitude(tensor: &GgufTensor, ty: GgmlType, values: &[f32]) -> Result<()> {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if matches!(ty, GgmlType::F32 | GgmlType::Bf16) || largest <= f16::MAX.to_f32() {
        return Ok(());
    }
    Err(QuantizeError::Format(FormatError::Unsupported(format!(
        "tensor `{}`: a weight of magnitude {largest} is beyond the range of {ty}",
        tensor.name
    ))))
}

/// One row in a type, each weight to the nearest value under searched scales. `importance` has a
/// non-negative weight per column of the squared error.
///
/// # Panics
/// When the row is no whole number of blocks.
pub fn round_row(ty: GgmlType, row: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    assert!(ty.row_bytes(row.len()).is_some(), "a row of whole blocks");
    let equal;
    let importance = match importance {
        Some(importance) => importance,
        None => {
            equal = vec![1.0; row.len()];
            &equal
        }
    };
    visit(ty, Nearest { row, importance }).unwrap_or_else(|| {
        let mut bytes = Vec::new();
        ty.encode_dense(row, &mut bytes);
        bytes
    })
}

/// Rounds a row without error feedback.
struct Nearest<'a> {
    row: &'a [f32],
    importance: &'a [f32],
}

impl GridVisitor for Nearest<'_> {
    type Output = Vec<u8>;

    fn visit<G: GgufGrid>(self, grid: &G) -> Vec<u8> {
        let mut state = grid.start(self.row, self.importance);
        let groups = self.row.chunks(G::GROUP).zip(self.importance.chunks(G::GROUP));
        for (group, (x, importance)) in groups.enumerate() {
            grid.fit(&mut state, group, x, importance);
            for (i, &x) in x.iter().enumerate() {
                grid.round(&mut state, group * G::GROUP + i, x);
            }
        }
        pack_rows(grid, &[state], RowOrder::Same)
    }
}
