//! Causal attention of every head, forwards and backwards.
//!
//! Queries are taken in tiles, so that no more than a tile's scores exist at a time and keys that no
//! query of a tile may see cost nothing. The backward pass computes the probabilities again (Dao et
//! al. 2022, FlashAttention, section 3.1).

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use gristmill_formats::model::AttentionSpec;
use rayon::prelude::*;

use super::Matrix;
use super::matrix::Piece;
use super::vecmath::{dot, softcap, softcap_slope, softmax, vectorized};

/// Queries in a tile.
const TILE: usize = 128;

/// Queries, keys and values as they meet: normed and rotated.
#[derive(Debug)]
pub(super) struct Scores {
    /// `[tokens, heads * head_dim]`.
    pub(super) q: Matrix,
    /// `[tokens, kv_heads * head_dim]`.
    pub(super) k: Matrix,
    /// `[tokens, kv_heads * head_dim]`.
    pub(super) v: Matrix,
    /// Tokens of each sequence.
    pub(super) sequence: usize,
}

impl Scores {
    /// What every head gathers, `[tokens, heads * head_dim]`.
    pub(super) fn attend(&self, spec: &AttentionSpec) -> Matrix {
        let mut out = Matrix::unset(self.q.rows(), self.q.cols());
        let widths = Widths::of(spec);
        let pieces = out.pieces_mut(self.sequence, widths.group);
        pieces.into_par_iter().for_each(|Piece { row, col, view: mut out }| {
            let unit = self.unit(&widths, row, col / widths.group);
            let mut tile = Tile::new(spec, false);
            unit.for_each_tile(spec, &widths, |span| {
                tile.weigh(spec, &span, span.queries(unit.q), span.keys(unit.k));
                let out = span.queries_mut(&mut out);
                let weights = view(&tile.weights, &span);
                matmul(out, Accum::Replace, weights, span.keys(unit.v), 1.0, Par::Seq);
            });
        });
        out
    }

    /// Gradients of queries, keys and values from that of the heads' output.
    pub(super) fn backward(
        &self,
        spec: &AttentionSpec,
        d_out: &Matrix,
    ) -> (Matrix, Matrix, Matrix) {
        let like = |x: &Matrix| Matrix::zeros(x.rows(), x.cols());
        let (mut dq, mut dk, mut dv) = (like(&self.q), like(&self.k), like(&self.v));
        let widths = Widths::of(spec);
        let pieces = (
            dq.pieces_mut(self.sequence, widths.group),
            dk.pieces_mut(self.sequence, widths.head),
            dv.pieces_mut(self.sequence, widths.head),
        );
        pieces.into_par_iter().for_each(|(dq, dk, dv)| {
            let (row, col) = (dq.row, dq.col);
            let (mut dq, mut dk, mut dv) = (dq.view, dk.view, dv.view);
            let unit = self.unit(&widths, row, col / widths.group);
            let d_out = d_out.view().submatrix(row, col, self.sequence, widths.group);
            let mut tile = Tile::new(spec, true);
            let mut d_weights = Vec::new();
            unit.for_each_tile(spec, &widths, |span| {
                let (q, k) = (span.queries(unit.q), span.keys(unit.k));
                let d_out = span.queries(d_out);
                tile.weigh(spec, &span, q, k);
                let weights = view(&tile.weights, &span);
                let dv = span.keys_mut(&mut dv);
                matmul(dv, Accum::Add, weights.transpose(), d_out, 1.0, Par::Seq);
                d_weights.resize(span.size(), 0.0);
                let to = view_mut(&mut d_weights, &span);
                matmul(to, Accum::Replace, d_out, span.keys(unit.v).transpose(), 1.0, Par::Seq);
                vectorized(|| tile.scores_gradient(&span, &mut d_weights));
                let (scale, d_scores) = (spec.scale, view(&d_weights, &span));
                let dq = span.queries_mut(&mut dq);
                matmul(dq, Accum::Replace, d_scores, k, scale, Par::Seq);
                let dk = span.keys_mut(&mut dk);
                matmul(dk, Accum::Add, d_scores.transpose(), q, scale, Par::Seq);
            });
        });
        (dq, dk, dv)
    }

    /// The sequence from token `row` on of one key/value head with all its queries.
    fn unit(&self, widths: &Widths, row: usize, kv_head: usize) -> Unit<'_> {
        let piece = |x, width| {
            MatRef::submatrix(Matrix::view(x), row, kv_head * width, self.sequence, width)
        };
        Unit {
            q: piece(&self.q, widths.group),
            k: piece(&self.k, widths.head),
            v: piece(&self.v, widths.head),
        }
    }
}

/// Columns of a head, and of all query heads that share a key/value head.
#[derive(Debug, Clone, Copy)]
struct Widths {
    head: usize,
    group: usize,
}

impl Widths {
    fn of(spec: &AttentionSpec) -> Self {
        let head = spec.head_dim as usize;
        Self { head, group: (spec.heads / spec.kv_heads) as usize * head }
    }
}

