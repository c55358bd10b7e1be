//! All memory of an engine, allocated once.

use std::collections::BTreeMap;

use gristmill_formats::codec::{PANEL_ROWS, panel_count};
use gristmill_formats::model::{Mixer, ModelSpec, RopeSpec};
use gristmill_kernels::{
    ActBuffer, AttentionScratch, GROUP, KvHead, KvType, PART, Scratch, result_width,
};

use super::MemoryPlan;
use super::two_stage::{Best, Search};
use crate::model::{MixerWeights, Model};
use crate::pool::GRAIN;

/// Tokens whose attention is one unit of work in a prompt.
pub(super) const ATTENTION_TOKENS: usize = 16;
/// Rows of logits computed together when every position is scored.
pub(super) const HEAD_TOKENS: usize = 32;
/// Runs of panels per thread and stage, but for the shorter ones at its end: enough that a slow core's
/// share can be taken over.
const RUNS_PER_THREAD: usize = 3;

/// Rounds a width up to what vector loops need.
pub(super) fn padded(width: usize) -> usize {
    width.next_multiple_of(32)
}

/// Most panels that a thread takes at once.
pub(super) fn panels_per_run(rows: usize, threads: usize) -> usize {
    match threads {
        1 => panel_count(rows),
        _ => panel_count(rows).div_ceil(threads * RUNS_PER_THREAD).next_multiple_of(GRAIN as usize),
    }
}

/// The widest of each kind of buffer over all layers.
#[derive(Debug, Clone, Copy, Default)]
struct Widths {
    /// Inputs of matrices.
    cols: usize,
    /// All query heads together, each padded to 16.
    queries: usize,
    /// All heads' outputs.
    attention: usize,
    /// All heads' rows of results.
    results: usize,
    head_dim: usize,
    d_ff: usize,
    /// Rows of one run of the feed-forward, or of one head.
    unit_rows: usize,
}

fn widths(spec: &ModelSpec, threads: usize) -> Widths {
    let mut w = Widths { cols: spec.d_model as usize, ..Widths::default() };
    for block in spec.layers.iter().flat_map(|l| &l.blocks) {
        match &block.mixer {
            Mixer::Attention(a) => {
                let head_dim = a.head_dim as usize;
                w.head_dim = w.head_dim.max(head_dim);
                w.queries = w.queries.max(a.heads as usize * head_dim.next_multiple_of(16));
                w.attention = w.attention.max(a.q_width() as usize);
                w.results = w.results.max(a.heads as usize * result_width(head_dim));
                // A head may start inside a panel.
                w.unit_rows = w.unit_rows.max(head_dim.next_multiple_of(PANEL_ROWS) + PANEL_ROWS);
            }
            Mixer::Mlp(m) => {
                let d_ff = m.d_ff as usize;
                w.d_ff = w.d_ff.max(d_ff);
                w.unit_rows = w.unit_rows.max(panels_per_run(d_ff, threads) * PANEL_ROWS);
            }
        }
    }
    w.cols = w.cols.max(w.attention).max(w.d_ff);
    w
}

/// One thread's own memory.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) scratch: Scratch,
    /// A row on its way into an [`ActBuffer`], with room for the state of the last head's attention.
    pub(super) row: Vec<f32>,
    /// Another, for norms of a block's output.
    pub(super) row2: Vec<f32>,
    /// Output of a matrix product that is not a unit's final result.
    pub(super) out: Vec<f32>,
    pub(super) out2: Vec<f32>,
    /// A key or query head, a value head, and a head after its norm.
    pub(super) head: [Vec<f32>; 3],
    pub(super) attention: AttentionScratch,
    /// What this thread found in the coarse head.
    pub(super) search: Search,
}

