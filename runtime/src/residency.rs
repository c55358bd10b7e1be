//! Where weights are while they are read: in the mapped file, copied into huge pages, or, when there is
//! too little memory, partly copied and otherwise streamed.
//!
//! A mapped file has pages of 4 KiB, scattered as the file cache took them, and a sequential read of memory
//! is slower over these than over pages of 2 MiB: by 4 to 30 % of a model that no cache holds. A copy costs
//! a load time and memory that the system cannot drop, so it is made for large models where there is ample
//! memory. A model that does not fit would push its own beginning out of the file cache before it is read
//! again; so as much of the beginning as fits is copied, where it stays, and the rest is fetched ahead of
//! its use and dropped after it.

use std::fmt;
use std::time::Instant;

use gristmill_formats::source::TensorData;
use gristmill_formats::{HugeBuffer, SharedBytes};

use crate::error::{Result, RuntimeError};
use crate::memory::available_memory_bytes;
use crate::model::Model;

/// [`Residency::Auto`] copies a model of at least so many bytes: smaller ones gain nothing where a cache
/// holds them, and should open at once.
const COPY_LEAST: u64 = 256 << 20;
/// [`Residency::Auto`] copies a model only if it takes at most this share of the available memory.
const COPY_SHARE: u64 = 4;
/// Part of the available memory, in percent, that weights may take before they are streamed.
const FIT_PERCENT: u64 = 90;
/// Part of the available memory, in percent, that the copied beginning of a streamed model takes.
const PINNED_PERCENT: u64 = 80;
/// Bytes of a streamed model that are asked for ahead of their use.
const AHEAD_BYTES: u64 = 32 << 20;
/// Matrices of a copy start at multiples of this.
const ALIGN: usize = 64;

/// A policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Residency {
    /// [`Self::Stream`] if the model does not fit the available memory, [`Self::Huge`] if it is large and
    /// takes little of it, else [`Self::Map`].
    #[default]
    Auto,
    /// The mapped file: opens at once, shared with other processes, and the system may drop it.
    Map,
    /// A copy in huge pages.
    Huge,
    /// A copy of as much of the beginning as fits, and the rest fetched ahead of its use.
    Stream,
}

impl Residency {
    /// All policies.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Map, Self::Huge, Self::Stream];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Map => "map",
            Self::Huge => "huge",
            Self::Stream => "stream",
        }
    }

    /// What [`Self::Auto`] stands for on this machine for weights of so many bytes.
    #[must_use]
    pub fn for_weights(self, weights: u64, available: Option<u64>) -> Self {
        self.resolve(weights, available, has_huge_pages())
    }

    /// Bytes that a streamed model keeps in memory.
    pub fn pinned_bytes(weights: u64, available: Option<u64>) -> u64 {
        percent(available.unwrap_or(0), PINNED_PERCENT).min(weights)
    }

    /// What [`Self::Auto`] stands for, given the bytes of the weights and of the available memory.
    fn resolve(self, weights: u64, available: Option<u64>, huge_pages: bool) -> Self {
        match (self, available) {
            (Self::Auto, Some(available)) if weights > percent(available, FIT_PERCENT) => {
                Self::Stream
            }
            (Self::Auto, Some(available))
                if huge_pages && (COPY_LEAST..=available / COPY_SHARE).contains(&weights) =>
            {
                Self::Huge
            }
            (Self::Auto, _) => Self::Map,
            (chosen, _) => chosen,
        }
    }
}

fn percent(bytes: u64, percent: u64) -> u64 {
    (u128::from(bytes) * u128::from(percent) / 100) as u64
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// The policy in force; never [`Residency::Auto`].
    pub residency: Residency,
    /// Bytes copied into anonymous memory.
    pub copied_bytes: u64,
    /// Bytes that are fetched from the file for every token.
    pub streamed_bytes: u64,
    /// What copying took.
    pub seconds: f64,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        match self.residency {
            Residency::Huge => {
                let (copied, ms) = (mb(self.copied_bytes), self.seconds * 1e3);
                write!(f, "{copied:.1} MB copied into huge pages in {ms:.0} ms")
            }
            Residency::Stream => {
                let (copied, streamed) = (mb(self.copied_bytes), mb(self.streamed_bytes));
                write!(f, "{copied:.1} MB in memory, {streamed:.1} MB streamed for every token")
            }
            Residency::Map | Residency::Auto => write!(f, "mapped"),
        }
    }
}

