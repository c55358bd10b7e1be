//! The block types of GGUF as grids.
//!
//! What llama.cpp does is the yardstick (`ggml-quants.c`, `make_qx_quants` and `make_qkx3_quants`:
//! 19 or 37 trial scales with least squares). Here more trials are made, of both signs where codes are
//! asymmetric, and the best are refined on the half-precision values that are stored.

use gristmill_formats::gguf::{BLOCK, Block, GgmlType, RowOrder};
use half::f16;

use super::RowGrid;
use super::gguf_search::{Codes, Line, LineSums, Offset, error, lines, scale_sums, scales};
use super::gguf_super::{MinGrid, SignedGrid};

/// Rounds of least squares on stored values.
const REFINEMENTS: usize = 4;

/// A grid whose rows have bytes in a GGUF file.
pub(crate) trait GgufGrid: RowGrid {
    /// Appends the bytes of a finished row.
    fn pack(&self, row: &Self::Row, bytes: &mut Vec<u8>);
}

/// Bytes of a matrix whose rows were rounded in the order of the source.
pub(crate) fn pack_rows<G: GgufGrid>(grid: &G, rows: &[G::Row], order: RowOrder) -> Vec<u8> {
    let mut bytes = Vec::new();
    (0..rows.len()).for_each(|row| grid.pack(&rows[order.source_row(row)], &mut bytes));
    bytes
}

/// What to do with the grid of a type; needed because every grid is a type of its own.
pub(crate) trait GridVisitor {
    /// What comes out of it.
    type Output;
    /// Does it.
    fn visit<G: GgufGrid>(self, grid: &G) -> Self::Output;
}

/// Calls the visitor with the grid of a type; `None` for dense types, which have none.
pub(crate) fn visit<V: GridVisitor>(ty: GgmlType, visitor: V) -> Option<V::Output> {
    Some(match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => return None,
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => visitor.visit(&ScaleGrid::new(ty)),
        GgmlType::Q4_1 | GgmlType::Q5_1 => visitor.visit(&LineGrid::new(ty)),
        GgmlType::Q4_K | GgmlType::Q5_K => visitor.visit(&MinGrid::new(ty)),
        GgmlType::Q6_K => visitor.visit(&SignedGrid),
    })
}

/// The half-precision number nearest to a scale, never infinite.
pub(super) fn stored(scale: f32) -> f16 {
    f16::from_f32(scale.clamp(-f16::MAX.to_f32(), f16::MAX.to_f32()))
}

/// Importance scaled to at most 1. A group in which only unimportant columns are not zero weighs its
/// columns the same, so that it still gets a scale.
pub(super) fn weights<const N: usize>(x: &[f32], importance: &[f32]) -> [f32; N] {
    let mut weights = [1.0; N];
    let norm: f32 = importance.iter().fold(0.0, |m, &w| m.max(w));
    let matters = x.iter().zip(importance).any(|(&x, &w)| x != 0.0 && w > norm * f32::EPSILON);
    if matters {
        weights.iter_mut().zip(importance).for_each(|(out, w)| *out = w / norm);
    }
    weights
}

/// Q4_0, Q5_0 and Q8_0: one signed scale per block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScaleGrid {
    ty: GgmlType,
    codes: Codes,
}

impl ScaleGrid {
    fn new(ty: GgmlType) -> Self {
        let (low, high) = match ty {
            GgmlType::Q4_0 => (-8.0, 7.0),
            GgmlType::Q5_0 => (-16.0, 15.0),
            // -128 is left out: some kernels negate codes.
            _ => (-127.0, 127.0),
        };
        Self { ty, codes: Codes { low, high } }
    }

    /// A code as it is stored: counted from the lowest, but for Q8_0's, which have signs.
    fn code(&self, x: f32) -> u8 {
        match self.ty {
            GgmlType::Q8_0 => x as i8 as u8,
            _ => (x - self.codes.low) as u8,
        }
    }
}

impl RowGrid for ScaleGrid {
    type Row = Vec<Block>;

    fn start(&self, row: &[f32], _: &[f32]) -> Self::Row {
        vec![Block::zero(self.ty); row.len() / BLOCK]
    }

