//! The runtime's own threads: one caller and its workers share stages of small, equal units.
//!
//! A stage takes a few microseconds, so what starting and ending it costs counts. Each thread has a
//! mailbox, one cache line, with the units left to it and the job they belong to; a thread takes runs of
//! units from the front of its own and, when it has run out, from the back of another's, shorter ones
//! towards the end so that all finish together. Taking a run is what joins a stage: the caller waits for
//! units, not for threads, so a worker that is late, parked or not given a core delays nobody, and its
//! units are done by others. Which thread computes a unit never changes its result.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

/// Rounds of spinning before a waiting thread yields: a few microseconds.
const SPIN_ROUNDS: u32 = 500;
/// Rounds of yielding before a waiting worker parks: long enough to bridge sampling and printing.
const YIELD_ROUNDS: u32 = 1_000;

/// Units of which a thread takes whole multiples where it may take as many: kernels compute four panels
/// side by side.
pub(crate) const GRAIN: u32 = 4;

/// Threads that wait for stages. The caller of a stage is thread 0.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// Units that workers have been left with so far, modulo 2^32.
    left_to_workers: u32,
}

#[derive(Debug)]
struct Shared {
    mailboxes: Box<[Mailbox]>,
    /// What each worker reports, apart from the mailboxes because the caller polls it.
    reports: Box<[Report]>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// What the caller tells a thread.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Mailbox {
    /// [`Units`] left.
    units: AtomicU64,
    /// The job of these units. Written by the caller while no unit of any thread is left or running;
    /// read by a thread that has taken one of these units and not yet reported it.
    job: UnsafeCell<Option<JobPointer>>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Report {
    /// Units that this thread has finished since it started, modulo 2^32.
    finished: AtomicU32,
    /// Whether it is parked or about to be.
    parked: AtomicBool,
}

/// Runs some units on a thread.
type Job<'a> = dyn Fn(usize, Range<usize>) + Sync + 'a;

#[derive(Debug, Clone, Copy)]
struct JobPointer(*const Job<'static>);

// SAFETY: see `Mailbox::job` for why reads and writes do not meet; the closure behind it is Sync.
unsafe impl Sync for Mailbox {}
// SAFETY: as above; the pointer is only ever used to call a Sync closure.
unsafe impl Send for Mailbox {}

impl Pool {
    /// A pool of `threads` threads, the caller included.
    ///
    /// # Panics
    /// When `threads` is 0 or the system refuses to start a thread.
    pub fn new(threads: usize) -> Self {
        assert!(threads > 0, "a pool needs a thread");
        let shared = Arc::new(Shared {
            mailboxes: (0..threads).map(|_| Mailbox::default()).collect(),
            reports: (0..threads).map(|_| Report::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        // Threads allocate as they start, and stages wait for no thread: so starting ends here.
        let started = Arc::new(Barrier::new(threads));
        let handles = (1..threads)
            .map(|index| {
                let (shared, started) = (Arc::clone(&shared), Arc::clone(&started));
                std::thread::Builder::new()
                    .name(format!("gristmill-{index}"))
                    .spawn(move || {
                        started.wait();
                        shared.work(index);
                    })
                    .expect("the system starts a thread")
            })
            .collect();
        started.wait();
        Self { shared, handles, left_to_workers: 0 }
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Runs `unit` for each of `items` in chunks of `chunk` (the last may be shorter), each chunk on one
    /// thread. `states` are the threads' own states.
    ///
    /// # Panics
    /// When there are fewer states than threads, `chunk` is 0, or a closure panics.
    pub fn for_each<S: Send, T: Send>(
        &mut self,
        states: &mut [S],
        items: &mut [T],
        chunk: usize,
        unit: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        self.for_each_run(states, items, chunk, 1, unit);
    }

    /// [`Self::for_each`], but that `run` gets up to `longest` consecutive chunks at once and the index of
    /// the first.
    ///
    /// # Panics
    /// As [`Self::for_each`], and when `longest` is 0.
    pub fn for_each_run<S: Send, T: Send>(
        &mut self,
        states: &mut [S],
        items: &mut [T],
        chunk: usize,
        longest: usize,
        run: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        let items = Chunks::new(items, chunk);
        self.stage(states, items.count(), longest, |state, units| {
            // SAFETY: the stage hands out each index once.
            run(state, units.start, unsafe { items.get(units) });
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
        self.stage(states, a.count(), 1, |state, units| {
            // SAFETY: the stage hands out each index once.
            unsafe { unit(state, units.start, a.get(units.clone()), b.get(units)) };
        });
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
        a_unit: impl Fn(&mut S, usize, &mut [A]) + Sync,
        b_unit: impl Fn(&mut S, usize, &mut [B]) + Sync,
    ) {
        let (a, b) = (Chunks::new(a, a_chunk), Chunks::new(b, b_chunk));
        self.stage(states, a.count() + b.count(), 1, |state, units| {
            // SAFETY: the stage hands out each index once.
            unsafe {
                match units.start.checked_sub(a.count()) {
                    None => a_unit(state, units.start, a.get(units)),
                    Some(i) => b_unit(state, i, b.get(i..i + 1)),
                }
            }
        });
    }

    /// One stage: every unit once on some thread, in runs of up to `longest`.
    fn stage<S: Send>(
        &mut self,
        states: &mut [S],
        units: usize,
        longest: usize,
        run: impl Fn(&mut S, Range<usize>) + Sync,
    ) {
        let threads = self.threads();
        assert!(states.len() >= threads, "a state for each thread");
        assert!(longest > 0, "runs have units");
        if threads == 1 || units == 1 {
            let starts = (0..units).step_by(longest);
            return starts.for_each(|i| run(&mut states[0], i..units.min(i + longest)));
        }
        assert!(units <= Units::MAX, "{units} units");
        let states = Chunks::new(states, 1);
        self.share(units, longest, &|thread, units| {
            // SAFETY: each thread takes the state of its own index, for one run at a time.
            run(unsafe { &mut states.get(thread..thread + 1)[0] }, units);
        });
    }

    /// Runs a job's units on all threads and waits until each has been finished.
    fn share(&mut self, units: usize, longest: usize, job: &Job<'_>) {
        let shared = &*self.shared;
        let threads = shared.mailboxes.len();
        let share = |t: usize| (units * t / threads) as u32;
        let longest = longest.min(Units::MAX_RUN) as u32;
        // SAFETY: only the lifetime changes. A thread uses the pointer only between taking a unit and
        // reporting it, and this function does not return before every unit is reported or drained.
        let pointer = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        for mailbox in &shared.mailboxes {
            // SAFETY: no unit is left or running, so no thread reads the slot.
            unsafe { *mailbox.job.get() = Some(JobPointer(pointer)) };
        }
        for (t, mailbox) in shared.mailboxes.iter().enumerate() {
            let units = Units { first: share(t), end: share(t + 1), longest };
            mailbox.units.store(units.pack(), Ordering::Release);
        }
        for (report, handle) in shared.reports[1..].iter().zip(&self.handles) {
            // A worker that is just parking may be missed: then others take its units, and it is woken
            // by the next stage.
            if report.parked.load(Ordering::Relaxed) {
                report.parked.store(false, Ordering::Relaxed);
                handle.thread().unpark();
            }
        }
        let mut own = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(Taken { units, job }) = shared.take(0) {
                own += units.len();
                // SAFETY: units of this stage were taken.
                unsafe { (*job.0)(0, units) };
            }
        }));
        if result.is_err() {
            // The remaining units are not run.
            while let Some(taken) = shared.take(0) {
                own += taken.units.len();
            }
        }
        self.left_to_workers = self.left_to_workers.wrapping_add((units - own) as u32);
        let finished = || {
            let counts = shared.reports[1..].iter().map(|r| r.finished.load(Ordering::Acquire));
            counts.fold(0, u32::wrapping_add)
        };
        let mut rounds = 0;
        while finished() != self.left_to_workers {
            rounds += 1;
            if rounds < SPIN_ROUNDS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
        if shared.panicked.load(Ordering::Relaxed) {
            shared.panicked.store(false, Ordering::Relaxed);
            panic!("a worker thread panicked");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
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
        while self.wait(index) {
            while let Some(Taken { units, job }) = self.take(index) {
                let count = units.len() as u32;
                // SAFETY: units were taken and are not yet reported.
                let run = || unsafe { (*job.0)(index, units) };
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
                self.reports[index].finished.fetch_add(count, Ordering::Release);
            }
        }
    }

    /// Waits until the thread has units: spins, yields, then parks. False when the pool ends.
    fn wait(&self, index: usize) -> bool {
        let has_units = || {
            let left = Units::unpack(self.mailboxes[index].units.load(Ordering::SeqCst));
            left.first < left.end
        };
        for round in 0..SPIN_ROUNDS + YIELD_ROUNDS {
            if has_units() {
                return true;
            }
            if round < SPIN_ROUNDS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let parked = &self.reports[index].parked;
        loop {
            parked.store(true, Ordering::SeqCst);
            let stop = self.stop.load(Ordering::SeqCst);
            if stop || has_units() {
                parked.store(false, Ordering::Relaxed);
                return !stop;
            }
            std::thread::park();
        }
    }

    /// The next units for a thread: of the longest run that is asked for about half of what is left,
    /// from the front of its own range or else from the back of another's.
    fn take(&self, thread: usize) -> Option<Taken> {
        let take = |owner: usize, from_front: bool| {
            let Mailbox { units, job } = &self.mailboxes[owner];
            let mut current = units.load(Ordering::Relaxed);
            loop {
                let left = Units::unpack(current);
                if left.first >= left.end {
                    return None;
                }
                let rest = left.end - left.first;
                let half = rest.div_ceil(2).next_multiple_of(left.longest.min(GRAIN));
                let count = half.min(left.longest).min(rest);
                let (taken, rest) = if from_front {
                    let middle = left.first + count;
                    (left.first..middle, Units { first: middle, ..left })
                } else {
                    let middle = left.end - count;
                    (middle..left.end, Units { end: middle, ..left })
                };
                // Acquire: what the caller wrote before it published the units is seen, the job too.
                match units.compare_exchange_weak(
                    current,
                    rest.pack(),
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        // SAFETY: units are taken and not reported, so the caller leaves the slot alone.
                        let job = unsafe { *job.get() }?;
                        return Some(Taken {
                            units: taken.start as usize..taken.end as usize,
                            job,
                        });
                    }
                    Err(now) => current = now,
                }
            }
        };
        let threads = self.mailboxes.len();
        take(thread, true)
            .or_else(|| (1..threads).find_map(|i| take((thread + i) % threads, false)))
    }
}

/// Units that a thread has taken, and what to do with them.
struct Taken {
    units: Range<usize>,
    job: JobPointer,
}

/// Units left to a thread, as one word.
#[derive(Debug, Clone, Copy)]
struct Units {
    first: u32,
    end: u32,
    /// Most that are taken at once.
    longest: u32,
}

impl Units {
    const BITS: u32 = 24;
    /// Most units of a stage.
    const MAX: usize = (1 << Self::BITS) - 1;
    /// Longest run.
    const MAX_RUN: usize = (1 << (u64::BITS - 2 * Self::BITS)) - 1;

    fn pack(self) -> u64 {
        u64::from(self.longest) << (2 * Self::BITS)
            | u64::from(self.first) << Self::BITS
            | u64::from(self.end)
    }

    fn unpack(word: u64) -> Self {
        let field = |at: u32| (word >> at) as u32 & Self::MAX as u32;
        Self { first: field(Self::BITS), end: field(0), longest: (word >> (2 * Self::BITS)) as u32 }
    }
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

    /// Some consecutive chunks.
    ///
    /// # Safety
    /// No two live borrows are of the same chunk.
    #[allow(clippy::mut_from_ref, reason = "chunks are disjoint, see the contract")]
    unsafe fn get(&self, chunks: Range<usize>) -> &mut [T] {
        let start = chunks.start * self.chunk;
        assert!(start < self.len, "chunks {chunks:?}");
        let len = (chunks.len() * self.chunk).min(self.len - start);
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
                    pool.for_each(&mut states, &mut items, 1, |state, i, x| {
                        x[0] += i as u32;
                        *state += 1;
                    });
                    assert!(items.iter().enumerate().all(|(i, &x)| x == round * i as u32));
                }
            }
            assert_eq!(states.iter().sum::<usize>(), 20 * (1 + 2 + 7 + 64), "units by thread");
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
        pool.for_each_either(&mut states, (&mut a, 3), (&mut b, 1), fill, fill_b);
        assert!(a.iter().all(|&x| x == 9) && b.iter().all(|&x| x == 9));
    }

    #[test]
    fn a_parked_pool_wakes() {
        let mut pool = Pool::new(2);
        let mut items = [0; 8];
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            pool.for_each(&mut [(); 2], &mut items, 1, |(), _, x| x[0] += 1);
        }
        assert_eq!(items, [3; 8]);
    }

    #[test]
    fn a_panic_in_a_unit_reaches_the_caller_and_the_pool_survives() {
        let mut pool = Pool::new(3);
        let mut items = [0; 30];
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.for_each(&mut [(); 3], &mut items, 1, |(), i, _| assert_ne!(i, 29));
        }));
        assert!(result.is_err());
        pool.for_each(&mut [(); 3], &mut items, 1, |(), _, x| x[0] = 1);
        assert_eq!(items, [1; 30]);
    }
}
