//! From the residual stream to logits and losses, and back.

use std::ops::Range;

use gristmill_formats::source::ModelSource;
use rayon::prelude::*;

use super::vecmath::{divergence, exp, log_softmax, softcap, softcap_slope, softmax, vectorized};
use super::weights::{norm, tensor};
use super::{Matrix, Norm};
use crate::Result;

/// Logits that exist at a time (64 MiB): a vocabulary of 262,144 is taken 64 tokens at a time.
const TILE_LOGITS: usize = 1 << 24;

/// The final norm and the output head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Norm before the head.
    pub norm: Norm,
    /// `[vocab, d_model]`.
    pub weight: Matrix,
    /// `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
}

impl Head {
    /// The head of a model; its embedding when that is tied.
    ///
    /// # Errors
    /// When a tensor is missing or cannot be read.
    pub fn load(source: &dyn ModelSource) -> Result<Self> {
        let spec = source.spec();
        Ok(Self {
            norm: norm(source, "final_norm", spec.final_norm)?,
            weight: tensor(source, spec.head_tensor())?,
            softcap: spec.logit_softcap,
        })
    }

    /// Logits `[tokens, vocab]` of a residual stream `[tokens, d_model]`, all at once: meant for few
    /// tokens.
    pub fn logits(&self, hidden: &Matrix) -> Matrix {
        self.logits_of(&self.norm.forward(hidden))
    }

    fn logits_of(&self, input: &Matrix) -> Matrix {
        let mut logits = Matrix::multiply(input, &self.weight);
        if let Some(cap) = self.softcap {
            logits.for_each_row(|_, row| {
                vectorized(|| row.iter_mut().for_each(|l| *l = softcap(*l, cap)))
            });
        }
        logits
    }

    /// The gradient of the residual stream `hidden` `[tokens, d_model]` from that of the logits.
    ///
    /// Tokens are taken in tiles: `gradient` is given the tile's tokens and their logits
    /// `[tile, vocab]` and replaces those by the loss's gradient. `observer` is shown what the head
    /// reads `[tile, d_model]` and the gradient of its output `[tile, vocab]`, which differs from the
    /// one before by the derivative of the logits' cap.
    pub fn backward(
        &self,
        hidden: &Matrix,
        gradient: &mut dyn FnMut(Range<usize>, &mut Matrix),
        observer: &mut dyn FnMut(&Matrix, &Matrix),
    ) -> Matrix {
        let mut d_hidden = Matrix::unset(hidden.rows(), hidden.cols());
        for tokens in self.tiles(hidden.rows()) {
            let x = hidden.slice(tokens.clone());
            let input = self.norm.forward(&x);
            let mut d_logits = self.logits_of(&input);
            let capped = self.softcap.map(|cap| (cap, d_logits.clone()));
            gradient(tokens.clone(), &mut d_logits);
            if let Some((cap, logits)) = capped {
                d_logits.for_each_row(|t, row| {
                    let pairs = row.iter_mut().zip(logits.row(t));
                    pairs.for_each(|(d, &l)| *d *= softcap_slope(l, cap));
                });
            }
            observer(&input, &d_logits);
            let d_input = Matrix::multiply_back(&d_logits, &self.weight);
            let dx = self.norm.backward(&x, &d_input);
            let at = tokens.start * hidden.cols();
            d_hidden.data_mut()[at..at + dx.data().len()].copy_from_slice(dx.data());
        }
        d_hidden
    }

    /// As [`Self::backward`] of the loss `Σ -log p(label)` over tokens, each with a label drawn from
    /// the model's own distribution. Outer products of such gradients have the Fisher information as
    /// their mean (Kunstner, Balles and Hennig 2019, section 2).
    ///
    /// The label of a token depends on the seed, the token's index and its logits alone.
    pub fn sampled_loss_backward(
        &self,
        hidden: &Matrix,
        seed: u64,
        observer: &mut dyn FnMut(&Matrix, &Matrix),
    ) -> Matrix {
        let mut gradient = |tokens: Range<usize>, logits: &mut Matrix| {
            logits.for_each_row(|t, row| {
                vectorized(|| softmax(row));
                let label = draw(row, uniform(seed, (tokens.start + t) as u64));
                row[label] -= 1.0;
            });
        };
        self.backward(hidden, &mut gradient, observer)
    }

