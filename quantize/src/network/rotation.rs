//! Rotary position embedding.

use gristmill_formats::model::RopeSpec;
use rayon::prelude::*;

use super::Matrix;

/// Cosines and sines of every position of a sequence.
#[derive(Debug)]
pub(super) struct Rotation {
    /// `[sequence][head_dim / 2]`.
    turns: Vec<(f32, f32)>,
    half: usize,
    sequence: usize,
}

impl Rotation {
    pub(super) fn new(rope: &RopeSpec, head_dim: u32, sequence: usize) -> Self {
        let frequencies = rope.frequencies(head_dim);
        let turns = (0..sequence).into_par_iter().flat_map_iter(|position| {
            frequencies.iter().map(move |&frequency| {
                // Single precision up to the angle, as the runtime and the reference implementation.
                let angle = f64::from(position as f32 * frequency as f32);
                (angle.cos() as f32, angle.sin() as f32)
            })
        });
        Self { turns: turns.collect(), half: frequencies.len(), sequence }
    }

    /// Rotates every head of `x` `[tokens, heads * head_dim]` by its token's position.
    pub(super) fn turn(&self, x: &mut Matrix) {
        self.turn_by(x, 1.0);
    }

    /// Rotates back, which is also what a gradient undergoes.
    pub(super) fn turn_back(&self, x: &mut Matrix) {
        self.turn_by(x, -1.0);
    }

    fn turn_by(&self, x: &mut Matrix, direction: f32) {
        let half = self.half;
        x.for_each_row(|token, row| {
            let position = token % self.sequence;
            let turns = &self.turns[position * half..(position + 1) * half];
            for head in row.chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                for ((x, y), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                    let sin = sin * direction;
                    (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
                }
            }
        });
    }
}
