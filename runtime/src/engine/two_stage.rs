//! The output head in two stages, for when only the largest logits matter.
//!
//! First every row of the coarse head is multiplied, which bounds each logit from both sides
//! ([`crate::coarse`]). The panels of the k largest lower bounds are then computed as the one-stage head does;
//! the k-th largest of their logits is a threshold that k logits reach. A panel in which no upper bound
//! does holds none of the k largest; the others are computed in the second stage. Equal logits stay together,
//! so whoever breaks ties by index finds the same ones.

use std::ops::Range;

use gristmill_formats::codec::PANEL_ROWS;
use gristmill_formats::source::TensorData;
use gristmill_kernels::{ActBuffer, Kernels, Scratch};

use super::Engine;
use super::buffers::Worker;
use crate::coarse::{CoarseHead, MAX_NORM, norm_above};
use crate::model::view;
use crate::pool::Pool;

/// Added to the norm of the activations: more than what is lost where blocks of tiny ones become zeros.
const TINY_NORM: f32 = 1e-20;
/// Added to a bound: more than all that underflow can take from a product.
const TINY: f32 = 1e-35;
/// Largest error of a soft-capped logit, as a share of the cap.
const SOFTCAP_ERROR: f64 = 1e-6;

/// A coarse head and the activations to multiply it with.
pub(super) struct Coarse<'a> {
    head: &'a CoarseHead,
    /// Norm of the activations, or a little more.
    x_norm: f32,
    /// How many of the largest logits matter.
    top: usize,
}

impl<'a> Coarse<'a> {
    /// `None` when too many logits are asked for or the activations are beyond what is bounded.
    pub(super) fn of(head: &'a CoarseHead, x: &[f32], top: usize) -> Option<Self> {
        let x_norm = norm_above(x.iter().map(|&x| f64::from(x))) + TINY_NORM;
        let usable = (1..=Engine::MAX_TOP).contains(&top) && x_norm <= MAX_NORM;
        usable.then_some(Self { head, x_norm, top })
    }

    /// Its matrix.
    pub(super) fn matrix(&self) -> &'a TensorData {
        &self.head.matrix
    }

    /// Turns the coarse logits of a panel into bounds: offers the lower ones to `search` and leaves the
    /// largest upper one in place of the first logit.
    fn bound(&self, panel: usize, logits: &mut [f32; PANEL_ROWS], search: &mut Search) {
        let margin = self.radii(panel).map(|radius| radius * self.x_norm + TINY);
        let lower: [f32; PANEL_ROWS] = std::array::from_fn(|r| logits[r] - margin[r]);
        let upper: [f32; PANEL_ROWS] = std::array::from_fn(|r| logits[r] + margin[r]);
        if largest(&lower) > search.least() {
            lower.iter().for_each(|&value| search.offer(value, panel));
        }
        logits[0] = largest(&upper);
    }

    /// Of the rows of a panel; NaN beyond the matrix.
    fn radii(&self, panel: usize) -> &[f32; PANEL_ROWS] {
        &self.head.radii.as_chunks().0[panel]
    }
}

/// The largest that is not NaN, as the bounds of rows beyond the matrix are.
fn largest(values: &[f32; PANEL_ROWS]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most })
}

/// What both stages need.
pub(super) struct Stages<'a> {
    pub(super) coarse: Coarse<'a>,
    pub(super) kernels: &'static Kernels,
    pub(super) act: &'a [ActBuffer],
    pub(super) softcap: Option<f32>,
    /// Most panels that a thread takes at once.
    pub(super) longest: usize,
}