    /// As [`Self::backward`] of the mean over tokens of the divergence from `teacher` (see
    /// [`Self::divergence`]), which is returned too.
    ///
    /// # Panics
    /// When the two have different numbers of tokens.
    pub fn divergence_backward(
        &self,
        hidden: &Matrix,
        teacher: &Self,
        teacher_hidden: &Matrix,
        observer: &mut dyn FnMut(&Matrix, &Matrix),
    ) -> (f64, Matrix) {
        assert_eq!(hidden.rows(), teacher_hidden.rows());
        let share = 1.0 / hidden.rows() as f32;
        let mut sum = 0.0;
        let mut gradient = |tokens: Range<usize>, logits: &mut Matrix| {
            let mut log_p = teacher.logits(&teacher_hidden.slice(tokens));
            sum += divergences(&mut log_p, logits);
            logits.for_each_row(|t, log_q| {
                let pairs = log_q.iter_mut().zip(log_p.row(t));
                vectorized(|| pairs.for_each(|(q, &p)| *q = (exp(*q) - exp(p)) * share));
            });
        };
        let d_hidden = self.backward(hidden, &mut gradient, observer);
        (sum * f64::from(share), d_hidden)
    }

    /// Mean over tokens of the Kullback-Leibler divergence, in nats, of this head's distribution on
    /// `hidden` from that of `teacher` on `teacher_hidden`: `Σ p_teacher log(p_teacher / p)`.
    ///
    /// # Panics
    /// When the two have different numbers of tokens.
    pub fn divergence(&self, hidden: &Matrix, teacher: &Self, teacher_hidden: &Matrix) -> f64 {
        assert_eq!(hidden.rows(), teacher_hidden.rows());
        let tiles = self.tiles(hidden.rows()).map(|tokens| {
            let mut log_q = self.logits(&hidden.slice(tokens.clone()));
            divergences(&mut teacher.logits(&teacher_hidden.slice(tokens)), &mut log_q)
        });
        tiles.sum::<f64>() / hidden.rows() as f64
    }

    fn tiles(&self, tokens: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let tile = (TILE_LOGITS / self.weight.rows()).clamp(1, 512);
        (0..tokens).step_by(tile).map(move |first| first..tokens.min(first + tile))
    }
}

/// Turns logits into logarithms of probabilities; returns the sum over rows of `Σ p (log p - log q)`.
fn divergences(p: &mut Matrix, q: &mut Matrix) -> f64 {
    let vocab = p.cols();
    let rows = p.data_mut().par_chunks_exact_mut(vocab);
    let rows = rows.zip(q.data_mut().par_chunks_exact_mut(vocab));
    let each: Vec<f64> = rows
        .map_init(Vec::new, |scratch, (log_p, log_q)| {
            vectorized(|| {
                log_softmax(log_p, scratch);
                log_softmax(log_q, scratch);
                divergence(log_p, log_q)
            })
        })
        .collect();
    // In order, so that the sum does not depend on the threads.
    each.iter().sum()
}

/// A number in [0, 1): the `index`-th of SplitMix64 (Steele, Lea and Flood 2014) from `seed`.
fn uniform(seed: u64, index: u64) -> f64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = seed.wrapping_add(STEP.wrapping_mul(index.wrapping_add(1)));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// The index at which the running sum of a distribution passes `at`.
fn draw(distribution: &[f32], at: f64) -> usize {
    let mut last = 0;
    let mut sum = 0.0;
    for (i, &p) in distribution.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        sum += f64::from(p);
        last = i;
        if sum > at {
            break;
        }
    }
    last
}
