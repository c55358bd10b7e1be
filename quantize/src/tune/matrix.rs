//! A rounded matrix whose scales and table move while its codes stay.

use std::ops::Range;

use gristmill_formats::codec::{BLOCK_COLS, Codec, Grid, PANEL_ROWS, QuantizedRow, block_count};
use half::bf16;
use rayon::prelude::*;

use super::adam::Parameters;
use super::stride;
use crate::calibrate::pack_panels;
use crate::network::Matrix;

/// The unit of a table's parameters, in table values.
const TABLE_UNIT: f32 = 127.0;

/// Codes as rounded, and parameters that say how far scales and table have moved. Weights are always
/// those of the file that would be written, with scales and table rounded as they are stored; the
/// gradient passes this rounding by.
#[derive(Debug)]
pub(super) struct TunedMatrix {
    codec: Codec,
    rows: Vec<QuantizedRow>,
    cols: usize,
    /// Relative changes of row scales, relative changes of block scales, changes of the table's values
    /// and of its shift.
    pub(super) parameters: Parameters,
}

/// What each code stands for, in blocks without and with the shift.
struct Values([[f32; 256]; 2]);

impl Values {
    fn of(codec: &Codec) -> Self {
        let value = |code: usize, shifted| match codec {
            Codec::Table(grid) => grid.value(code as u8, shifted),
            _ => code as u8 as i8,
        };
        Self([false, true].map(|s| std::array::from_fn(|code| f32::from(value(code, s)))))
    }
}

impl TunedMatrix {
    /// Of packed panels.
    pub(super) fn new(codec: &Codec, bytes: &[u8], rows: usize, cols: usize) -> Self {
        let panels = bytes.par_chunks_exact(codec.panel_bytes(cols)).enumerate();
        let unpacked = panels.map(|(p, panel)| {
            let count = PANEL_ROWS.min(rows - p * PANEL_ROWS);
            (0..count).map(|r| codec.unpack_row(panel, r, cols)).collect::<Vec<_>>()
        });
        let rows: Vec<QuantizedRow> = unpacked.collect::<Vec<_>>().into_iter().flatten().collect();
        let table = codec.grid().map_or(0, |grid| grid.values().len() + 1);
        let len = rows.len() * (1 + block_count(cols)) + table;
        let parameters = Parameters::new(len, stride(codec.id().code_bits()));
        Self { codec: codec.clone(), rows, cols, parameters }
    }

    /// Bits of a code.
    pub(super) fn bits(&self) -> u32 {
        self.codec.id().code_bits()
    }

    /// Where the changes of a row's block scales are.
    fn blocks(&self, row: usize) -> Range<usize> {
        let count = block_count(self.cols);
        let first = self.rows.len() + row * count;
        first..first + count
    }

    /// Where the changes of the table are, that of its shift last.
    fn table(&self) -> Range<usize> {
        self.blocks(self.rows.len()).start..self.parameters.values.len()
    }

    /// The bits of a block scale: scale and shift.
    fn split(&self, scale: u8) -> (u8, u8) {
        let shift = if self.codec.grid().is_some() { Grid::SHIFT_BIT } else { 0 };
        (scale & !shift, scale & shift)
    }

    /// The codec with the table as moved: values stay in order and, shifted or not, within int8.
    pub(super) fn codec(&self) -> Codec {
        let Codec::Table(grid) = &self.codec else { return self.codec.clone() };
        let moved = &self.parameters.values[self.table()];
        let at = |value: i8, moved: &f32| (f32::from(value) + TABLE_UNIT * moved).round();
        let limit = f32::from(i8::MAX);
        let shift = at(grid.shift(), &moved[grid.values().len()]).clamp(0.0, limit);
        let values = grid.values().iter().zip(moved).scan(-limit, |last, (&value, moved)| {
            *last = at(value, moved).min(limit - shift).max(*last);
            Some(*last as i8)
        });
        let values: Vec<i8> = values.collect();
        Codec::Table(Grid::new(&values, shift as i8).expect("in order and within int8"))
    }

