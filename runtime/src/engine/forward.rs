//! The one forward pass.
//!
//! A block is two or three stages with a barrier after each: attention is [norm, quantize, q/k/v, norm,
//! rotate, write cache] [attend] [quantize, output]; feed-forward is [norm, quantize, gate, up,
//! activate] [quantize, down]. A block's output stays in `delta` and is added by whoever reads the
//! residual stream next. For a single token the caller prepares the activations before it starts a stage:
//! that takes no longer than if every thread did, and what the others then fetch is a quarter of what
//! they would have to read for doing it. For a chunk the threads share that work, with one barrier more.

use gristmill_formats::codec::PANEL_ROWS;
use gristmill_formats::model::Activation;
use gristmill_formats::source::TensorData;
use gristmill_kernels::{
    ActBuffer, Kernels, KvHead, KvType, MAX_QUERY_ROWS, ScoreRule, Span, result_width,
};

use super::Engine;
use super::buffers::{ATTENTION_TOKENS, Rotation, Worker, padded, panels_per_run, token_slots};
use crate::model::{Attention, Linear, MixerWeights, Mlp, Norm, view};
use crate::pool::Pool;

/// The output of the block before, not yet part of the residual stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending<'a> {
    /// False before the first block.
    pub(super) active: bool,
    /// Norm of that output.
    pub(super) post_norm: Option<&'a Norm>,
    /// Width of the residual stream.
    pub(super) d_model: usize,
}

impl Pending<'_> {
    /// Adds the output for one of `tokens` tokens to its residual stream.
    pub(super) fn add(
        &self,
        kernels: &Kernels,
        delta: &[f32],
        tokens: usize,
        token: usize,
        x: &mut [f32],
        row: &mut [f32],
        row2: &mut [f32],
    ) {
        if !self.active {
            return;
        }
        let width = x.len();
        // What lies beyond these panels is left from other chunks.
        let delta = &delta[..self.d_model.next_multiple_of(PANEL_ROWS) * tokens];
        gather(delta, 0, tokens, token, &mut row[..width]);
        let added = match self.post_norm {
            Some(norm) => {
                row[norm.len..width].fill(0.0);
                kernels.rms_norm(row, &norm.gain, norm.eps, norm.len, row2);
                &row2[..width]
            }
            None => &row[..width],
        };
        x.iter_mut().zip(added).for_each(|(x, a)| *x += a);
    }
}

/// Copies a token's values, from row `from` on, out of `[panel][token][16]`. What lies beyond the last
/// panel is zero.
pub(super) fn gather(panels: &[f32], from: usize, tokens: usize, token: usize, to: &mut [f32]) {
    let stride = tokens * PANEL_ROWS;
    if let (1, Some(values)) = (tokens, panels.get(from..from + to.len())) {
        to.copy_from_slice(values);
    } else if from.is_multiple_of(PANEL_ROWS) {
        let mut at = from / PANEL_ROWS * stride + token * PANEL_ROWS;
        for to in to.chunks_mut(PANEL_ROWS) {
            match panels.get(at..at + to.len()) {
                Some(values) => to.copy_from_slice(values),
                None => to.fill(0.0),
            }
            at += stride;
        }
    } else {
        for (i, to) in to.iter_mut().enumerate() {
            let row = from + i;
            let at = row / PANEL_ROWS * stride + token * PANEL_ROWS + row % PANEL_ROWS;
            *to = panels.get(at).copied().unwrap_or(0.0);
        }
    }
}

/// Prepares a row for the matrices it will be multiplied with.
pub(super) fn prepare(
    kernels: &Kernels,
    matrices: &[&TensorData],
    row: &[f32],
    cols: usize,
    act: &mut ActBuffer,
    token: usize,
) {
    act.set_cols(cols);
    if matrices.iter().any(|m| m.codec.id().is_dense()) {
        kernels.interleave(row, act, token);
    }
    if matrices.iter().any(|m| !m.codec.id().is_dense()) {
        let fine = matrices.iter().any(|m| Kernels::takes_fine(m.codec.id()));
        kernels.quantize(row, act, token, fine);
    }
}

/// What a stage needs besides the buffers it writes.
struct Stage<'a> {
    kernels: &'static Kernels,
    tokens: usize,
    /// Position of the first token.
    position: usize,
    threads: usize,
    pending: Pending<'a>,
}

