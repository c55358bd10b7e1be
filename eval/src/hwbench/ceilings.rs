//! Measuring what kernels cannot exceed, with the threads and the pieces that they have.

use std::hint::black_box;

use gristmill_kernels::Kernels;
use gristmill_runtime::Pool;

use super::case::Ceiling;
use super::workload::{CACHE_PASSES, Sizes, everywhere, piece_bytes};
use crate::probe::read_lines;

/// Passes of a multiplication loop: some ten microseconds.
const PEAK_PASSES: usize = 200;
/// Shares per thread that reading is handed out in.
const UNITS_PER_THREAD: usize = 4;

/// Buffers for the ceilings.
pub(super) struct Ceilings {
    /// Of each thread, in its cache.
    cache: Vec<Vec<u8>>,
    /// First byte of memory that was not read last.
    cursor: usize,
    sums: Vec<u64>,
}

impl Ceilings {
    pub(super) fn new(sizes: &Sizes) -> Self {
        let cache = vec![vec![1; sizes.cache_bytes]; sizes.most_threads];
        Self { cache, cursor: 0, sums: Vec::new() }
    }

    /// Does a piece on all threads; returns the bytes or products done.
    pub(super) fn run(
        &mut self,
        ceiling: Ceiling,
        kernels: &'static Kernels,
        memory: &[u8],
        pool: &mut Pool,
    ) -> u64 {
        match ceiling {
            Ceiling::ReadMemory => self.read_memory(kernels, memory, pool),
            Ceiling::ReadCache => {
                everywhere(pool, &mut self.cache, |buffer| {
                    for _ in 0..CACHE_PASSES {
                        black_box(read_lines(black_box(buffer)));
                    }
                });
                (self.cache[0].len() * CACHE_PASSES * pool.threads()) as u64
            }
            Ceiling::Int8 => self.multiply(pool, || kernels.peak_int8(PEAK_PASSES)),
            Ceiling::F32 => self.multiply(pool, || kernels.peak_f32(PEAK_PASSES)),
        }
    }

    fn read_memory(&mut self, kernels: &Kernels, memory: &[u8], pool: &mut Pool) -> u64 {
        let bytes = (piece_bytes(kernels.isa()) * pool.threads()).min(memory.len());
        let start = if self.cursor + bytes > memory.len() { 0 } else { self.cursor };
        self.cursor = start + bytes;
        let piece = &memory[start..start + bytes];
        let units = pool.threads() * UNITS_PER_THREAD;
        let unit = bytes.div_ceil(units).max(1);
        self.sums.resize(bytes.div_ceil(unit), 0);
        pool.for_each(&mut self.cache, &mut self.sums, 1, |_, i, sum| {
            sum[0] = read_lines(&piece[i * unit..bytes.min((i + 1) * unit)])
        });
        black_box(&self.sums);
        bytes as u64
    }

    fn multiply(&mut self, pool: &mut Pool, loops: impl Fn() -> u64 + Sync) -> u64 {
        self.sums.resize(pool.threads(), 0);
        everywhere(pool, &mut self.sums, |done| *done = loops());
        self.sums.iter().sum()
    }
}
