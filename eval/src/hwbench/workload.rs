//! Work that can be done piece by piece, on any instruction set and number of threads.

use gristmill_formats::{HugeBuffer, SharedBytes};
use gristmill_kernels::{Isa, Kernels};
use gristmill_runtime::Pool;

use super::case::Case;

/// Times that a thread goes over what it holds in its cache before it meets the others.
pub(crate) const CACHE_PASSES: usize = 8;

/// How large things are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The large buffer.
    pub(crate) memory_bytes: usize,
    /// Whether it asks for huge pages, as copied weights do.
    pub(crate) huge_pages: bool,
    /// What a thread holds in its second-level cache.
    pub(crate) cache_bytes: usize,
    /// Most threads that take part.
    pub(crate) most_threads: usize,
    /// Tokens of prompts.
    pub(crate) prompts: &'static [usize],
    /// Positions attended to, increasing; each divides the last.
    pub(crate) depths: &'static [usize],
}

impl Sizes {
    /// A buffer of `count` copies of `piece`.
    pub(crate) fn fill(&self, piece: &[u8], count: usize) -> SharedBytes {
        if self.huge_pages
            && let Ok(mut buffer) = HugeBuffer::new(piece.len() * count)
        {
            buffer
                .bytes_mut()
                .chunks_exact_mut(piece.len())
                .for_each(|to| to.copy_from_slice(piece));
            return buffer.share();
        }
        SharedBytes::from_vec(piece.repeat(count))
    }
}

/// Kernels on data of one kind.
pub(crate) trait Workload {
    /// What can be measured.
    fn cases(&self) -> Vec<Case>;

    /// Memory like that which the cases from memory read, for the read bandwidth.
    fn memory(&self) -> &[u8];

    /// Does a piece of a case on all threads; returns the bytes or products done.
    fn run(&mut self, case: &Case, kernels: &'static Kernels, pool: &mut Pool) -> u64;
}

/// Bytes of the large buffer that a thread takes between two meetings of the threads: a fraction of a
/// millisecond, but for portable code, which takes a few.
pub(crate) fn piece_bytes(isa: Isa) -> usize {
    if isa == Isa::Scalar { 256 << 10 } else { 4 << 20 }
}

/// Does something as often as there are threads: once on each, unless one is late.
pub(crate) fn everywhere<S: Send>(pool: &mut Pool, states: &mut [S], work: impl Fn(&mut S) + Sync) {
    let mut turns = vec![(); pool.threads()];
    pool.for_each(states, &mut turns, 1, |state, _, _| work(state));
}
