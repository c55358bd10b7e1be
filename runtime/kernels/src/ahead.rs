//! Prefetches for panels that are read side by side.
//!
//! What follows a line in use is, in the order in which a thread reads, not what follows it in memory:
//! each stream goes on in the panel `N` further. Prefetches go the same way, and past the end of a run
//! into the next, which a thread usually takes next.

use crate::simd::Simd;

/// Bytes of all streams ahead of the lines in use that are brought into the first-level cache.
const NEAR: usize = 4 << 10;
/// Bytes that are brought into the second-level cache: far enough that the misses of several pages are
/// in flight.
const FAR: usize = 16 << 10;
const LINE: usize = 64;

/// Runs ahead of `N` streams that consume as many lines each.
pub(crate) struct Ahead<const N: usize> {
    first: *const u8,
    stride: usize,
    near: Place,
    far: Place,
}

/// A line of the first stream.
#[derive(Clone, Copy)]
struct Place {
    /// Bytes from the first panel on.
    at: usize,
    /// Bytes from there to the end of its panel.
    left: usize,
}

impl<const N: usize> Ahead<N> {
    /// Ahead of the panels from `first` on, `stride` bytes apart, a multiple of 64.
    #[inline(always)]
    pub(crate) fn new(first: *const u8, stride: usize) -> Self {
        let place = |distance: usize| {
            let (steps, rest) = (distance / stride, distance % stride);
            Place { at: N * steps * stride + rest, left: stride - rest }
        };
        Self { first, stride, near: place(NEAR / N), far: place(FAR / N) }
    }

    /// Prefetches for all streams what keeps the distance when each consumes `count` lines.
    ///
    /// # Safety
    /// The CPU has the class of `S`.
    #[inline(always)]
    pub(crate) unsafe fn lines<S: Simd>(&mut self, count: usize) {
        let Self { first, stride, near, far } = *self;
        if near.left > count * LINE && far.left > count * LINE {
            for line in 0..count {
                for n in 0..N {
                    let stream = first.wrapping_add(n * stride + line * LINE);
                    // SAFETY: any address may be prefetched.
                    unsafe {
                        S::prefetch_near(stream.wrapping_add(near.at));
                        S::prefetch_far(stream.wrapping_add(far.at));
                    }
                }
            }
            let on = |place: Place| Place {
                at: place.at + count * LINE,
                left: place.left - count * LINE,
            };
            (self.near, self.far) = (on(near), on(far));
        } else {
            // SAFETY: the contract above.
            (self.near, self.far) =
                unsafe { into_next_panel::<S, N>(first, stride, near, far, count) };
        }
    }
}

impl Ahead<1> {
    /// Ahead of a single stream that does not end.
    #[inline(always)]
    pub(crate) fn of_one(first: *const u8) -> Self {
        Self::new(first, usize::MAX / LINE * LINE)
    }
}

/// [`Ahead::lines`] where a panel ends.
#[cold]
unsafe fn into_next_panel<S: Simd, const N: usize>(
    first: *const u8,
    stride: usize,
    mut near: Place,
    mut far: Place,
    count: usize,
) -> (Place, Place) {
    for _ in 0..count {
        for n in 0..N {
            let stream = first.wrapping_add(n * stride);
            // SAFETY: any address may be prefetched.
            unsafe {
                S::prefetch_near(stream.wrapping_add(near.at));
                S::prefetch_far(stream.wrapping_add(far.at));
            }
        }
        for place in [&mut near, &mut far] {
            (place.at, place.left) = (place.at + LINE, place.left - LINE);
            if place.left == 0 {
                (place.at, place.left) = (place.at + (N - 1) * stride, stride);
            }
        }
    }
    (near, far)
}
