//! Read bandwidth: how fast threads can fetch cache lines, which nothing that reads weights can exceed.
//!
//! The probe touches one word of every 64-byte line. It is therefore bound by what delivers the lines
//! and not by vector width, and plain code reaches the machine's limit; for a buffer that fits the first
//! two cache levels the result exceeds what whole lines can be loaded at.
//!
//! Pages matter: the buffer is ordinary anonymous memory, which has pages of 4 KiB like a mapped model
//! unless the system gives out huge pages unasked (`transparent_hugepage` set to `always`); then it
//! reads faster than a mapping can, and [`ReadProbe::huge_page_bytes`] tells.

use std::fs;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::host::Host;

/// Least time of reading in one measurement; passes are repeated until it is reached.
const MIN_TIME: Duration = Duration::from_millis(50);
/// Least number of passes.
const MIN_PASSES: usize = 3;
/// Least bytes of a pass: less would measure how fast threads meet.
const MIN_PASS_BYTES: u64 = 32 << 20;
/// Bytes that a thread takes at once.
const PIECE_BYTES: usize = 1 << 20;
/// Buffer when the cache's size is unknown.
const DEFAULT_BYTES: usize = 256 << 20;
/// Largest buffer: beyond it a probe would take seconds and the memory that a model needs.
const MAX_BYTES: u64 = 1 << 30;

/// A measured read bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// 1e9 bytes per second, all threads together.
    pub gb_s: f64,
    /// Threads that read.
    pub threads: usize,
    /// Bytes of one pass.
    pub bytes: u64,
}

/// A buffer that is read to measure bandwidth.
#[derive(Debug)]
pub struct ReadProbe {
    buffer: Vec<u8>,
    huge_page_bytes: Option<u64>,
}

impl ReadProbe {
    /// Allocates and fills a buffer.
    pub fn new(bytes: usize) -> Self {
        let before = anonymous_huge_page_bytes();
        // Not zero: untouched zero pages would all be the same page in a cache.
        let buffer = vec![1u8; bytes.max(1)];
        let huge =
            anonymous_huge_page_bytes().zip(before).map(|(now, then)| now.saturating_sub(then));
        Self { buffer, huge_page_bytes: huge }
    }

    /// Size of the buffer.
    pub fn bytes(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// Part of the buffer in huge pages; `None` where the system does not tell.
    pub fn huge_page_bytes(&self) -> Option<u64> {
        self.huge_page_bytes
    }

    /// Reads the buffer with some threads.
    pub fn measure(&self, threads: usize) -> Bandwidth {
        probe_slices(threads, &[&self.buffer])
    }
}

/// Read bandwidth of `threads` threads over a buffer of `bytes`.
pub fn probe_bandwidth(threads: usize, bytes: usize) -> Bandwidth {
    ReadProbe::new(bytes).measure(threads)
}

/// Size of a buffer that no cache holds: four times the last level, at most 1 GiB.
pub fn default_probe_bytes(last_level_cache_bytes: Option<u64>) -> usize {
    let bytes = last_level_cache_bytes.map_or(DEFAULT_BYTES as u64, |llc| llc.saturating_mul(4));
    bytes.clamp(64 << 20, MAX_BYTES) as usize
}

/// [`default_probe_bytes`], unless a quarter of the free memory is less.
pub(crate) fn affordable_probe_bytes(host: &Host) -> usize {
    let wanted = default_probe_bytes(host.last_level_cache_bytes);
    let free = gristmill_runtime::available_memory_bytes().map_or(usize::MAX, |b| b as usize);
    wanted.min(free / 4)
}

/// Read bandwidth over memory that is already there, such as a model's weights: one pass that is not
/// timed, then passes until they have taken long enough; the median pass counts. Threads take pieces of
/// a mebibyte in turn, so that a slow core does not hold up the rest.
///
/// # Panics
/// When `threads` is 0.
pub fn probe_slices(threads: usize, slices: &[&[u8]]) -> Bandwidth {
    assert!(threads > 0, "a probe needs a thread");
    let pieces: Vec<&[u8]> = slices.iter().flat_map(|s| s.chunks(PIECE_BYTES)).collect();
    let bytes: u64 = slices.iter().map(|s| s.len() as u64).sum();
    if bytes == 0 {
        return Bandwidth { gb_s: 0.0, threads, bytes };
    }
    let rounds = MIN_PASS_BYTES.div_ceil(bytes);
    let pass = Pass {
        pieces: &pieces,
        reads: pieces.len() * rounds as usize,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        barrier: Barrier::new(threads),
    };
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| while pass.take_part() {});
        }
        pass.take_part();
        let start = Instant::now();
        while times.len() < MIN_PASSES || start.elapsed() < MIN_TIME {
            pass.next.store(0, Ordering::Relaxed);
            let start = Instant::now();
            pass.take_part();
            times.push(start.elapsed().as_secs_f64());
        }
        pass.stop.store(true, Ordering::Relaxed);
        pass.take_part();
    });
    let seconds = crate::stats::median(&times);
    Bandwidth { gb_s: (bytes * rounds) as f64 / seconds / 1e9, threads, bytes }
}