impl Placement {
    /// Everything is where the source has it.
    pub(crate) const MAPPED: Self =
        Self { residency: Residency::Map, copied_bytes: 0, streamed_bytes: 0, seconds: 0.0 };
}

/// Matrices that are fetched ahead of their use, in the order in which they are read.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// For each block of the model, then the head: the matrices to ask for when it begins.
    ask: Vec<Vec<SharedBytes>>,
    /// For each block, then the head: those that it reads itself.
    own: Vec<Vec<SharedBytes>>,
}

impl Stream {
    /// Called when a part of the model begins.
    pub(crate) fn begin(&self, part: usize) {
        if let Some(ask) = self.ask.get(part) {
            ask.iter().for_each(SharedBytes::will_need);
        }
    }

    /// Called when a part of the model has been read.
    pub(crate) fn end(&self, part: usize) {
        if let Some(own) = self.own.get(part) {
            own.iter().for_each(SharedBytes::done_with);
        }
    }

    /// `parts[i]` is what part i reads from the file.
    fn new(parts: Vec<Vec<SharedBytes>>) -> Self {
        let size = |part: &Vec<SharedBytes>| part.iter().map(|b| b.len() as u64).sum::<u64>();
        let count = parts.len();
        let mut ask: Vec<Vec<SharedBytes>> = vec![Vec::new(); count];
        for (i, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            // Asked for where the parts up to it hold that many bytes; around the end, because the next
            // token begins where this one ends.
            let (mut from, mut ahead) = (i, 0);
            for _ in 1..count {
                from = (from + count - 1) % count;
                ahead += size(&parts[from]);
                if ahead >= AHEAD_BYTES {
                    break;
                }
            }
            ask[from].extend(part.iter().cloned());
        }
        Self { ask, own: parts }
    }
}

impl Model {
    /// Puts the weights where a policy wants them, with `threads` threads to copy.
    ///
    /// # Errors
    /// [`RuntimeError::Residency`] when memory for a copy is refused or would not fit.
    pub fn place(&mut self, residency: Residency, threads: usize) -> Result<()> {
        self.place_within(residency, available_memory_bytes(), threads)
    }

    /// [`Self::place`] as if so many bytes of memory were available; `None` when that is not known.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub fn place_within(
        &mut self,
        residency: Residency,
        available: Option<u64>,
        threads: usize,
    ) -> Result<()> {
        let weights = self.distinct_matrix_bytes();
        let residency = residency.for_weights(weights, available);
        let room = match (residency, available) {
            (Residency::Huge, Some(available)) if weights > percent(available, FIT_PERCENT) => {
                return Err(RuntimeError::Residency {
                    needed_mib: weights >> 20,
                    available_mib: available >> 20,
                });
            }
            (Residency::Huge, _) => weights,
            (Residency::Stream, available) => Residency::pinned_bytes(weights, available),
            _ => return Ok(()),
        };
        let start = Instant::now();
        let (copied_bytes, sources) = self.copy_first(room, threads)?;
        self.placement = Placement {
            residency,
            copied_bytes,
            streamed_bytes: weights - copied_bytes,
            seconds: start.elapsed().as_secs_f64(),
        };
        // What was copied is not read from the file again; for a stream, memory is short as well.
        let streams = residency == Residency::Stream;
        sources.iter().for_each(if streams {
            SharedBytes::done_with
        } else {
            SharedBytes::release
        });
        if streams {
            self.stream = Stream::new(self.mapped_parts());
        }
        Ok(())
    }

    /// Where the weights are.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Bytes of all matrices, a tied one counted once.
    fn distinct_matrix_bytes(&self) -> u64 {
        self.matrices().map(|t| t.bytes.len() as u64).sum::<u64>()
            + if self.spec().tied_head { 0 } else { self.embed.bytes.len() as u64 }
    }

    /// Copies matrices in the order in which they are read, as long as they fit `room`; returns how many
    /// bytes were copied, and from where.
    fn copy_first(&mut self, room: u64, threads: usize) -> Result<(u64, Vec<SharedBytes>)> {
        let tied = self.spec().tied_head;
        let mut tensors: Vec<&mut TensorData> = self.matrices_mut().collect();
        let mut end = 0usize;
        let mut places = Vec::new();
        for tensor in &tensors {
            let at = end.next_multiple_of(ALIGN);
            if (at + tensor.bytes.len()) as u64 > room + (ALIGN * (places.len() + 1)) as u64 {
                break;
            }
            end = at + tensor.bytes.len();
            places.push(at..end);
        }
        let refused = |error| RuntimeError::Memory { bytes: end as u64, error };
        let mut buffer = HugeBuffer::new(end).map_err(refused)?;
        let sources: Vec<&[u8]> = tensors.iter().map(|t| &*t.bytes).collect();
        copy(&sources[..places.len()], &places, buffer.bytes_mut(), threads);
        let buffer = buffer.share();
        let (mut copied, mut from) = (0, Vec::new());
        for (tensor, place) in tensors.iter_mut().zip(places) {
            copied += place.len() as u64;
            let place = buffer.slice(place).expect("places are within the buffer");
            from.push(std::mem::replace(&mut tensor.bytes, place));
        }
        if tied {
            self.embed.bytes = self.head.bytes.clone();
        }
        Ok((copied, from))
    }

    /// What each block, and the head after them, reads from the file.
    fn mapped_parts(&self) -> Vec<Vec<SharedBytes>> {
        let mapped = |tensors: Vec<&TensorData>| {
            let bytes = tensors.into_iter().map(|t| t.bytes.clone());
            bytes.filter(SharedBytes::is_mapped).collect::<Vec<_>>()
        };
        let blocks = self.layers.iter().flatten().map(|block| mapped(block.matrices()));
        blocks.chain(std::iter::once(mapped(vec![&self.head]))).collect()
    }
}