impl Engine {
    /// Processes tokens, at most a chunk, and advances the position. The last block's output is left in
    /// `delta`.
    pub(super) fn forward(&mut self, tokens: &[u32]) {
        self.embed(tokens);
        for rotation in &mut self.buffers.rotations {
            rotation.fill(self.position, tokens.len());
        }
        let model = std::sync::Arc::clone(&self.model);
        let d_model = model.spec().d_model as usize;
        let mut stage = Stage {
            kernels: self.kernels,
            tokens: tokens.len(),
            position: self.position,
            threads: self.pool.threads(),
            pending: Pending { active: false, post_norm: None, d_model },
        };
        let mut attention_index = 0;
        for (part, block) in model.layers.iter().flatten().enumerate() {
            model.stream.begin(part);
            match &block.mixer {
                MixerWeights::Attention(a) => {
                    self.attention(&stage, &block.pre_norm, a, attention_index);
                    attention_index += 1;
                }
                MixerWeights::Mlp(m) => self.mlp(&stage, &block.pre_norm, m),
            }
            stage.pending = Pending { active: true, post_norm: block.post_norm.as_ref(), d_model };
            model.stream.end(part);
        }
        self.position += tokens.len();
        self.written = self.written.max(self.position);
    }

    /// Embedding rows into the residual stream.
    fn embed(&mut self, tokens: &[u32]) {
        let Self { model, pool, workers, buffers, .. } = self;
        let (d, scale) = (model.spec().d_model as usize, model.spec().embedding_scale);
        let row = |token: u32, x: &mut [f32]| {
            model.embed.decode_row(token as usize, &mut x[..d]);
            if scale != 1.0 {
                x[..d].iter_mut().for_each(|x| *x *= scale);
            }
        };
        let x = &mut buffers.x[..tokens.len() * padded(d)];
        pool.for_each(workers, x, padded(d), |_, t, x| row(tokens[t], x));
    }

    /// Attention, from the residual stream to `delta`.
    fn attention(&mut self, stage: &Stage<'_>, norm: &Norm, a: &Attention, index: usize) {
        let Self { pool, workers, buffers, caches, .. } = self;
        let m = stage.tokens;
        let head_dim = a.spec.head_dim as usize;
        let head_padded = head_dim.next_multiple_of(16);
        let slots = token_slots(m);
        let kv = caches.kind(index);
        caches.begin_chunk(index, stage.position, m);
        let heads_of_block = &mut caches.blocks[index];
        let matrices = [&a.q.weight, &a.k.weight, &a.v.weight];

        let acts = buffers.acts.of_mut(m);
        stage.enter(pool, workers, &mut buffers.x, acts, &buffers.delta, norm, &matrices);
        let acts = &*acts;
        let rotation = a.spec.rope.as_ref().map(|rope| {
            let same = |r: &&Rotation| r.is_of(rope, a.spec.head_dim);
            buffers.rotations.iter().find(same).expect("every rotation was planned")
        });
        let heads = Heads { stage, a, rotation };
        let head_size = slots * head_padded;
        let queries = &mut buffers.queries[..a.spec.heads as usize * head_size];
        pool.for_each_either(
            workers,
            (&mut *heads_of_block, 1),
            (queries, head_size),
            |w, head, cache| heads.key_value(w, acts, head, &mut cache[0]),
            |w, head, queries| heads.query(w, acts, head, queries),
        );

        let results = heads.results();
        let output = &mut buffers.attention[..results.len()];
        heads.attend(pool, workers, heads_of_block, &buffers.queries, output, results);
        caches.end_chunk(index, stage.position, m);

        let width = a.spec.q_width() as usize;
        let attention = &*output;
        let row = |token: usize, row: &mut [f32]| {
            for head in 0..a.spec.heads as usize {
                let to = &mut row[head * head_dim..];
                results.read(stage.kernels, kv, attention, head, token, to);
            }
            row[width..padded(width)].fill(0.0);
        };
        let acts = buffers.acts.of_mut(m);
        stage.project(pool, workers, acts, &a.o, row, &mut buffers.delta);
    }

