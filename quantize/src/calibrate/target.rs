//! The formats that a model is rounded to.

use std::collections::HashMap;

use gristmill_formats::codec::{Codec, PANEL_ROWS, QuantizedRow, panel_count};
use gristmill_formats::gguf::GgmlType;
use rayon::prelude::*;

use super::matrix::{Moments, RoundedTensor, round, round_plainly};
use crate::grid::gguf::{GgufGrid, GridVisitor, visit};
use crate::grid::packed::PackedGrid;
use crate::network::Matrix;

/// A format for every matrix that is to be rounded, by canonical name.
pub(crate) trait Target: Sync {
    /// Whether a tensor is rounded; others keep their weights.
    fn rounds(&self, name: &str) -> bool;

    /// Rounds a matrix and encodes it. `fisher` is the trace of its Fisher information per token.
    fn round(
        &self,
        name: &str,
        weights: &Matrix,
        moments: &Moments<'_>,
        fisher: f64,
    ) -> (Vec<u8>, RoundedTensor);

    /// Decodes a row of what [`Self::round`] returned.
    fn decode_row(&self, name: &str, bytes: &[u8], row: usize, out: &mut [f32]);
}

/// Block codecs, encoded as panels.
pub(crate) struct PackedTarget {
    codecs: HashMap<String, Codec>,
    feedback: Option<usize>,
}

impl PackedTarget {
    /// Of these matrices; those with dense codecs are not rounded. `feedback` is how many sweeps of
    /// coordinate descent follow error feedback, `None` plain rounding.
    pub(crate) fn new<'a>(
        codecs: impl Iterator<Item = (&'a str, &'a Codec)>,
        feedback: Option<usize>,
    ) -> Self {
        let block = codecs.filter(|(_, codec)| !codec.id().is_dense());
        let codecs = block.map(|(name, codec)| (name.to_owned(), codec.clone())).collect();
        Self { codecs, feedback }
    }

    /// The grid of a matrix; `None` when it is not rounded.
    pub(crate) fn grid(&self, name: &str) -> Option<PackedGrid> {
        PackedGrid::new(self.codecs.get(name)?)
    }
}

impl Target for PackedTarget {
    fn rounds(&self, name: &str) -> bool {
        self.codecs.contains_key(name)
    }

    fn round(
        &self,
        name: &str,
        weights: &Matrix,
        moments: &Moments<'_>,
        fisher: f64,
    ) -> (Vec<u8>, RoundedTensor) {
        let codec = &self.codecs[name];
        let grid = PackedGrid::new(codec).expect("dense codecs are not rounded");
        let (rows, report) = match self.feedback {
            Some(sweeps) => round(&grid, weights, moments, fisher, sweeps),
            None => round_plainly(&grid, weights, moments, fisher),
        };
        let bytes = pack_panels(codec, rows.len(), weights.cols(), |r| grid.store(&rows[r]));
        (bytes, report)
    }

    fn decode_row(&self, name: &str, bytes: &[u8], row: usize, out: &mut [f32]) {
        let codec = &self.codecs[name];
        let panel = codec.panel_bytes(out.len());
        codec.decode_row(&bytes[row / PANEL_ROWS * panel..][..panel], row % PANEL_ROWS, out);
    }
}

/// The panels of a matrix whose rows `row` gives.
pub(crate) fn pack_panels(
    codec: &Codec,
    rows: usize,
    cols: usize,
    row: impl Fn(usize) -> QuantizedRow + Sync,
) -> Vec<u8> {
    let panel_bytes = codec.panel_bytes(cols);
    let mut bytes = vec![0u8; panel_count(rows) * panel_bytes];
    bytes.par_chunks_exact_mut(panel_bytes).enumerate().for_each(|(p, panel)| {
        let rows = p * PANEL_ROWS..rows.min((p + 1) * PANEL_ROWS);
        let rows: Vec<_> = rows.map(&row).collect();
        codec.pack_panel(&rows, cols, panel);
    });
    bytes
}

/// Block types of GGUF, encoded row by row in the order of the model.
pub(crate) struct GgufTarget {
    pub(crate) types: HashMap<String, GgmlType>,
}

impl Target for GgufTarget {
    fn rounds(&self, name: &str) -> bool {
        self.types.get(name).is_some_and(|ty| !ty.is_dense())
    }

    fn round(
        &self,
        name: &str,
        weights: &Matrix,
        moments: &Moments<'_>,
        fisher: f64,
    ) -> (Vec<u8>, RoundedTensor) {
        let visitor = Rounding { weights, moments, fisher };
        visit(self.types[name], visitor).expect("dense types are not rounded")
    }

    fn decode_row(&self, name: &str, bytes: &[u8], row: usize, out: &mut [f32]) {
        let ty = self.types[name];
        let size = ty.row_bytes(out.len()).expect("rows of whole blocks");
        ty.decode_row(&bytes[row * size..][..size], out);
    }
}

struct Rounding<'a> {
    weights: &'a Matrix,
    moments: &'a Moments<'a>,
    fisher: f64,
}

impl GridVisitor for Rounding<'_> {
    type Output = (Vec<u8>, RoundedTensor);

    fn visit<G: GgufGrid>(self, grid: &G) -> Self::Output {
        let (rows, report) = round(grid, self.weights, self.moments, self.fisher, 0);
        let mut bytes = Vec::new();
        rows.iter().for_each(|row| grid.pack(row, &mut bytes));
        (bytes, report)
    }
}
