//! The runtime's own threads: one caller and its workers share stages of small, equal units.
//!
//! A stage takes a few microseconds, so workers spin before they yield and yield before they park. Each
//! thread starts with a contiguous range of units, which it takes from the front; a thread that has run
//! out takes from the back of another's range. Which thread computes a unit never changes its result.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Rounds of spinning before a waiting thread yields: a few microseconds.
const SPIN_ROUNDS: u32 = 200;
/// Rounds of yielding before a waiting worker parks: long enough to bridge sampling and printing.
const YIELD_ROUNDS: u32 = 1_000;

/// Threads that wait for stages. The caller of a stage is thread 0.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

/// Keeps values of different threads on different cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

#[derive(Debug)]
struct Shared {
    /// Counts stages; a change tells workers that `job` holds a new one.
    generation: Padded<AtomicU32>,
    /// Workers that have not finished the stage.
    running: Padded<AtomicU32>,
    /// Units left to each thread: first in the high half, end in the low half.
    ranges: Box<[Padded<AtomicU64>]>,
    /// Whether a worker is parked or about to be.
    parked: Box<[Padded<AtomicBool>]>,
    job: Padded<JobSlot>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// The stage's closure, valid from its publication until every worker has finished.
#[derive(Debug, Default)]
struct JobSlot(std::cell::UnsafeCell<Option<JobPointer>>);

#[derive(Debug, Clone, Copy)]
struct JobPointer(*const (dyn Fn(usize) + Sync));

// SAFETY: the slot is written by the caller while no worker runs, and read by workers after they have
// seen the generation change (release/acquire); the closure behind the pointer is Sync.
unsafe impl Sync for JobSlot {}
// SAFETY: as above; the pointer is only ever used to call a Sync closure.
unsafe impl Send for JobSlot {}

impl Pool {
    /// A pool of `threads` threads, the caller included.
    ///
    /// # Panics
    /// When `threads` is 0 or the system refuses to start a thread.
    pub fn new(threads: usize) -> Self {
        assert!(threads > 0, "a pool needs a thread");
        let shared = Arc::new(Shared {
            generation: Padded::default(),
            running: Padded::default(),
            ranges: (0..threads).map(|_| Padded::default()).collect(),
            parked: (0..threads).map(|_| Padded::default()).collect(),
            job: Padded::default(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let handles = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("gristmill-{index}"))
                    .spawn(move || shared.work(index))
                    .expect("the system starts a thread")
            })
            .collect();
        Self { shared, handles }
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Runs `prelude` once on every thread, then `unit` for each of `items` in chunks of `chunk` (the
    /// last may be shorter), each chunk on one thread. `states` are the threads' own states.
    ///
    /// # Panics
    /// When there are fewer states than threads, `chunk` is 0, or a closure panics.
    pub fn for_each<S: Send, T: Send>(
        &mut self,
        states: &mut [S],
        items: &mut [T],
        chunk: usize,
        prelude: impl Fn(&mut S) + Sync,
        unit: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        let items = Chunks::new(items, chunk);
        self.stage(states, items.count(), prelude, |state, i| {
            // SAFETY: the stage hands out each index once.
            unit(state, i, unsafe { items.get(i) });
        });
    }

    /// [`Self::for_each`] over two slices in step.
    ///
    /// # Panics
    /// As [`Self::for_each`], and when the slices have different numbers of chunks.
    pub fn for_each_pair<S: Send, A: Send, B: Send>(
        &mut self,
        states: &mut [S],
        (a, a_chunk): (&mut [A], usize),
        (b, b_chunk): (&mut [B], usize),
        unit: impl Fn(&mut S, usize, &mut [A], &mut [B]) + Sync,
    ) {
        let (a, b) = (Chunks::new(a, a_chunk), Chunks::new(b, b_chunk));
        assert_eq!(a.count(), b.count(), "chunks in step");
        self.stage(
            states,
            a.count(),
            |_| (),
            |state, i| {
                // SAFETY: the stage hands out each index once.
                unsafe { unit(state, i, a.get(i), b.get(i)) };
            },
        );
    }

    /// [`Self::for_each`] over two slices, one after the other.
    ///
    /// # Panics
    /// As [`Self::for_each`].
    pub fn for_each_either<S: Send, A: Send, B: Send>(
        &mut self,
        states: &mut [S],
        (a, a_chunk): (&mut [A], usize),
        (b, b_chunk): (&mut [B], usize),
        prelude: impl Fn(&mut S) + Sync,
        a_unit: impl Fn(&mut S, usize, &mut [A]) + Sync,
        b_unit: impl Fn(&mut S, usize, &mut [B]) + Sync,
    ) {
        let (a, b) = (Chunks::new(a, a_chunk), Chunks::new(b, b_chunk));
        self.stage(states, a.count() + b.count(), prelude, |state, i| {
            // SAFETY: the stage hands out each index once.
            unsafe {
                match i.checked_sub(a.count()) {
                    None => a_unit(state, i, a.get(i)),
                    Some(i) => b_unit(state, i, b.get(i)),
                }
            }
        });
    }

    /// One stage: the prelude on every thread, then every unit once on some thread.
    fn stage<S: Send>(
        &mut self,
        states: &mut [S],
        units: usize,
        prelude: impl Fn(&mut S) + Sync,
        unit: impl Fn(&mut S, usize) + Sync,
    ) {
        let threads = self.threads();
        assert!(states.len() >= threads, "a state for each thread");
        let units = u32::try_from(units).expect("units fit 32 bits");
        if threads == 1 {
            prelude(&mut states[0]);
            return (0..units).for_each(|i| unit(&mut states[0], i as usize));
        }
        let shared = Arc::clone(&self.shared);
        let share = |t: usize| (u64::from(units) * t as u64 / threads as u64) as u32;
        for (t, range) in shared.ranges.iter().enumerate() {
            range.0.store(pack(share(t), share(t + 1)), Ordering::Relaxed);
        }
        let states = Chunks::new(states, 1);
        self.broadcast(&|thread| {
            // SAFETY: each thread takes the state of its own index.
            let state = unsafe { &mut states.get(thread)[0] };
            prelude(state);
            while let Some(i) = shared.next_unit(thread) {
                unit(state, i as usize);
            }
        });
    }

    /// Runs a closure on every thread and waits for all.
    fn broadcast(&mut self, job: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; the pointer is not used after this function returns,
        // because it waits for every worker below.
        let job_pointer = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(
                job,
            )
        };
        // SAFETY: no worker runs between stages, so nothing else touches the slot.
        unsafe { *shared.job.0.0.get() = Some(JobPointer(job_pointer)) };
        shared.running.0.store(self.handles.len() as u32, Ordering::Relaxed);
        shared.generation.0.fetch_add(1, Ordering::SeqCst);
        for (index, handle) in self.handles.iter().enumerate() {
            if shared.parked[index + 1].0.swap(false, Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut rounds = 0u32;
        while shared.running.0.load(Ordering::Acquire) != 0 {
            rounds += 1;
            if rounds < SPIN_ROUNDS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a worker thread panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.generation.0.fetch_add(1, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker's panic was reported when it happened.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait(index, seen);
            seen = seen.wrapping_add(1);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: the generation changed, so the caller has published the job and waits for us.
            let job = unsafe { &*(*self.job.0.0.get()).expect("a job was published").0 };
            if catch_unwind(AssertUnwindSafe(|| job(index))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.running.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until the generation is no longer `seen`: spins, yields, then parks.
    fn wait(&self, index: usize, seen: u32) {
        let changed = || self.generation.0.load(Ordering::SeqCst) != seen;
        for _ in 0..SPIN_ROUNDS {
            if changed() {
                return;
            }
            std::hint::spin_loop();
        }
        for _ in 0..YIELD_ROUNDS {
            if changed() {
                return;
            }
            std::thread::yield_now();
        }
        loop {
            self.parked[index].0.store(true, Ordering::SeqCst);
            if changed() {
                self.parked[index].0.store(false, Ordering::SeqCst);
                return;
            }
            std::thread::park();
        }
    }

    /// The next unit for a thread: from the front of its own range, else from the back of another's.
    fn next_unit(&self, thread: usize) -> Option<u32> {
        let take = |owner: usize, from_front: bool| {
            let range = &self.ranges[owner].0;
            let mut current = range.load(Ordering::Relaxed);
            loop {
                let (first, end) = unpack(current);
                if first >= end {
                    return None;
                }
                let (unit, next) = if from_front {
                    (first, pack(first + 1, end))
                } else {
                    (end - 1, pack(first, end - 1))
                };
                // Relaxed is enough: units share no data but what the stage's start published.
                match range.compare_exchange_weak(
                    current,
                    next,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some(unit),
                    Err(now) => current = now,
                }
            }
        };
        let threads = self.ranges.len();
        take(thread, true)
            .or_else(|| (1..threads).find_map(|i| take((thread + i) % threads, false)))
    }
}

fn pack(first: u32, end: u32) -> u64 {
    u64::from(first) << 32 | u64::from(end)
}

fn unpack(range: u64) -> (u32, u32) {
    ((range >> 32) as u32, range as u32)
}

/// A slice that threads take apart chunk by chunk.
struct Chunks<'a, T> {
    first: *mut T,
    len: usize,
    chunk: usize,
    marker: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for the exclusive borrow of a slice whose elements may move between threads; `get`
// requires that no chunk is taken twice.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    fn new(items: &'a mut [T], chunk: usize) -> Self {
        assert!(chunk > 0, "chunks have elements");
        let (first, len) = (items.as_mut_ptr(), items.len());
        Self { first, len, chunk, marker: std::marker::PhantomData }
    }

    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    /// Chunk `i`.
    ///
    /// # Safety
    /// No two live borrows are of the same chunk.
    #[allow(clippy::mut_from_ref, reason = "chunks are disjoint, see the contract")]
    unsafe fn get(&self, i: usize) -> &mut [T] {
        let start = i * self.chunk;
        assert!(start < self.len, "chunk {i}");
        let len = self.chunk.min(self.len - start);
        // SAFETY: within the borrowed slice; disjoint by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 5] {
            let mut pool = Pool::new(threads);
            let mut states = vec![0usize; threads];
            for units in [0, 1, 2, 7, 64] {
                let mut items = vec![0u32; units];
                for round in 1..=20 {
                    pool.for_each(
                        &mut states,
                        &mut items,
                        1,
                        |s| *s += 1,
                        |_, i, x| {
                            x[0] += i as u32;
                        },
                    );
                    assert!(items.iter().enumerate().all(|(i, &x)| x == round * i as u32));
                }
            }
            assert!(states.iter().all(|&s| s == 100), "the prelude runs on every thread");
        }
    }

    #[test]
    fn pairs_and_alternatives_cover_both_slices() {
        let mut pool = Pool::new(2);
        let mut states = [(); 2];
        let (mut a, mut b) = (vec![0u8; 10], vec![0u16; 25]);
        pool.for_each_pair(&mut states, (&mut a, 2), (&mut b, 5), |(), i, a, b| {
            a.fill(i as u8);
            b.fill(i as u16);
        });
        assert_eq!(a[9], 4);
        assert_eq!(b[24], 4);
        let fill = |(): &mut (), _: usize, x: &mut [u8]| x.fill(9);
        let fill_b = |(): &mut (), _: usize, x: &mut [u16]| x.fill(9);
        pool.for_each_either(&mut states, (&mut a, 3), (&mut b, 1), |()| (), fill, fill_b);
        assert!(a.iter().all(|&x| x == 9) && b.iter().all(|&x| x == 9));
    }

    #[test]
    fn a_parked_pool_wakes() {
        let mut pool = Pool::new(2);
        let mut items = [0; 8];
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            pool.for_each(&mut [(); 2], &mut items, 1, |()| (), |(), _, x| x[0] += 1);
        }
        assert_eq!(items, [3; 8]);
    }

    #[test]
    fn a_panic_in_a_unit_reaches_the_caller_and_the_pool_survives() {
        let mut pool = Pool::new(3);
        let mut items = [0; 30];
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.for_each(&mut [(); 3], &mut items, 1, |()| (), |(), i, _| assert_ne!(i, 29));
        }));
        assert!(result.is_err());
        pool.for_each(&mut [(); 3], &mut items, 1, |()| (), |(), _, x| x[0] = 1);
        assert_eq!(items, [1; 30]);
    }
}
