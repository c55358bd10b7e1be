//! Timing cases: classes take turns within a repeat, so that a change of the machine's speed meets all.

use std::time::{Duration, Instant};

use gristmill_formats::Progress;
use gristmill_kernels::{Isa, Kernels};
use gristmill_runtime::Pool;

use super::case::{Case, Ceiling};
use super::ceilings::Ceilings;
use super::report::{CeilingRow, HwBenchRow};
use super::workload::{Sizes, Workload};
use crate::error::{EvalError, Result};
use crate::stats::median;

/// What is timed in turn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Item {
    Ceiling(Ceiling, Isa),
    Kernel(Case, Isa),
}

/// The classes, the threads and the time that measurements have.
pub(super) struct Clock<'a> {
    isas: &'a [Isa],
    threads: &'a [usize],
    /// Least time of one sample.
    sample: Duration,
    ceilings: Ceilings,
    progress: &'a dyn Progress,
}

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) rows: Vec<HwBenchRow>,
    /// Ceilings as often as they were needed.
    pub(super) ceilings: Vec<CeilingRow>,
}

impl<'a> Clock<'a> {
    pub(super) fn new(
        isas: &'a [Isa],
        threads: &'a [usize],
        sample: Duration,
        sizes: &Sizes,
        progress: &'a dyn Progress,
    ) -> Self {
        Self { isas, threads, sample, ceilings: Ceilings::new(sizes), progress }
    }

    /// Measures cases of one workload on all classes and numbers of threads, with their ceilings.
    pub(super) fn measure(
        &mut self,
        workload: &mut dyn Workload,
        cases: &[Case],
        repeat: usize,
        found: &mut Found,
    ) -> Result<()> {
        let items = self.items(cases);
        for &threads in self.threads {
            let mut pool = Pool::new(threads);
            let mut samples = vec![Vec::with_capacity(repeat); items.len()];
            // The first round is not counted: it fills caches and wakes threads.
            for round in 0..=repeat {
                if self.progress.cancelled() {
                    return Err(EvalError::Cancelled);
                }
                for (item, samples) in items.iter().zip(&mut samples) {
                    let time = if round == 0 { Duration::ZERO } else { self.sample };
                    let rate = self.rate(item, workload, &mut pool, time);
                    if round > 0 {
                        samples.push(rate);
                    }
                }
                self.progress.advance(1);
            }
            collect(&items, samples, threads, found);
        }
        Ok(())
    }

    /// The cases on each class, before them what bounds them.
    fn items(&self, cases: &[Case]) -> Vec<Item> {
        let needed = |ceiling: &Ceiling| cases.iter().any(|case| case.ceiling() == Some(*ceiling));
        let mut items = Vec::new();
        for ceiling in Ceiling::ALL.into_iter().filter(needed) {
            let best = [Isa::detect()];
            let isas = if ceiling.has_isa() { self.isas } else { &best[..] };
            items.extend(isas.iter().map(|&isa| Item::Ceiling(ceiling, isa)));
        }
        for &case in cases {
            items.extend(self.isas.iter().map(|&isa| Item::Kernel(case, isa)));
        }
        items
    }

    /// 1e9 bytes or products per second over at least `time`.
    fn rate(
        &mut self,
        item: &Item,
        workload: &mut dyn Workload,
        pool: &mut Pool,
        time: Duration,
    ) -> f64 {
        let (Item::Ceiling(_, isa) | Item::Kernel(_, isa)) = *item;
        let kernels = Kernels::for_isa(isa).expect("classes are checked before they are measured");
        let start = Instant::now();
        let mut done = 0;
        loop {
            done += match item {
                Item::Ceiling(ceiling, _) => {
                    self.ceilings.run(*ceiling, kernels, workload.memory(), pool)
                }
                Item::Kernel(case, _) => workload.run(case, kernels, pool),
            };
            let elapsed = start.elapsed();
            if elapsed >= time {
                return done as f64 / elapsed.as_secs_f64() / 1e9;
            }
        }
    }
}

/// Medians of the samples as rows.
fn collect(items: &[Item], samples: Vec<Vec<f64>>, threads: usize, found: &mut Found) {
    let medians: Vec<f64> = samples.iter().map(|rates| median(rates)).collect();
    let ceiling_rate = |wanted: Ceiling, of: Isa| {
        let is = |item: &Item| match *item {
            Item::Ceiling(ceiling, isa) => ceiling == wanted && (isa == of || !wanted.has_isa()),
            Item::Kernel(..) => false,
        };
        items.iter().position(is).map(|i| medians[i])
    };
    for ((item, rate_by_repeat), &rate) in items.iter().zip(samples).zip(&medians) {
        match *item {
            Item::Ceiling(ceiling, isa) => {
                let isa = ceiling.has_isa().then_some(isa);
                found.ceilings.push(CeilingRow {
                    ceiling,
                    isa,
                    threads,
                    rate,
                    unit: ceiling.unit(),
                });
            }
            Item::Kernel(case, isa) => {
                let ceiling = case.ceiling().and_then(|c| ceiling_rate(c, isa));
                let ceiling = ceiling.map(|rate| rate * case.reachable());
                found.rows.push(HwBenchRow {
                    case,
                    threads,
                    isa,
                    chosen: isa == Isa::detect(),
                    rate,
                    unit: case.unit(),
                    rate_by_repeat,
                    ceiling,
                    share: ceiling.map(|ceiling| rate / ceiling),
                    cost: None,
                });
            }
        }
    }
}