impl Worker {
    pub(super) fn new(model: &Model, chunk: usize, threads: usize) -> Self {
        let w = widths(model.spec(), threads);
        let floats = |n: usize| vec![0.0f32; n];
        Self {
            scratch: Scratch::new(w.cols),
            row: floats(row_len(w)),
            row2: floats(padded(w.cols)),
            out: floats(w.unit_rows * chunk),
            out2: floats(w.unit_rows * chunk),
            head: [padded(w.head_dim); 3].map(floats),
            attention: AttentionScratch::new(w.head_dim),
            search: Search::new(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let floats = self.row.len()
            + self.row2.len()
            + self.out.len()
            + self.out2.len()
            + self.head.iter().map(Vec::len).sum::<usize>();
        let buffers = self.scratch.bytes() + self.attention.bytes();
        4 * floats as u64 + buffers
    }
}

/// Length of [`Worker::row`].
fn row_len(w: Widths) -> usize {
    padded(w.cols).max(padded(w.attention) + result_width(w.head_dim))
}

/// Rows of results per head: of a chunk's tokens, or of a single token's parts.
fn result_rows(context: usize, chunk: usize) -> usize {
    // A window may begin and end inside a part.
    token_slots(chunk).max(context.div_ceil(PART) + 1)
}

/// Memory that the threads share.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Residual stream of a chunk: `[token][d_model padded]`.
    pub(super) x: Vec<f32>,
    /// Prepared activations.
    pub(super) acts: Activations,
    /// Queries, `[head][token padded][head_dim padded]`.
    pub(super) queries: Vec<f32>,
    /// Results of attention, of a chunk's tokens or a single token's parts.
    pub(super) attention: Vec<f32>,
    /// Inner activations of the feed-forward: `[panel][token][16]`.
    pub(super) mid: Vec<f32>,
    /// Output of a block: `[panel][token][16]`.
    pub(super) delta: Vec<f32>,
    /// `[panel][row][16]`.
    pub(super) logits: Vec<f32>,
    /// One row of logits of several.
    pub(super) logits_row: Vec<f32>,
    /// What the coarse head found likeliest.
    pub(super) best: Best,
    /// Distinct rotations, and the cosines and sines of the chunk's positions for each.
    pub(super) rotations: Vec<Rotation>,
}

/// Prepared activations of a single token, or of a chunk in groups of four tokens.
#[derive(Debug)]
pub(super) struct Activations {
    single: [ActBuffer; 1],
    groups: Vec<ActBuffer>,
}

impl Activations {
    fn new(chunk: usize, cols: usize) -> Self {
        let groups = if chunk == 1 { 0 } else { chunk.div_ceil(GROUP) };
        Self {
            single: [ActBuffer::new(1, cols)],
            groups: (0..groups).map(|_| ActBuffer::new(GROUP, cols)).collect(),
        }
    }

    /// Those of a chunk of `tokens`.
    pub(super) fn of(&self, tokens: usize) -> &[ActBuffer] {
        if tokens == 1 { &self.single } else { &self.groups[..tokens.div_ceil(GROUP)] }
    }

    /// See [`Self::of`].
    pub(super) fn of_mut(&mut self, tokens: usize) -> &mut [ActBuffer] {
        if tokens == 1 { &mut self.single } else { &mut self.groups[..tokens.div_ceil(GROUP)] }
    }

    fn bytes(&self) -> u64 {
        self.single.iter().chain(&self.groups).map(ActBuffer::bytes).sum()
    }

    fn bytes_for(chunk: usize, cols: usize) -> u64 {
        let groups = if chunk == 1 { 0 } else { chunk.div_ceil(GROUP) };
        ActBuffer::bytes_for(1, cols) + groups as u64 * ActBuffer::bytes_for(GROUP, cols)
    }
}

/// One kind of rotary embedding in the model.
#[derive(Debug)]
pub(super) struct Rotation {
    spec: RopeSpec,
    head_dim: u32,
    /// Angle per position of each pair, rounded to f32 as the reference implementation does.
    frequencies: Vec<f32>,
    /// `[token][head_dim / 2]` pairs of cosine and sine.
    pub(super) turns: Vec<(f32, f32)>,
}

impl Rotation {
    /// Whether a layer with this embedding and head width uses the rotation.
    pub(super) fn is_of(&self, rope: &RopeSpec, head_dim: u32) -> bool {
        self.spec == *rope && self.head_dim == head_dim
    }