    /// A row as moved.
    fn row(&self, r: usize) -> QuantizedRow {
        let mut row = self.rows[r].clone();
        let values = &self.parameters.values;
        row.row_scale = bf16::from_f32(row.row_scale.to_f32() * (1.0 + values[r]));
        let largest = f32::from(self.split(u8::MAX).0);
        for (scale, moved) in row.block_scales.iter_mut().zip(&values[self.blocks(r)]) {
            let (plain, shift) = self.split(*scale);
            let plain = (f32::from(plain) * (1.0 + moved)).round().clamp(0.0, largest);
            *scale = plain as u8 | shift;
        }
        row
    }

    /// The weights, as [`Codec::decode_row`] gives them.
    pub(super) fn decode(&self, weights: &mut Matrix) {
        let Values(values) = Values::of(&self.codec());
        weights.for_each_row(|r, out| {
            let row = self.row(r);
            let blocks = out.chunks_mut(BLOCK_COLS).zip(row.codes.chunks(BLOCK_COLS));
            for ((out, codes), &scale) in blocks.zip(&row.block_scales) {
                let (plain, shift) = self.split(scale);
                let scale = row.row_scale.to_f32() * f32::from(plain);
                let values = &values[usize::from(shift != 0)];
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = scale * values[usize::from(code)];
                }
            }
        });
    }

    /// The panels, for [`Self::codec`].
    pub(super) fn pack(&self) -> Vec<u8> {
        pack_panels(&self.codec(), self.rows.len(), self.cols, |r| self.row(r))
    }

    /// Adds to the gradient of the parameters what follows from that of the weights.
    pub(super) fn add_gradient(&mut self, weights: &Matrix, d_weights: &Matrix) {
        let table_len = self.table().len();
        let this = &*self;
        let rows: Vec<RowGradient> = (0..self.rows.len())
            .into_par_iter()
            .map(|r| this.row_gradient(r, weights.row(r), d_weights.row(r), table_len))
            .collect();
        let table = self.table();
        // In order, so that sums do not depend on the threads.
        for (r, found) in rows.into_iter().enumerate() {
            let blocks = self.blocks(r);
            let gradient = &mut self.parameters.gradient;
            gradient[r] += found.blocks.iter().sum::<f32>();
            gradient[blocks].iter_mut().zip(&found.blocks).for_each(|(g, d)| *g += d);
            gradient[table.clone()].iter_mut().zip(&found.table).for_each(|(g, d)| *g += d);
        }
    }

    fn row_gradient(&self, r: usize, w: &[f32], dw: &[f32], table_len: usize) -> RowGradient {
        let row = &self.rows[r];
        let mut table = vec![0.0f32; table_len];
        let row_scale = row.row_scale.to_f32() * TABLE_UNIT;
        let columns = w.chunks(BLOCK_COLS).zip(dw.chunks(BLOCK_COLS));
        let blocks = columns.enumerate().map(|(b, (w, dw))| {
            if let [values @ .., shift] = &mut table[..] {
                let (plain, shifted) = self.split(row.block_scales[b]);
                let scale = row_scale * f32::from(plain);
                for (&code, dw) in row.codes[b * BLOCK_COLS..].iter().zip(dw) {
                    values[usize::from(code)] += scale * dw;
                }
                if shifted != 0 {
                    *shift += scale * dw.iter().sum::<f32>();
                }
            }
            w.iter().zip(dw).map(|(w, dw)| w * dw).sum()
        });
        RowGradient { blocks: blocks.collect(), table }
    }
}

/// Gradient of the relative changes of a row's blocks, and the row's share in that of the table.
struct RowGradient {
    blocks: Vec<f32>,
    table: Vec<f32>,
}

#[cfg(test)]
mod tests;