/// Copies `sources[i]` to `places[i]`, which increase, on several threads.
fn copy(sources: &[&[u8]], places: &[std::ops::Range<usize>], to: &mut [u8], threads: usize) {
    let share = to.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        for (t, to) in to.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                let (first, end) = (t * share, t * share + to.len());
                for (source, place) in sources.iter().zip(places) {
                    let (from, until) = (place.start.max(first), place.end.min(end));
                    if from < until {
                        let part = &source[from - place.start..until - place.start];
                        to[from - first..until - first].copy_from_slice(part);
                    }
                }
            });
        }
    });
}

/// Whether the system gives huge pages to who asks for them.
fn has_huge_pages() -> bool {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    enabled.is_ok_and(|text| !text.contains("[never]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_copies_large_models_and_streams_what_is_too_large() {
        let auto = |weights, available, huge| Residency::Auto.resolve(weights, available, huge);
        assert_eq!(auto(36, Some(40), true), Residency::Map);
        assert_eq!(auto(37, Some(40), true), Residency::Stream);
        assert_eq!(auto(37, None, true), Residency::Map);
        assert_eq!(auto(COPY_LEAST, Some(4 * COPY_LEAST), true), Residency::Huge);
        assert_eq!(auto(COPY_LEAST, Some(4 * COPY_LEAST), false), Residency::Map);
        assert_eq!(auto(COPY_LEAST - 1, Some(4 * COPY_LEAST), true), Residency::Map);
        assert_eq!(auto(COPY_LEAST + 1, Some(4 * COPY_LEAST), true), Residency::Map);
        assert_eq!(Residency::Huge.resolve(37, Some(1), false), Residency::Huge);
    }

    #[test]
    fn copying_in_shares_copies_everything() {
        let sources: [&[u8]; 3] = [&[1; 100], &[2; 3], &[3; 200]];
        let places = [0..100, 128..131, 192..392];
        for threads in [1, 2, 3, 7] {
            let mut to = vec![0; 392];
            copy(&sources, &places, &mut to, threads);
            for (source, place) in sources.iter().zip(&places) {
                assert_eq!(&to[place.clone()], *source, "{threads} threads");
            }
        }
    }

    #[test]
    fn a_part_is_asked_for_when_enough_lies_before_it() {
        let bytes = |mib: usize| SharedBytes::from_vec(vec![0; mib << 20]);
        // The first part is in memory; the others take 20 MiB each.
        let parts =
            vec![vec![], vec![bytes(20)], vec![bytes(20)], vec![bytes(20)], vec![bytes(20)]];
        let stream = Stream::new(parts);
        let asked: Vec<usize> = stream.ask.iter().map(Vec::len).collect();
        // Each is asked for two parts of its kind ahead of itself, around the end if need be.
        assert_eq!(asked, [0, 1, 1, 1, 1]);
        assert!(stream.ask[3][0].as_ptr() == stream.own[1][0].as_ptr(), "of the next token");
    }

    #[test]
    fn a_single_streamed_part_is_asked_for_at_the_first_chance() {
        let stream = Stream::new(vec![vec![], vec![SharedBytes::from_vec(vec![0; 10])], vec![]]);
        assert_eq!(stream.ask.iter().map(Vec::len).sum::<usize>(), 1);
    }
}