struct Unit<'a> {
    q: MatRef<'a, f32>,
    k: MatRef<'a, f32>,
    v: MatRef<'a, f32>,
}

impl Unit<'_> {
    /// Calls `each` for every tile of every query head.
    fn for_each_tile(&self, spec: &AttentionSpec, widths: &Widths, mut each: impl FnMut(Span)) {
        let sequence = self.k.nrows();
        for col in (0..widths.group).step_by(widths.head) {
            for first in (0..sequence).step_by(TILE) {
                let end = sequence.min(first + TILE);
                each(Span {
                    first_key: first_key(spec, first),
                    first,
                    end,
                    col,
                    width: widths.head,
                });
            }
        }
    }
}

/// First position that a query sees.
fn first_key(spec: &AttentionSpec, query: usize) -> usize {
    spec.window.map_or(0, |window| (query + 1).saturating_sub(window as usize))
}

/// A tile of one query head: queries `first..end`, and the keys `first_key..end` that any of them
/// sees.
#[derive(Debug, Clone, Copy)]
struct Span {
    first_key: usize,
    first: usize,
    end: usize,
    /// The head's columns among those of its group.
    col: usize,
    width: usize,
}

impl Span {
    fn key_count(&self) -> usize {
        self.end - self.first_key
    }

    fn size(&self) -> usize {
        (self.end - self.first) * self.key_count()
    }

    fn queries<'a>(&self, x: MatRef<'a, f32>) -> MatRef<'a, f32> {
        x.submatrix(self.first, self.col, self.end - self.first, self.width)
    }

    fn queries_mut<'a>(&self, x: &'a mut MatMut<'_, f32>) -> MatMut<'a, f32> {
        x.as_mut().submatrix_mut(self.first, self.col, self.end - self.first, self.width)
    }

    fn keys<'a>(&self, x: MatRef<'a, f32>) -> MatRef<'a, f32> {
        x.subrows(self.first_key, self.key_count())
    }

    fn keys_mut<'a>(&self, x: &'a mut MatMut<'_, f32>) -> MatMut<'a, f32> {
        x.as_mut().subrows_mut(self.first_key, self.key_count())
    }
}

fn view<'a>(values: &'a [f32], span: &Span) -> MatRef<'a, f32> {
    MatRef::from_row_major_slice(values, span.end - span.first, span.key_count())
}

fn view_mut<'a>(values: &'a mut [f32], span: &Span) -> MatMut<'a, f32> {
    MatMut::from_row_major_slice_mut(values, span.end - span.first, span.key_count())
}

/// Attention weights of a tile, `[queries, keys]`.
#[derive(Debug)]
struct Tile {
    weights: Vec<f32>,
    /// Derivatives of the scores' cap, where there is one and they are wanted.
    cap_slopes: Option<Vec<f32>>,
}

impl Tile {
    fn new(spec: &AttentionSpec, backward: bool) -> Self {
        let cap_slopes = (backward && spec.softcap.is_some()).then(Vec::new);
        Self { weights: Vec::new(), cap_slopes }
    }

    /// `softmax(cap(scale q kᵀ))` over what each query sees, zero elsewhere.
    fn weigh(&mut self, spec: &AttentionSpec, span: &Span, q: MatRef<'_, f32>, k: MatRef<'_, f32>) {
        self.weights.resize(span.size(), 0.0);
        let scores = view_mut(&mut self.weights, span);
        matmul(scores, Accum::Replace, q, k.transpose(), spec.scale, Par::Seq);
        vectorized(|| self.normalize(spec, span));
    }

    /// From scores to weights.
    #[inline(always)]
    fn normalize(&mut self, spec: &AttentionSpec, span: &Span) {
        if let Some(cap) = spec.softcap {
            self.weights.iter_mut().for_each(|s| *s = softcap(*s, cap));
            if let Some(slopes) = &mut self.cap_slopes {
                slopes.clear();
                slopes.extend(self.weights.iter().map(|&s| softcap_slope(s, cap)));
            }
        }
        for (i, row) in self.weights.chunks_exact_mut(span.key_count()).enumerate() {
            let query = span.first + i;
            let from = first_key(spec, query) - span.first_key;
            let to = query + 1 - span.first_key;
            row[..from].fill(0.0);
            row[to..].fill(0.0);
            softmax(&mut row[from..to]);
        }
    }

    /// Turns the weights' gradient into that of the scores before the cap:
    /// `ds = p (dp - Σ p dp)`.
    #[inline(always)]
    fn scores_gradient(&self, span: &Span, gradient: &mut [f32]) {
        let n = span.key_count();
        for (dp, p) in gradient.chunks_exact_mut(n).zip(self.weights.chunks_exact(n)) {
            let mean = dot(p, dp);
            dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - mean));
        }
        if let Some(slopes) = &self.cap_slopes {
            gradient.iter_mut().zip(slopes).for_each(|(ds, slope)| *ds *= slope);
        }
    }
}