    /// Computes cosines and sines for `tokens` positions from `position` on.
    pub(super) fn fill(&mut self, position: usize, tokens: usize) {
        let half = self.frequencies.len();
        for t in 0..tokens {
            let turns = &mut self.turns[t * half..(t + 1) * half];
            for (turn, &frequency) in turns.iter_mut().zip(&self.frequencies) {
                let angle = f64::from((position + t) as f32 * frequency);
                *turn = (angle.cos() as f32, angle.sin() as f32);
            }
        }
    }
}

impl Buffers {
    pub(super) fn new(model: &Model, context: usize, chunk: usize) -> Self {
        let spec = model.spec();
        let w = widths(spec, 1);
        let floats = |n: usize| vec![0.0f32; n];
        let d = spec.d_model as usize;
        let slots = token_slots(chunk);
        let vocab = panel_count(spec.vocab_size as usize) * PANEL_ROWS;
        Self {
            x: floats(padded(d) * chunk.next_multiple_of(GROUP)),
            acts: Activations::new(chunk, w.cols),
            queries: floats(w.queries * slots),
            attention: floats(w.results * result_rows(context, chunk)),
            mid: floats(panel_count(w.d_ff) * PANEL_ROWS * chunk),
            delta: floats(panel_count(d) * PANEL_ROWS * chunk),
            logits: floats(vocab * HEAD_TOKENS.min(chunk)),
            logits_row: floats(vocab),
            best: Best::new(),
            rotations: rotations(spec, chunk),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let floats = self.x.len()
            + self.queries.len()
            + self.attention.len()
            + self.mid.len()
            + self.delta.len()
            + self.logits.len()
            + self.logits_row.len();
        let turns = self.rotations.iter().map(|r| r.turns.len() * 8).sum::<usize>();
        4 * floats as u64 + turns as u64 + self.acts.bytes()
    }
}

/// Tokens of a chunk rounded up to whole attention units; a single token stands alone.
pub(super) fn token_slots(tokens: usize) -> usize {
    if tokens == 1 { 1 } else { tokens.next_multiple_of(ATTENTION_TOKENS) }
}

fn rotations(spec: &ModelSpec, chunk: usize) -> Vec<Rotation> {
    let mut list: Vec<Rotation> = Vec::new();
    for block in spec.layers.iter().flat_map(|l| &l.blocks) {
        let Mixer::Attention(a) = &block.mixer else { continue };
        let Some(rope) = &a.rope else { continue };
        if list.iter().any(|r| r.is_of(rope, a.head_dim)) {
            continue;
        }
        let frequencies: Vec<f32> =
            rope.frequencies(a.head_dim).into_iter().map(|f| f as f32).collect();
        let turns = vec![(0.0, 0.0); frequencies.len() * chunk];
        list.push(Rotation { spec: rope.clone(), head_dim: a.head_dim, frequencies, turns });
    }
    list
}

/// Keys and values: per attention block, in the order of the layers, one cache per head.
#[derive(Debug)]
pub(super) struct Caches {
    pub(super) blocks: Vec<Vec<KvHead>>,
    /// Window of each block, `usize::MAX` where there is none.
    windows: Vec<usize>,
    /// Exact windows for chunks, of which blocks of heads of one width take turns: what a chunk's queries
    /// see exactly is more than what a block has to keep.
    recents: Vec<Vec<KvHead>>,
}

impl Caches {
    pub(super) fn new(model: &Model, context: usize, chunk: usize, kind: KvType) -> Self {
        let mut caches = Self { blocks: Vec::new(), windows: Vec::new(), recents: Vec::new() };
        for block in model.layers.iter().flatten() {
            let MixerWeights::Attention(a) = &block.mixer else { continue };
            let positions = cache_positions(a.spec.window, context, chunk);
            let kind = layer_type(kind, a.spec.window);
            let (heads, head_dim) = (a.spec.kv_heads as usize, a.spec.head_dim as usize);
            if kind == KvType::Int4 && chunk > 1 {
                caches.plan_recents(heads, head_dim, chunk);
            }
            let heads = (0..heads).map(|_| KvHead::new(kind, head_dim, positions)).collect();
            caches.blocks.push(heads);
            caches.windows.push(a.spec.window.map_or(usize::MAX, |w| w as usize));
        }
        caches
    }

