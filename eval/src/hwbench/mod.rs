//! Speed of every kernel on every instruction-set class that the CPU has, beside what bounds it.

mod attention;
pub(crate) mod case;
mod ceilings;
mod check;
mod elementwise;
pub(crate) mod matrix;
mod measure;
mod report;
mod tables;
pub(crate) mod workload;

use std::time::{Duration, Instant};

use gristmill_formats::Progress;
use gristmill_formats::codec::{Codec, CodecId};
use gristmill_kernels::{Isa, KvType};
use gristmill_runtime::EngineConfig;

pub use case::{Case, Ceiling, Family, Operation, Origin, Subject, Unit};
pub use check::{SlowChoice, TOLERANCE};
pub use report::{CeilingRow, HwBenchReport, HwBenchRow};

use crate::error::{EvalError, Result};
use crate::host::{Host, second_level_cache_bytes, unix_time_s};
use crate::probe::affordable_probe_bytes;
use crate::stats::median;
use check::confirmed_slow_choices;
use measure::{Clock, Found};
use report::fill_costs;
use workload::{Sizes, Workload};

/// Times more repeats when a slow choice is measured again.
const MORE_REPEATS: usize = 3;

const METHOD: &str = "medians of repeats in which the ceilings and all classes take turns; a sample \
    repeats a piece of work until its least time is over; matrices have 2048 columns, heads 64 \
    dimensions, vectors 8192 values; a matrix in memory is read on where the sample before stopped, \
    the read bandwidth likewise on the same bytes; attention with one token is four query heads that \
    share keys and values, a prompt's is four tokens of one head; portable code has smaller pieces";

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HwBenchConfig {
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Instruction-set classes.
    pub isas: Vec<Isa>,
    /// Families; none stand for all.
    pub families: Vec<Family>,
    /// What the kernels work on; none stand for all.
    pub subjects: Vec<Subject>,
    /// Small buffers, few and short samples: to see that everything runs.
    pub quick: bool,
    /// Compare the dispatcher's choice with the other classes that are measured.
    pub check: bool,
}

impl Default for HwBenchConfig {
    fn default() -> Self {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if all == 1 { vec![1] } else { vec![1, all] };
        Self {
            threads,
            isas: Isa::available().collect(),
            families: Vec::new(),
            subjects: Vec::new(),
            quick: false,
            check: false,
        }
    }
}

impl HwBenchConfig {
    /// Whether there is a kernel of these families that works on these subjects.
    pub fn measures_something(&self) -> bool {
        Group::all().into_iter().any(|group| group.is_wanted(self))
    }

    /// The numbers of threads and the classes, each once and in order.
    fn axes(&self) -> Result<(Vec<usize>, Vec<Isa>)> {
        let bad = |what: String| Err(EvalError::Config(what));
        let (mut threads, mut isas) = (self.threads.clone(), self.isas.clone());
        threads.sort_unstable();
        threads.dedup();
        isas.sort_unstable();
        isas.dedup();
        let most = EngineConfig::MAX_THREADS;
        if !self.measures_something() {
            return bad("no kernel of these families works on these".into());
        }
        if threads.is_empty() || threads.iter().any(|n| !(1..=most).contains(n)) {
            return bad(format!("kernels are measured with 1..={most} threads"));
        }
        if isas.is_empty() {
            return bad("kernels are measured on at least one instruction set".into());
        }
        match isas.iter().find(|isa| !isa.is_available()) {
            Some(isa) => bad(format!("this CPU has no {}", isa.name())),
            None => Ok((threads, isas)),
        }
    }

    fn sizes(&self, host: &Host, most_threads: usize) -> Sizes {
        // Half of the second level: activations and results need room, too.
        let cache_bytes = second_level_cache_bytes().map_or(256 << 10, |bytes| bytes as usize / 2);
        let quick = self.quick;
        Sizes {
            huge_pages: false,
            memory_bytes: if quick { 32 << 20 } else { affordable_probe_bytes(host) },
            cache_bytes,
            most_threads,
            prompts: if quick { &[96] } else { &[96, 512] },
            depths: if quick { &[512] } else { &[512, 4096, 8192] },
        }
    }

    fn repeat(&self) -> usize {
        if self.quick { 2 } else { 5 }
    }

    /// Least time of a sample.
    fn sample(&self) -> Duration {
        Duration::from_millis(if self.quick { 1 } else { 20 })
    }
}

/// Kernels that share their data.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Group {
    Codec(CodecId),
    Kv(KvType),
    Elementwise,
}

impl Group {
    fn all() -> Vec<Self> {
        let codecs = CodecId::ALL.map(Self::Codec);
        codecs.into_iter().chain(KvType::ALL.map(Self::Kv)).chain([Self::Elementwise]).collect()
    }

