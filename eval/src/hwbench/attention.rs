//! Attention over key/value heads that fill half of the large buffer.

use gristmill_kernels::{
    AttentionScratch, Isa, Kernels, KvHead, KvType, MAX_QUERY_ROWS, ScoreRule, Span, result_width,
};
use gristmill_runtime::Pool;

use super::case::{Case, Family, Origin, Subject};
use super::workload::{Sizes, Workload, piece_bytes};
use crate::stats::SplitMix64;

const HEAD_DIM: usize = 64;
const RULE: ScoreRule = ScoreRule { scale: 0.125, softcap: None };
/// Query heads of a key/value head.
const GROUP: usize = 4;

/// Heads of one type.
pub(super) struct Attention {
    kind: KvType,
    depths: &'static [usize],
    /// Positions of a head: the largest depth.
    capacity: usize,
    heads: Vec<KvHead>,
    /// What the read bandwidth is measured on: a head's own memory cannot be seen.
    memory: Vec<u8>,
    /// First stretch of a head that was not read last, counted over all heads.
    cursor: usize,
    queries: Vec<f32>,
    workers: Vec<AttentionScratch>,
    out: Vec<f32>,
}

impl Attention {
    pub(super) fn new(kind: KvType, sizes: &Sizes) -> Self {
        let capacity = sizes.depths.last().copied().unwrap_or(16);
        let half = sizes.memory_bytes / 2;
        // Any stretch may be read, so every position counts as recent.
        let head = || KvHead::with_recent(kind, HEAD_DIM, capacity, capacity);
        let bytes = KvHead::bytes_for(kind, HEAD_DIM, capacity);
        let count = (half / bytes).max(sizes.most_threads);
        let mut random = SplitMix64::new(2);
        let values: Vec<f32> = (0..64 * HEAD_DIM).map(|_| random.symmetric()).collect();
        let row = |i: usize| &values[i % 64 * HEAD_DIM..][..HEAD_DIM];
        let kernels = Kernels::for_isa(Isa::detect()).expect("the class was detected");
        let mut heads: Vec<KvHead> = (0..count).map(|_| head()).collect();
        for head in &mut heads {
            // Unwritten pages would all be the same page.
            for position in 0..capacity {
                let mut key = row(position).to_vec();
                let mut value = row(7 * position + 3).to_vec();
                kernels.write_kv(head, position, &mut key, &mut value);
            }
        }
        Self {
            kind,
            depths: sizes.depths,
            capacity,
            heads,
            memory: vec![1; half.max(1)],
            cursor: 0,
            queries: values[..MAX_QUERY_ROWS * HEAD_DIM].to_vec(),
            workers: (0..sizes.most_threads).map(|_| AttentionScratch::new(HEAD_DIM)).collect(),
            out: Vec::new(),
        }
    }
}

impl Workload for Attention {
    fn cases(&self) -> Vec<Case> {
        let case = |depth, tokens| Case {
            family: Family::Attention,
            subject: Subject::Kv(self.kind),
            tokens,
            depth: Some(depth),
            from: Origin::Memory,
        };
        self.depths.iter().flat_map(|&d| [1, MAX_QUERY_ROWS].map(|m| case(d, m))).collect()
    }

    fn memory(&self) -> &[u8] {
        &self.memory
    }

    fn run(&mut self, case: &Case, kernels: &'static Kernels, pool: &mut Pool) -> u64 {
        let depth = case.depth.unwrap_or(self.capacity);
        let per_head = self.capacity / depth;
        let bytes = self.kind.bytes_read(HEAD_DIM, depth - 1, depth);
        // Stretches lie one after the other in the rings, so that short contexts use all the memory too.
        let all = self.heads.len() * per_head;
        let wanted = (piece_bytes(kernels.isa()) / bytes).max(1) * pool.threads();
        let count = wanted.min(all);
        let start = if self.cursor + count > all { 0 } else { self.cursor };
        self.cursor = start + count;
        let rows = if case.tokens == 1 { GROUP } else { MAX_QUERY_ROWS };
        let out = rows * result_width(HEAD_DIM);
        self.out.resize(count * out, 0.0);
        let heads = &self.heads;
        let queries: Vec<&[f32]> = self.queries.chunks(HEAD_DIM).take(rows).collect();
        pool.for_each(&mut self.workers, &mut self.out, out, |scratch, i, out| {
            let stretch = start + i;
            let first = stretch % per_head * depth;
            let last = first + depth - 1;
            let spans: [Span; MAX_QUERY_ROWS] = std::array::from_fn(|r| {
                let before = if case.tokens == 1 { 0 } else { MAX_QUERY_ROWS - 1 - r };
                Span { first, position: last - before }
            });
            let head = &heads[stretch / per_head];
            let spans = &spans[MAX_QUERY_ROWS - rows..];
            let parts = spans[0].parts().start..spans[rows - 1].parts().end;
            kernels.attend(head, &queries, spans, RULE, parts, scratch, out);
        });
        let each = if case.tokens == 1 { bytes } else { 2 * MAX_QUERY_ROWS * depth * HEAD_DIM };
        (count * each) as u64
    }
}