    fn plan_recents(&mut self, heads: usize, head_dim: usize, chunk: usize) {
        let same = |recents: &&mut Vec<KvHead>| recents[0].head_dim() == head_dim;
        let recents = match self.recents.iter_mut().find(same) {
            Some(recents) => recents,
            None => self.recents.push_mut(Vec::new()),
        };
        while recents.len() < heads {
            recents.push(KvHead::recent_for(head_dim, chunk));
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let heads = self.blocks.iter().chain(&self.recents).flatten();
        heads.map(|head| head.bytes() as u64).sum()
    }

    /// Element type of a block.
    pub(super) fn kind(&self, block: usize) -> KvType {
        self.blocks[block][0].kind()
    }

    /// Lends a block exact windows that hold a chunk, before its `tokens` keys and values are stored.
    pub(super) fn begin_chunk(&mut self, block: usize, position: usize, tokens: usize) {
        self.exchange_recents(block, position, tokens, position);
    }

    /// Takes them back and keeps the end of the chunk.
    pub(super) fn end_chunk(&mut self, block: usize, position: usize, tokens: usize) {
        self.exchange_recents(block, position, tokens, position + tokens);
    }

    /// Both ways: the windows that take over get what there is before `end`.
    fn exchange_recents(&mut self, block: usize, position: usize, tokens: usize, end: usize) {
        let from = position.saturating_sub(KvHead::RECENT);
        let heads = &mut self.blocks[block];
        if tokens == 1 || heads[0].kind() != KvType::Int4 {
            return;
        }
        let same = |recents: &&mut Vec<KvHead>| recents[0].head_dim() == heads[0].head_dim();
        let recents = self.recents.iter_mut().find(same).expect("windows for chunks were planned");
        for (head, recent) in heads.iter_mut().zip(recents) {
            head.exchange_recent(recent, from, end);
        }
    }

    /// Whether continuing from `position` would need keys that the ring has overwritten.
    pub(super) fn oldest_needed_is_lost(&self, position: usize, written: usize) -> bool {
        self.blocks.iter().zip(&self.windows).any(|(heads, &window)| {
            let oldest_needed = (position + 1).saturating_sub(window);
            let capacity = heads.first().map_or(usize::MAX, KvHead::capacity);
            let recent_lost = heads.iter().any(|head| head.is_recent_lost(position, written));
            written.saturating_sub(capacity) > oldest_needed || recent_lost
        })
    }
}

/// Element type of a layer's cache.
fn layer_type(kind: KvType, window: Option<u32>) -> KvType {
    if window.is_some() { kind.of_sliding_window() } else { kind }
}

/// Positions a layer keeps: all, or its window and the chunk that is being computed.
fn cache_positions(window: Option<u32>, context: usize, chunk: usize) -> usize {
    match window {
        // One block more, because spans start and end within blocks of 16.
        Some(window) => context.min((window as usize).saturating_add(chunk + 16)),
        None => context,
    }
}

/// What [`Worker::new`], [`Buffers::new`] and [`Caches::new`] will allocate, before they do.
pub(super) fn plan(
    spec: &ModelSpec,
    context: usize,
    chunk: usize,
    threads: usize,
    kind: KvType,
) -> MemoryPlan {
    let workers = threads as u64 * worker_bytes(spec, chunk, threads);
    let buffer_bytes = workers + shared_bytes(spec, context, chunk);
    MemoryPlan { kv_bytes: cache_bytes(spec, context, chunk, kind), buffer_bytes }
}

fn worker_bytes(spec: &ModelSpec, chunk: usize, threads: usize) -> u64 {
    let w = widths(spec, threads);
    let floats = row_len(w) + padded(w.cols) + 2 * w.unit_rows * chunk + 3 * padded(w.head_dim);
    4 * floats as u64 + Scratch::bytes_for(w.cols) + AttentionScratch::bytes_for(w.head_dim) as u64
}

fn shared_bytes(spec: &ModelSpec, context: usize, chunk: usize) -> u64 {
    let w = widths(spec, 1);
    let d = spec.d_model as usize;
    let vocab = panel_count(spec.vocab_size as usize) * PANEL_ROWS;
    let floats = padded(d) * chunk.next_multiple_of(GROUP)
        + w.queries * token_slots(chunk)
        + w.results * result_rows(context, chunk)
        + (panel_count(w.d_ff) + panel_count(d)) * PANEL_ROWS * chunk
        + vocab * (HEAD_TOKENS.min(chunk) + 1);
    let turns: usize = rotations(spec, 1).iter().map(|r| 8 * r.turns.len() * chunk).sum();
    4 * floats as u64 + turns as u64 + Activations::bytes_for(chunk, w.cols)
}

fn cache_bytes(spec: &ModelSpec, context: usize, chunk: usize, kind: KvType) -> u64 {
    let (mut bytes, mut recents) = (0, BTreeMap::<usize, usize>::new());
    for block in spec.layers.iter().flat_map(|l| &l.blocks) {
        let Mixer::Attention(a) = &block.mixer else { continue };
        let (heads, head_dim) = (a.kv_heads as usize, a.head_dim as usize);
        let kind = layer_type(kind, a.window);
        if kind == KvType::Int4 && chunk > 1 {
            let lent = recents.entry(head_dim).or_default();
            *lent = heads.max(*lent);
        }
        let positions = cache_positions(a.window, context, chunk);
        bytes += heads * KvHead::bytes_for(kind, head_dim, positions);
    }
    let recent = |dim| KvHead::bytes_for(KvType::F16, dim, chunk + KvHead::RECENT);
    let recents: usize = recents.into_iter().map(|(dim, heads)| heads * recent(dim)).sum();
    (bytes + recents) as u64
}