impl Stages<'_> {
    /// Computes logits: those of panels that may hold one of the largest with `fine`, -∞ for the others.
    /// Returns how many panels that were.
    pub(super) fn run(
        &self,
        pool: &mut Pool,
        workers: &mut [Worker],
        logits: &mut [f32],
        best: &mut Best,
        fine: impl Fn(&mut Scratch, Range<usize>, &mut [f32]) + Sync,
    ) -> u64 {
        let Self { coarse, kernels, act, softcap, longest } = self;
        workers.iter_mut().for_each(|w| w.search.begin(coarse.top));
        pool.for_each_run(workers, logits, PANEL_ROWS, *longest, |w, first, out| {
            let panels = first..first + out.len() / PANEL_ROWS;
            kernels.matmul(view(coarse.matrix()), panels.clone(), act, 1, &mut w.scratch, out);
            for (panel, logits) in panels.zip(out.as_chunks_mut().0) {
                coarse.bound(panel, logits, &mut w.search);
            }
        });

        let threshold = self.threshold(pool, workers, best, &fine);
        let best = &*best;
        let threshold = softcap.map_or(threshold, |cap| before_softcap(threshold, cap));

        pool.for_each_run(workers, logits, PANEL_ROWS, *longest, |w, first, out| {
            for (p, out) in out.chunks_exact_mut(PANEL_ROWS).enumerate() {
                if out[0] < threshold {
                    out.fill(f32::NEG_INFINITY);
                    continue;
                }
                let panel = first + p;
                if let Ok(at) = best.panels.binary_search(&panel) {
                    out.copy_from_slice(&best.logits[at * PANEL_ROWS..(at + 1) * PANEL_ROWS]);
                } else {
                    fine(&mut w.scratch, panel..panel + 1, out);
                    w.search.panels += 1;
                }
                if let Some(cap) = *softcap {
                    kernels.softcap(out, cap);
                }
            }
        });
        best.panels.len() as u64 + workers.iter().map(|w| w.search.panels).sum::<u64>()
    }

    /// A value that as many logits reach as are wanted, before they are capped: the least of the wanted ones
    /// in the panels of the largest lower bounds.
    fn threshold(
        &self,
        pool: &mut Pool,
        workers: &mut [Worker],
        best: &mut Best,
        fine: &(impl Fn(&mut Scratch, Range<usize>, &mut [f32]) + Sync),
    ) -> f32 {
        let (first, others) = workers.split_first_mut().expect("there is a thread");
        let found = others.iter().flat_map(|w| &w.search.largest);
        found.for_each(|&(value, panel)| first.search.offer(value, panel));
        let Best { panels, logits } = best;
        panels.clear();
        panels.extend(first.search.largest.iter().map(|&(_, panel)| panel));
        // A row that counted twice would raise the threshold too far.
        panels.sort_unstable();
        panels.dedup();
        let logits = &mut logits[..panels.len() * PANEL_ROWS];
        pool.for_each(workers, logits, PANEL_ROWS, |w, i, out| {
            fine(&mut w.scratch, panels[i]..panels[i] + 1, out);
        });
        let search = &mut workers[0].search;
        search.begin(self.coarse.top);
        for (&panel, logits) in panels.iter().zip(logits.chunks_exact(PANEL_ROWS)) {
            let rows = logits.iter().zip(self.coarse.radii(panel));
            let rows = rows.filter(|(_, radius)| !radius.is_nan());
            rows.for_each(|(&logit, _)| search.offer(logit, panel));
        }
        search.least()
    }
}

/// The least value whose capped logit may be no less than a capped `threshold`: capping keeps the order,
/// but computed logits may come out equal or, by their error, swapped.
fn before_softcap(threshold: f32, cap: f32) -> f32 {
    let cap = f64::from(cap);
    let reached = (f64::from(threshold) / cap).tanh() - 2.0 * SOFTCAP_ERROR;
    // The error of this in f64 is nothing beside that which it allows for.
    if reached > -1.0 { ((cap * reached.atanh()) as f32).next_down() } else { f32::NEG_INFINITY }
}

/// The panels of the largest lower bounds, in increasing order, and their logits before they are capped.
#[derive(Debug)]
pub(super) struct Best {
    panels: Vec<usize>,
    logits: Vec<f32>,
}

impl Best {
    pub(super) fn new() -> Self {
        let most = Engine::MAX_TOP;
        Self { panels: Vec::with_capacity(most), logits: vec![0.0; most * PANEL_ROWS] }
    }
}

/// What one thread found.
#[derive(Debug)]
pub(super) struct Search {
    /// The largest values, no more than `top`, in increasing order, and the panels they are from.
    largest: Vec<(f32, usize)>,
    top: usize,
    /// Panels that it computed in the second stage.
    panels: u64,
}

impl Search {
    pub(super) fn new() -> Self {
        Self { largest: Vec::with_capacity(Engine::MAX_TOP), top: 0, panels: 0 }
    }

    fn begin(&mut self, top: usize) {
        self.largest.clear();
        (self.top, self.panels) = (top, 0);
    }

    /// What a value must exceed to be among the largest.
    fn least(&self) -> f32 {
        if self.largest.len() < self.top { f32::NEG_INFINITY } else { self.largest[0].0 }
    }

    fn offer(&mut self, value: f32, panel: usize) {
        // False for NaN.
        if value > self.least() {
            if self.largest.len() == self.top {
                self.largest.remove(0);
            }
            let at = self.largest.partition_point(|&(other, _)| other < value);
            self.largest.insert(at, (value, panel));
        }
    }
}

#[cfg(test)]
mod tests;
