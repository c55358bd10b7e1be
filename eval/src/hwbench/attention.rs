//! Attention over key/value heads that fill half of the large buffer.

use gristmill_kernels::{Isa, Kernels, KvHead, KvType, MAX_QUERY_ROWS, ScoreRule, Span};
use gristmill_runtime::Pool;

use super::case::{Case, Family, Origin, Subject};
use super::workload::{Sizes, Workload, piece_bytes};
use crate::stats::SplitMix64;

const HEAD_DIM: usize = 64;
const RULE: ScoreRule = ScoreRule { scale: 0.125, softcap: None };
const OUT: usize = MAX_QUERY_ROWS * HEAD_DIM;

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
    /// Scores, of each thread.
    workers: Vec<Vec<f32>>,
    out: Vec<f32>,
}

impl Attention {
    pub(super) fn new(kind: KvType, sizes: &Sizes) -> Self {
        let capacity = sizes.depths.last().copied().unwrap_or(16);
        let half = sizes.memory_bytes / 2;
        let head = || KvHead::new(kind, HEAD_DIM, capacity);
        let count = (half / head().bytes()).max(sizes.most_threads);
        let mut random = SplitMix64::new(2);
        let values: Vec<f32> = (0..64 * HEAD_DIM).map(|_| random.symmetric()).collect();
        let row = |i: usize| &values[i % 64 * HEAD_DIM..][..HEAD_DIM];
        let kernels = Kernels::for_isa(Isa::detect()).expect("the class was detected");
        let mut heads: Vec<KvHead> = (0..count).map(|_| head()).collect();
        for head in &mut heads {
            // Unwritten pages would all be the same page.
            for position in 0..capacity {
                kernels.write_kv(head, position, row(position), row(7 * position + 3));
            }
        }
        Self {
            kind,
            depths: sizes.depths,
            capacity,
            heads,
            memory: vec![1; half.max(1)],
            cursor: 0,
            queries: values[..OUT].to_vec(),
            workers: vec![vec![0.0; MAX_QUERY_ROWS * capacity]; sizes.most_threads],
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
        let bytes = self.heads[0].bytes() / per_head;
        // Stretches lie one after the other in the rings, so that short contexts use all the memory too.
        let all = self.heads.len() * per_head;
        let wanted = (piece_bytes(kernels.isa()) / bytes).max(1) * pool.threads();
        let count = wanted.min(all);
        let start = if self.cursor + count > all { 0 } else { self.cursor };
        self.cursor = start + count;
        self.out.resize(count * OUT, 0.0);
        let (heads, queries) = (&self.heads, &self.queries);
        pool.for_each(&mut self.workers, &mut self.out, OUT, |scores, i, out| {
            let stretch = start + i;
            let first = stretch % per_head * depth;
            let last = first + depth - 1;
            let spans: [Span; MAX_QUERY_ROWS] = std::array::from_fn(|r| {
                let before = if case.tokens == 1 { 0 } else { MAX_QUERY_ROWS - 1 - r };
                Span { first, position: last - before }
            });
            let head = &heads[stretch / per_head];
            kernels.attend(head, queries, &spans, RULE, scores, out);
        });
        let each = if case.tokens == 1 { bytes } else { 2 * MAX_QUERY_ROWS * depth * HEAD_DIM };
        (count * each) as u64
    }
}
