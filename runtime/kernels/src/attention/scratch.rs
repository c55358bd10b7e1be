//! Memory that attention needs, one per thread.

use super::{MAX_QUERY_ROWS, PART, result_width};

/// Queries, scores, weights and results of one part for as many rows as are computed together.
#[derive(Debug, Clone)]
pub struct AttentionScratch {
    padded: usize,
    /// `[row][padded]`.
    queries: Vec<f32>,
    /// `[row][plane][padded]`.
    query_codes: Vec<i8>,
    /// `[row][PART]`.
    scores: Vec<f32>,
    /// `[row][plane][PART]`.
    weight_codes: Vec<i8>,
    /// `[row][padded + tail]`.
    results: Vec<f32>,
    /// Of the codes of queries, then of weights.
    codings: [[Coding; MAX_QUERY_ROWS]; 2],
    /// First position that a query sees exactly.
    exact_from: [usize; MAX_QUERY_ROWS],
}

/// What codes in two planes stand for: `(coarse * FINE_STEPS + fine) * step`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Coding {
    pub(super) step: f32,
    /// Sum of the codes of each plane.
    pub(super) sums: [i32; 2],
}

impl AttentionScratch {
    /// Room for heads of up to `head_dim` elements.
    pub fn new(head_dim: usize) -> Self {
        let padded = head_dim.next_multiple_of(16);
        Self {
            padded,
            queries: vec![0.0; MAX_QUERY_ROWS * padded],
            query_codes: vec![0; MAX_QUERY_ROWS * 2 * padded],
            scores: vec![0.0; MAX_QUERY_ROWS * PART],
            weight_codes: vec![0; MAX_QUERY_ROWS * 2 * PART],
            results: vec![0.0; MAX_QUERY_ROWS * result_width(head_dim)],
            codings: Default::default(),
            exact_from: [0; MAX_QUERY_ROWS],
        }
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        Self::bytes_for(self.padded) as u64
    }

    /// Bytes that room for heads of up to `head_dim` elements takes.
    pub fn bytes_for(head_dim: usize) -> usize {
        let padded = head_dim.next_multiple_of(16);
        let floats = padded + PART + result_width(head_dim);
        MAX_QUERY_ROWS * (4 * floats + 2 * (padded + PART))
    }

    /// Elements of a head, rounded up to 16, that it has room for.
    pub(crate) fn padded(&self) -> usize {
        self.padded
    }

    /// For heads of `padded` elements, as many as there is room for or fewer.
    pub(crate) fn view(&mut self, padded: usize) -> ScratchView {
        ScratchView {
            padded,
            queries: self.queries.as_mut_ptr(),
            query_codes: self.query_codes.as_mut_ptr(),
            scores: self.scores.as_mut_ptr(),
            weight_codes: self.weight_codes.as_mut_ptr(),
            results: self.results.as_mut_ptr(),
            codings: self.codings.as_mut_ptr().cast(),
            exact_from: self.exact_from.as_mut_ptr(),
        }
    }
}

/// Where the kernels keep things. Rows are below [`MAX_QUERY_ROWS`].
#[derive(Clone, Copy)]
pub(crate) struct ScratchView {
    pub(super) padded: usize,
    queries: *mut f32,
    query_codes: *mut i8,
    scores: *mut f32,
    weight_codes: *mut i8,
    results: *mut f32,
    codings: *mut Coding,
    exact_from: *mut usize,
}

// Rows are below `MAX_QUERY_ROWS` and planes below 2, for which there is room.
impl ScratchView {
    #[inline(always)]
    pub(super) fn query(&self, row: usize) -> *mut f32 {
        self.queries.wrapping_add(row * self.padded)
    }

    #[inline(always)]
    pub(super) fn query_codes(&self, row: usize, plane: usize) -> *mut i8 {
        self.query_codes.wrapping_add((2 * row + plane) * self.padded)
    }

    #[inline(always)]
    pub(super) fn scores(&self, row: usize) -> *mut f32 {
        self.scores.wrapping_add(row * PART)
    }

    #[inline(always)]
    pub(super) fn weight_codes(&self, row: usize, plane: usize) -> *mut i8 {
        self.weight_codes.wrapping_add((2 * row + plane) * PART)
    }

    #[inline(always)]
    pub(super) fn result(&self, row: usize) -> *mut f32 {
        self.results.wrapping_add(row * (self.padded + super::ROW_TAIL))
    }

    #[inline(always)]
    pub(super) fn query_coding(&self, row: usize) -> *mut Coding {
        self.codings.wrapping_add(row)
    }

    #[inline(always)]
    pub(super) fn weight_coding(&self, row: usize) -> *mut Coding {
        self.codings.wrapping_add(MAX_QUERY_ROWS + row)
    }

    #[inline(always)]
    pub(super) fn exact_from(&self, row: usize) -> *mut usize {
        self.exact_from.wrapping_add(row)
    }
}
