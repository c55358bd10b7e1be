//! From the residual stream to logits.

use std::ops::Range;

use gristmill_formats::codec::PANEL_ROWS;
use gristmill_kernels::{GROUP, Scratch};

use super::Engine;
use super::buffers::{HEAD_TOKENS, Worker, padded, panels_per_run};
use super::forward::{Pending, prepare};
use super::two_stage::{Coarse, Stages};
use crate::model::view;

impl Engine {
    /// Logits after the last of the `tokens` that [`Engine::forward`] has just processed: the `top` largest,
    /// or all.
    pub(super) fn last_logits(&mut self, tokens: usize, top: usize) -> &mut [f32] {
        let part = self.model.layers.iter().map(Vec::len).sum();
        self.model.stream.begin(part);
        let Self { model, kernels, pool, workers, buffers, head_use, .. } = self;
        let (kernels, vocab) = (*kernels, model.head.rows());
        let pending = model.last_block();
        let d = model.spec().d_model as usize;
        let last = tokens - 1;
        let longest = panels_per_run(vocab, pool.threads());
        let rows = buffers.logits.len().min(vocab.next_multiple_of(PANEL_ROWS));
        let x = &mut buffers.x[last * padded(d)..(last + 1) * padded(d)];
        let act = buffers.acts.of_mut(1);
        let Worker { row, row2, .. } = &mut workers[0];
        pending.add(kernels, &buffers.delta, tokens, last, x, row, row2);
        let norm = &model.final_norm;
        kernels.rms_norm(x, &norm.gain, norm.eps, norm.len, row);
        let coarse = model.coarse.as_ref().and_then(|coarse| Coarse::of(coarse, &row[..d], top));
        let matrices = [&model.head, coarse.as_ref().map_or(&model.head, Coarse::matrix)];
        prepare(kernels, &matrices, row, d, &mut act[0], 0);
        let act = &*act;
        let softcap = model.spec().logit_softcap;
        let fine = |scratch: &mut Scratch, panels: Range<usize>, out: &mut [f32]| {
            kernels.matmul(view(&model.head), panels, act, 1, scratch, out);
        };
        let logits = &mut buffers.logits[..rows];
        match coarse {
            Some(coarse) => {
                let stages = Stages { coarse, kernels, act, softcap, longest };
                head_use.panels += stages.run(pool, workers, logits, &mut buffers.best, fine);
                head_use.tokens += 1;
            }
            None => pool.for_each_run(workers, logits, PANEL_ROWS, longest, |w, first, out| {
                fine(&mut w.scratch, first..first + out.len() / PANEL_ROWS, out);
                if let Some(cap) = softcap {
                    kernels.softcap(out, cap);
                }
            }),
        }
        self.model.stream.end(part);
        &mut self.buffers.logits[..vocab]
    }

    /// Logits after each of the tokens from `from` on that [`Engine::forward`] has just processed.
    pub(super) fn all_logits(
        &mut self,
        tokens: usize,
        from: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) {
        if tokens == 1 {
            if from == 0 {
                each(0, self.last_logits(1, usize::MAX));
            }
            return;
        }
        let vocab = self.model.head.rows();
        // Groups of four tokens are prepared whole, so a tile starts with one.
        let mut first = from / GROUP * GROUP;
        while first < tokens {
            let count = HEAD_TOKENS.min(tokens - first);
            self.head_tile(tokens, first, count);
            let Buffered { logits, row } = Buffered::of(&mut self.buffers);
            for t in 0..count {
                for (to, panel) in row
                    .chunks_exact_mut(PANEL_ROWS)
                    .zip(logits[t * PANEL_ROWS..].chunks(count * PANEL_ROWS))
                {
                    to.copy_from_slice(&panel[..PANEL_ROWS]);
                }
                if first + t >= from {
                    each(first + t, &row[..vocab]);
                }
            }
            first += count;
        }
    }

    /// Logits of `count` tokens from `first` on, into `buffers.logits` as `[panel][token][16]`.
    fn head_tile(&mut self, tokens: usize, first: usize, count: usize) {
        let Self { model, kernels, pool, workers, buffers, .. } = self;
        let (kernels, vocab) = (*kernels, model.head.rows());
        let d = model.spec().d_model as usize;
        let d_padded = d.next_multiple_of(32);
        let pending = model.last_block();
        let groups = first / GROUP..(first + count).div_ceil(GROUP);
        let x = &mut buffers.x[groups.start * GROUP * d_padded..groups.end * GROUP * d_padded];
        let delta = &buffers.delta;
        pool.for_each_pair(
            workers,
            (x, GROUP * d_padded),
            (&mut buffers.acts.of_mut(tokens)[groups.clone()], 1),
            |w, i, rows, act| {
                for (t, x) in rows.chunks_exact_mut(d_padded).enumerate() {
                    let token = (groups.start + i) * GROUP + t;
                    if token < tokens {
                        pending.add(kernels, delta, tokens, token, x, &mut w.row, &mut w.row2);
                        let norm = &model.final_norm;
                        kernels.rms_norm(x, &norm.gain, norm.eps, norm.len, &mut w.row);
                    } else {
                        w.row.fill(0.0);
                    }
                    prepare(kernels, &[&model.head], &w.row, d, &mut act[0], t);
                }
            },
        );
        let longest = panels_per_run(vocab, pool.threads());
        let size = vocab.next_multiple_of(PANEL_ROWS) * count;
        let acts = &buffers.acts.of(tokens)[groups.clone()];
        pool.for_each_run(
            workers,
            &mut buffers.logits[..size],
            count * PANEL_ROWS,
            longest,
            |w, first, out| {
                let panels = first..first + out.len() / (count * PANEL_ROWS);
                kernels.matmul(view(&model.head), panels, acts, count, &mut w.scratch, out);
                if let Some(cap) = model.spec().logit_softcap {
                    kernels.softcap(out, cap);
                }
            },
        );
    }
}

/// Two buffers at once.
struct Buffered<'a> {
    logits: &'a [f32],
    row: &'a mut [f32],
}

impl<'a> Buffered<'a> {
    fn of(buffers: &'a mut super::Buffers) -> Self {
        Self { logits: &buffers.logits, row: &mut buffers.logits_row }
    }
}

impl crate::model::Model {
    /// What the last block of the model leaves to be added to the residual stream.
    pub(super) fn last_block(&self) -> Pending<'_> {
        let last = self.layers.iter().flatten().next_back();
        Pending {
            active: last.is_some(),
            post_norm: last.and_then(|b| b.post_norm.as_ref()),
            d_model: self.spec().d_model as usize,
        }
    }
}