    /// Feed-forward, from the residual stream to `delta`.
    fn mlp(&mut self, stage: &Stage<'_>, norm: &Norm, mlp: &Mlp) {
        let Self { pool, workers, buffers, .. } = self;
        let kernels = stage.kernels;
        let m = stage.tokens;
        let d_ff = mlp.spec.d_ff as usize;
        let matrices = [&mlp.gate.weight, &mlp.up.weight];
        let acts = buffers.acts.of_mut(m);
        stage.enter(pool, workers, &mut buffers.x, acts, &buffers.delta, norm, &matrices);
        let acts = &*acts;
        let longest = panels_per_run(d_ff, stage.threads);
        let rows = d_ff.next_multiple_of(PANEL_ROWS);
        let mid = &mut buffers.mid[..rows * m];
        pool.for_each_run(workers, mid, PANEL_ROWS * m, longest, |w, first, gate| {
            let Worker { scratch, out: up, .. } = w;
            let panels = first..first + gate.len() / (PANEL_ROWS * m);
            let up = &mut up[..gate.len()];
            stage.multiply(&mlp.gate, panels.clone(), acts, scratch, gate);
            stage.multiply(&mlp.up, panels, acts, scratch, up);
            match mlp.spec.activation {
                Activation::Silu => kernels.silu_mul(gate, up),
                Activation::GeluTanh => kernels.gelu_tanh_mul(gate, up),
            }
        });
        let mid = &buffers.mid[..rows * m];
        let row = |token: usize, row: &mut [f32]| {
            gather(mid, 0, m, token, &mut row[..padded(d_ff)]);
        };
        let acts = buffers.acts.of_mut(m);
        stage.project(pool, workers, acts, &mlp.down, row, &mut buffers.delta);
    }
}

impl Stage<'_> {
    /// Start of a block: residual, norm, activations.
    fn enter(
        &self,
        pool: &mut Pool,
        workers: &mut [Worker],
        x: &mut [f32],
        acts: &mut [ActBuffer],
        delta: &[f32],
        norm: &Norm,
        matrices: &[&TensorData],
    ) {
        let (m, kernels) = (self.tokens, self.kernels);
        let (d, d_padded, width) = (norm.len, padded(norm.len), acts[0].width());
        let x = &mut x[..acts.len() * width * d_padded];
        pool.for_each_pair(workers, (x, width * d_padded), (acts, 1), |w, group, rows, act| {
            for (t, x) in rows.chunks_exact_mut(d_padded).enumerate() {
                let token = group * width + t;
                if token < m {
                    self.pending.add(kernels, delta, m, token, x, &mut w.row, &mut w.row2);
                    kernels.rms_norm(x, &norm.gain, norm.eps, norm.len, &mut w.row);
                } else {
                    // The last group is computed whole; its spare tokens are zero.
                    w.row.fill(0.0);
                }
                prepare(kernels, matrices, &w.row, d, &mut act[0], t);
            }
        });
    }

    /// Panels of `y = x Wᵀ + b` for all tokens.
    fn multiply(
        &self,
        linear: &Linear,
        panels: std::ops::Range<usize>,
        acts: &[ActBuffer],
        scratch: &mut gristmill_kernels::Scratch,
        out: &mut [f32],
    ) {
        let m = self.tokens;
        self.kernels.matmul(view(&linear.weight), panels.clone(), acts, m, scratch, out);
        if let Some(bias) = &linear.bias {
            for (p, out) in panels.zip(out.chunks_exact_mut(m * PANEL_ROWS)) {
                let bias = &bias[p * PANEL_ROWS..(p + 1) * PANEL_ROWS];
                for out in out.chunks_exact_mut(PANEL_ROWS) {
                    out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
                }
            }
        }
    }

    /// End of a block: `row(token)` through a matrix into `delta`.
    fn project(
        &self,
        pool: &mut Pool,
        workers: &mut [Worker],
        acts: &mut [ActBuffer],
        linear: &Linear,
        row: impl Fn(usize, &mut [f32]) + Sync,
        delta: &mut [f32],
    ) {
        let (m, kernels) = (self.tokens, self.kernels);
        let cols = linear.weight.cols();
        let matrices = [&linear.weight];
        pool.for_each(workers, acts, 1, |w, group, act| {
            let width = act[0].width();
            for t in 0..width {
                let token = group * width + t;
                if token < m {
                    row(token, &mut w.row);
                } else {
                    w.row.fill(0.0);
                }
                prepare(kernels, &matrices, &w.row, cols, &mut act[0], t);
            }
        });
        let acts = &*acts;
        let rows = linear.weight.rows();
        let longest = panels_per_run(rows, self.threads);
        let delta = &mut delta[..rows.next_multiple_of(PANEL_ROWS) * m];
        pool.for_each_run(workers, delta, PANEL_ROWS * m, longest, |w, first, out| {
            let panels = first..first + out.len() / (PANEL_ROWS * m);
            self.multiply(linear, panels, acts, &mut w.scratch, out);
        });
    }
}