    fn of(subject: Subject) -> Self {
        match subject {
            Subject::Codec(codec) => Self::Codec(codec),
            Subject::Kv(kv) => Self::Kv(kv),
            Subject::Operation(_) => Self::Elementwise,
        }
    }

    fn families(self) -> &'static [Family] {
        match self {
            Self::Codec(_) => &[Family::Gemv, Family::SmallM, Family::Gemm],
            Self::Kv(_) => &[Family::Attention],
            Self::Elementwise => &[Family::Elementwise],
        }
    }

    /// Whether some of its kernels are to be measured.
    fn is_wanted(self, config: &HwBenchConfig) -> bool {
        let HwBenchConfig { families, subjects, .. } = config;
        (families.is_empty() || self.families().iter().any(|f| families.contains(f)))
            && (subjects.is_empty() || subjects.iter().any(|&s| Self::of(s) == self))
    }

    fn workload(self, sizes: &Sizes) -> Box<dyn Workload> {
        match self {
            Self::Codec(id) => Box::new(matrix::Matrix::new(Codec::from(id), sizes)),
            Self::Kv(kind) => Box::new(attention::Attention::new(kind, sizes)),
            Self::Elementwise => Box::new(elementwise::Elementwise::new(sizes)),
        }
    }
}

/// Measures the kernels of all families and the ceilings that bound them. With
/// [`HwBenchConfig::check`], cases in which the dispatcher's choice is slower than another class by more
/// than [`TOLERANCE`] are measured again with more repeats, and are reported if they still are.
///
/// # Errors
/// When the configuration names what this CPU does not have, or the user cancels.
pub fn hwbench(config: &HwBenchConfig, progress: &dyn Progress) -> Result<HwBenchReport> {
    let (threads, isas) = config.axes()?;
    let most_threads = threads.last().copied().unwrap_or(1);
    let host = Host::detect();
    let start = Instant::now();
    let mut warnings: Vec<String> = host.busy().into_iter().collect();
    warnings.extend(host.oversubscribed(most_threads));

    let (sizes, repeat) = (config.sizes(&host, most_threads), config.repeat());
    let mut groups = Group::all();
    groups.retain(|group| group.is_wanted(config));
    let rounds = groups.len() * threads.len() * (repeat + 1);
    progress.begin("kernels", rounds as u64, "rounds");
    let mut clock = Clock::new(&isas, &threads, config.sample(), &sizes, progress);
    let mut found = Found::default();
    for group in &groups {
        let mut workload = group.workload(&sizes);
        let mut cases = workload.cases();
        cases.retain(|case| case.is_of(&config.families, &config.subjects));
        clock.measure(&mut *workload, &cases, repeat, &mut found)?;
    }

    let Found { mut rows, ceilings } = found;
    let mut slow_choices = Vec::new();
    if config.check {
        slow_choices = confirmed_slow_choices(&mut rows, TOLERANCE, |suspects| {
            let mut found = Found::default();
            for group in &groups {
                let cases =
                    suspects.iter().copied().filter(|case| Group::of(case.subject) == *group);
                let cases: Vec<Case> = cases.collect();
                if !cases.is_empty() {
                    let mut workload = group.workload(&sizes);
                    clock.measure(&mut *workload, &cases, repeat * MORE_REPEATS, &mut found)?;
                }
            }
            Ok(found.rows)
        })?;
    }
    fill_costs(&mut rows);
    Ok(HwBenchReport {
        schema_version: crate::SCHEMA_VERSION,
        rows,
        ceilings: summary(&ceilings),
        chosen: Isa::detect(),
        checked: config.check,
        tolerance: TOLERANCE,
        slow_choices,
        quick: config.quick,
        repeat,
        sample_ms: config.sample().as_secs_f64() * 1e3,
        memory_bytes: sizes.memory_bytes as u64,
        cache_bytes: sizes.cache_bytes as u64,
        method: METHOD.into(),
        warnings,
        seconds: start.elapsed().as_secs_f64(),
        unix_time_s: unix_time_s(),
        host,
    })
}

/// Each ceiling once: the median of what was measured beside the groups.
fn summary(measured: &[CeilingRow]) -> Vec<CeilingRow> {
    let mut once: Vec<CeilingRow> = Vec::new();
    for row in measured {
        let same = |other: &&CeilingRow| {
            (other.ceiling, other.isa, other.threads) == (row.ceiling, row.isa, row.threads)
        };
        if !once.iter().any(|other| same(&other)) {
            let rates: Vec<f64> = measured.iter().filter(same).map(|row| row.rate).collect();
            once.push(CeilingRow { rate: median(&rates), ..row.clone() });
        }
    }
    once
}