    fn fit(&self, row: &mut Self::Row, group: usize, x: &[f32], importance: &[f32]) {
        let w: [f32; BLOCK] = weights(x, importance);
        let line = |scale: f16| Line { scale: scale.to_f32(), offset: 0.0 };
        let mut best = (error(x, &w, self.codes, line(f16::ZERO)), f16::ZERO);
        for mut scale in scales(x, &w, self.codes).iter() {
            let mut last = f32::INFINITY;
            for _ in 0..REFINEMENTS {
                let candidate = stored(scale);
                if candidate == f16::ZERO {
                    break;
                }
                let found = error(x, &w, self.codes, line(candidate));
                if found < best.0 {
                    best = (found, candidate);
                }
                if found >= last {
                    break;
                }
                last = found;
                let (xq, qq) = scale_sums(x, &w, self.codes, 1.0 / candidate.to_f32());
                scale = if qq > 0.0 { xq / qq } else { 0.0 };
            }
        }
        row[group].scale = best.1;
    }

    fn round(&self, row: &mut Self::Row, col: usize, x: f32) -> f32 {
        let block = &mut row[col / BLOCK];
        let scale = block.scale.to_f32();
        let code = if scale == 0.0 { 0.0 } else { self.codes.nearest(x / scale) };
        block.codes[col % BLOCK] = self.code(code);
        block.value(self.ty, col % BLOCK)
    }

    fn value(&self, row: &Self::Row, col: usize) -> f32 {
        row[col / BLOCK].value(self.ty, col % BLOCK)
    }
}

impl GgufGrid for ScaleGrid {
    fn pack(&self, row: &Self::Row, bytes: &mut Vec<u8>) {
        row.iter().for_each(|block| block.pack(self.ty, bytes));
    }
}

/// Q4_1 and Q5_1: scale and offset per block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineGrid {
    ty: GgmlType,
    codes: Codes,
}

impl LineGrid {
    fn new(ty: GgmlType) -> Self {
        let high = if ty == GgmlType::Q4_1 { 15.0 } else { 31.0 };
        Self { ty, codes: Codes { low: 0.0, high } }
    }
}

impl RowGrid for LineGrid {
    type Row = Vec<Block>;

    fn start(&self, row: &[f32], _: &[f32]) -> Self::Row {
        vec![Block::zero(self.ty); row.len() / BLOCK]
    }

    fn fit(&self, row: &mut Self::Row, group: usize, x: &[f32], importance: &[f32]) {
        let w: [f32; BLOCK] = weights(x, importance);
        // Equal weights lie on no line of a positive slope: the offset alone stores them.
        let mean = x.iter().zip(&w).map(|(x, w)| x * w).sum::<f32>() / w.iter().sum::<f32>();
        let mut best = (f32::INFINITY, f16::ZERO, f16::ZERO);
        let mut attempt = |scale: f32, offset: f32| {
            let (scale, offset) = (stored(scale), stored(offset));
            let line = Line { scale: scale.to_f32(), offset: offset.to_f32() };
            let found = error(x, &w, self.codes, line);
            if found < best.0 {
                best = (found, scale, offset);
            }
            (found, line)
        };
        attempt(0.0, mean);
        for mut line in lines(x, &w, self.codes, Offset::Free).iter() {
            let mut last = f32::INFINITY;
            for _ in 0..REFINEMENTS {
                let (found, at) = attempt(line.scale, line.offset);
                if found >= last || at.scale == 0.0 {
                    break;
                }
                last = found;
                let solved = LineSums::of(x, &w, self.codes, at).solve(Offset::Free);
                let Some((_, solved)) = solved else { break };
                line = solved;
            }
        }
        (row[group].scale, row[group].offset) = (best.1, best.2);
    }

    fn round(&self, row: &mut Self::Row, col: usize, x: f32) -> f32 {
        let block = &mut row[col / BLOCK];
        let (scale, offset) = (block.scale.to_f32(), block.offset.to_f32());
        let code = if scale == 0.0 { 0.0 } else { self.codes.nearest((x - offset) / scale) };
        block.codes[col % BLOCK] = code as u8;
        block.value(self.ty, col % BLOCK)
    }

    fn value(&self, row: &Self::Row, col: usize) -> f32 {
        row[col / BLOCK].value(self.ty, col % BLOCK)
    }
}

impl GgufGrid for LineGrid {
    fn pack(&self, row: &Self::Row, bytes: &mut Vec<u8>) {
        row.iter().for_each(|block| block.pack(self.ty, bytes));
    }
}