/// The heads of one attention block.
struct Heads<'a> {
    stage: &'a Stage<'a>,
    a: &'a Attention,
    rotation: Option<&'a Rotation>,
}

impl Heads<'_> {
    /// One head's rows of a projection, for all tokens, into `out`; returns where the head starts.
    fn project<'b>(
        &self,
        linear: &Linear,
        head: usize,
        acts: &[ActBuffer],
        scratch: &mut gristmill_kernels::Scratch,
        out: &'b mut [f32],
    ) -> (&'b [f32], usize) {
        let head_dim = self.a.spec.head_dim as usize;
        let rows = head * head_dim..(head + 1) * head_dim;
        let panels = rows.start / PANEL_ROWS..rows.end.div_ceil(PANEL_ROWS);
        let from = rows.start - panels.start * PANEL_ROWS;
        let out = &mut out[..panels.len() * PANEL_ROWS * self.stage.tokens];
        self.stage.multiply(linear, panels, acts, scratch, out);
        (out, from)
    }

    /// Norm and rotation of a query or key head of one token; the result is in `head`.
    fn turn(&self, norm: Option<&Norm>, token: usize, head: &mut [f32], normed: &mut [f32]) {
        let head_dim = self.a.spec.head_dim as usize;
        if let Some(norm) = norm {
            self.stage.kernels.rms_norm(head, &norm.gain, norm.eps, norm.len, normed);
            head[..head_dim].copy_from_slice(&normed[..head_dim]);
        }
        if let Some(rotation) = self.rotation {
            let half = head_dim / 2;
            let turns = &rotation.turns[token * half..(token + 1) * half];
            let (low, high) = head[..head_dim].split_at_mut(half);
            for ((x, y), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
            }
        }
    }

    /// Keys and values of one head for all tokens, into the cache.
    fn key_value(&self, w: &mut Worker, acts: &[ActBuffer], head: usize, cache: &mut KvHead) {
        let m = self.stage.tokens;
        let head_dim = self.a.spec.head_dim as usize;
        let Worker { scratch, out, out2, head: [key, value, normed], .. } = w;
        let (keys, from) = self.project(&self.a.k, head, acts, scratch, out);
        let (values, _) = self.project(&self.a.v, head, acts, scratch, out2);
        let norm = self.a.qk_norm.as_ref().map(|(_, k)| k);
        for token in 0..m {
            gather(keys, from, m, token, &mut key[..head_dim]);
            gather(values, from, m, token, &mut value[..head_dim]);
            key[head_dim..].fill(0.0);
            value[head_dim..].fill(0.0);
            self.turn(norm, token, key, normed);
            self.stage.kernels.write_kv(cache, self.stage.position + token, key, value);
        }
    }

    /// One query head for all tokens, `[token][head_dim padded]`.
    fn query(&self, w: &mut Worker, acts: &[ActBuffer], head: usize, queries: &mut [f32]) {
        let m = self.stage.tokens;
        let head_dim = self.a.spec.head_dim as usize;
        let head_padded = head_dim.next_multiple_of(16);
        let Worker { scratch, out, head: [query, _, normed], .. } = w;
        let (rows, from) = self.project(&self.a.q, head, acts, scratch, out);
        let norm = self.a.qk_norm.as_ref().map(|(q, _)| q);
        for (token, to) in queries.chunks_exact_mut(head_padded).take(m).enumerate() {
            gather(rows, from, m, token, &mut query[..head_dim]);
            query[head_dim..].fill(0.0);
            self.turn(norm, token, query, normed);
            to.copy_from_slice(&query[..head_padded]);
        }
    }

    /// The positions that a token sees.
    fn span(&self, token: usize) -> Span {
        let position = self.stage.position + token;
        let window = self.a.spec.window.map_or(usize::MAX, |w| w as usize);
        Span { first: (position + 1).saturating_sub(window), position }
    }

    fn results(&self) -> Results {
        let spec = &self.a.spec;
        let head_dim = spec.head_dim as usize;
        let (parts, tokens) = match self.stage.tokens {
            1 => (self.span(0).parts().len(), 1),
            tokens => (1, token_slots(tokens)),
        };
        let group = (spec.heads / spec.kv_heads) as usize;
        Results { kv_heads: spec.kv_heads as usize, parts, tokens, group, head_dim }
    }

    /// Attention of all heads. A single token's unit is a part of the positions with all queries of a
    /// key/value head, or with one of them when there are fewer such units than threads; its parts are
    /// folded by whoever reads the results. A chunk's unit is 16 tokens with all queries of a key/value
    /// head, and all their positions.
    fn attend(
        &self,
        pool: &mut Pool,
        workers: &mut [Worker],
        caches: &[KvHead],
        queries: &[f32],
        output: &mut [f32],
        results: Results,
    ) {
        let Results { kv_heads, parts, tokens: slots, group, head_dim } = results;
        let (m, kernels) = (self.stage.tokens, self.stage.kernels);
        let (padded, width) = (head_dim.next_multiple_of(16), result_width(head_dim));
        let rule = ScoreRule { scale: self.a.spec.scale, softcap: self.a.spec.softcap };
        let rows_per_unit = match m {
            1 if kv_heads * parts >= self.stage.threads => group,
            1 => 1,
            _ => ATTENTION_TOKENS * group,
        };
        pool.for_each(workers, output, rows_per_unit * width, |w, unit, out| {
            let place = |row: usize| results.place(unit * rows_per_unit + row);
            let first = place(0);
            let rows = rows_per_unit.min((m - first.token.min(m)) * group);
            let out = &mut out[..rows * width];
            for (tile, out) in out.chunks_mut(MAX_QUERY_ROWS * width).enumerate() {
                let count = out.len() / width;
                let mut spans = [Span::default(); MAX_QUERY_ROWS];
                let mut rows = [&queries[..0]; MAX_QUERY_ROWS];
                for (r, (span, q)) in spans.iter_mut().zip(&mut rows).take(count).enumerate() {
                    let at = place(tile * MAX_QUERY_ROWS + r);
                    *span = self.span(at.token);
                    *q = &queries[(at.head * slots + at.token) * padded..][..padded];
                }
                let (spans, rows) = (&spans[..count], &rows[..count]);
                // Spans of consecutive tokens: the first begins first, the last ends last.
                let mut all = spans[0].parts().start..spans[count - 1].parts().end;
                if m == 1 {
                    all = all.start + first.part..all.start + first.part + 1;
                }
                let cache = &caches[first.head / group];
                kernels.attend(cache, rows, spans, rule, all, &mut w.attention, out);
                if m > 1 {
                    let rows = out.chunks_exact_mut(width);
                    rows.for_each(|row| kernels.finish_attention(cache.kind(), head_dim, row));
                }
            }
        });
    }
}