/// One reading of everything, shared by the threads.
struct Pass<'a> {
    pieces: &'a [&'a [u8]],
    /// Pieces to be read, over all rounds.
    reads: usize,
    next: AtomicUsize,
    stop: AtomicBool,
    barrier: Barrier,
}

impl Pass<'_> {
    /// Waits for the others, reads until nothing is left, and waits again; false once there is no
    /// further pass. The barriers publish `next` and `stop`.
    fn take_part(&self) -> bool {
        self.barrier.wait();
        if self.stop.load(Ordering::Relaxed) {
            return false;
        }
        loop {
            let read = self.next.fetch_add(1, Ordering::Relaxed);
            if read >= self.reads {
                break;
            }
            black_box(read_lines(black_box(self.pieces[read % self.pieces.len()])));
        }
        self.barrier.wait();
        true
    }
}

/// Reads one word of each line, in several streams side by side: a page's first lines come slowly, and
/// with more streams fewer of them wait. On the CPU that this was tried on, streams add 20 % and reading
/// whole lines with 512-bit loads adds nothing.
pub(crate) fn read_lines(bytes: &[u8]) -> u64 {
    const STREAMS: usize = 8;
    const LINE: usize = 64;
    let lines = bytes.len() / STREAMS / LINE;
    let streams: [&[[u8; LINE]]; STREAMS] = std::array::from_fn(|s| {
        let start = s * lines * LINE;
        bytes[start..start + lines * LINE].as_chunks().0
    });
    let mut sums = [0u64; STREAMS];
    for i in 0..lines {
        for s in 0..STREAMS {
            let word = streams[s][i].first_chunk().copied().unwrap_or_default();
            sums[s] = sums[s].wrapping_add(u64::from_ne_bytes(word));
        }
    }
    let rest = bytes[STREAMS * lines * LINE..].chunks(LINE).map(|line| u64::from(line[0]));
    sums.into_iter().chain(rest).fold(0, u64::wrapping_add)
}

/// Anonymous memory of this process in huge pages.
fn anonymous_huge_page_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find(|l| l.starts_with("AnonHugePages:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        for len in [1, 64, 1000, 5000, 64 * 16] {
            let mut bytes = vec![0u8; len];
            for line in (0..len).step_by(64) {
                bytes[line] = 1;
                assert_eq!(read_lines(&bytes), 1, "line at {line} of {len}");
                bytes[line] = 0;
            }
        }
    }

    #[test]
    fn a_probe_yields_a_finite_rate_for_any_size() {
        for (threads, bytes) in [(1, 1), (2, 5 << 20), (3, 100_000)] {
            let found = probe_bandwidth(threads, bytes);
            assert!(found.gb_s.is_finite() && found.gb_s > 0.0);
            assert_eq!((found.threads, found.bytes), (threads, bytes as u64));
        }
        assert_eq!(probe_slices(1, &[]).gb_s, 0.0);
    }

    #[test]
    fn the_buffer_exceeds_the_cache_within_bounds() {
        assert_eq!(default_probe_bytes(Some(32 << 20)), 128 << 20);
        assert_eq!(default_probe_bytes(Some(260 << 20)), 1 << 30);
        assert_eq!(default_probe_bytes(Some(1 << 20)), 64 << 20);
        assert_eq!(default_probe_bytes(None), 256 << 20);
    }
}