/// Results of attention: `[kv head][part][token][query head of the group]` rows, of which either parts
/// or tokens are one.
#[derive(Debug, Clone, Copy)]
struct Results {
    kv_heads: usize,
    /// Parts of a single token's span; a chunk's are folded.
    parts: usize,
    /// Tokens with spare ones.
    tokens: usize,
    /// Query heads of a key/value head.
    group: usize,
    head_dim: usize,
}

/// Whose result a row is.
struct Place {
    head: usize,
    part: usize,
    token: usize,
}

impl Results {
    /// Values of all rows.
    fn len(&self) -> usize {
        self.kv_heads * self.parts * self.tokens * self.group * result_width(self.head_dim)
    }

    fn place(&self, row: usize) -> Place {
        let outer = row / self.group;
        let (kv_head, inner) =
            (outer / (self.parts * self.tokens), outer % (self.parts * self.tokens));
        Place {
            head: kv_head * self.group + row % self.group,
            part: inner / self.tokens,
            token: inner % self.tokens,
        }
    }

    /// Copies a head's result of a token to the beginning of `to`. What lies behind it is overwritten.
    fn read(
        &self,
        kernels: &Kernels,
        kv: KvType,
        results: &[f32],
        head: usize,
        token: usize,
        to: &mut [f32],
    ) {
        let width = result_width(self.head_dim);
        let row = |part: usize| {
            let outer = (head / self.group * self.parts + part) * self.tokens + token;
            &results[(outer * self.group + head % self.group) * width..][..width]
        };
        if self.tokens > 1 {
            to[..self.head_dim].copy_from_slice(&row(0)[..self.head_dim]);
            return;
        }
        let to = &mut to[..width];
        to.copy_from_slice(row(0));
        (1..self.parts).for_each(|part| kernels.fold_attention(self.head_dim, to, row(part)));
        kernels.finish_attention(kv, self.head_dim, to);
    }
}
