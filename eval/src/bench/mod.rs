//! Speed of prefill and decoding beside the read bandwidth that bounds it.

mod comparison;
#[cfg(test)]
mod fixtures;
mod interleaved;
mod report;
mod run;
mod table;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use gristmill_formats::Progress;
use gristmill_runtime::{CoarseHead, Engine, EngineConfig, Isa, KvType, Model};

pub use comparison::{BenchDocument, ComparedRow, Comparison};
pub use interleaved::{FileRuns, Interleaved, RunsRow};
pub use report::{
    BenchReport, BenchRow, KernelReport, MIN_SAMPLES_P95, MIN_SAMPLES_P99, Percentiles,
};

use crate::activity::CpuTimes;
use crate::energy::{EnergyMeter, EnergyReport};
use crate::error::{EvalError, Result};
use crate::host::{Host, unix_time_s};
use crate::memory::Memory;
use crate::model_facts::ModelFacts;
use crate::probe::{ReadProbe, affordable_probe_bytes};
use crate::stats::{SplitMix64, median};
use run::{Lane, Point, Run};

/// Most repeats, tokens and so on that a configuration may ask for.
const MAX_COUNT: usize = 1 << 20;
/// Tokens generated before anything is timed: enough to touch every page and wake every thread.
const WARM_UP_TOKENS: usize = 8;

const METHOD: &str = "warm process; tokenizing and detokenizing excluded, greedy sampling included; \
    prompt of fixed pseudo-random tokens; rates are medians over repeats, times are nearest-rank \
    percentiles pooled over repeats; numbers of threads, depths and prompts interleaved; bandwidth is \
    that of read-only streams before and after each repeat, median; energy over the decoded tokens";

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchConfig {
    /// Numbers of threads. There is a row for each of them at each depth with each prompt.
    pub threads: Vec<usize>,
    /// Tokens of the prompts.
    pub prompts: Vec<usize>,
    /// Tokens generated after the first.
    pub r#gen: usize,
    /// Tokens in the context before the prompt.
    pub depths: Vec<usize>,
    /// Repeats of each row.
    pub repeat: usize,
    /// Element type of the key/value cache.
    pub kv: KvType,
    /// Instruction-set class; `None` for the CPU's best.
    pub isa: Option<Isa>,
}

impl Default for BenchConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads: vec![threads],
            prompts: vec![512],
            r#gen: 128,
            depths: vec![0],
            repeat: 5,
            kv: KvType::F16,
            isa: None,
        }
    }
}

impl BenchConfig {
    fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(EvalError::Config(format!("a benchmark needs {what}")));
        if self.threads.is_empty() {
            return bad("a number of threads");
        }
        if self.depths.is_empty() {
            return bad("a depth");
        }
        let no_prompt = self.prompts.is_empty() || self.prompts.contains(&0);
        if no_prompt || self.r#gen == 0 || self.repeat == 0 {
            return bad("a prompt, tokens to generate and a repeat");
        }
        let lists = [&self.threads, &self.prompts, &self.depths];
        let counts = lists.into_iter().flatten().chain([&self.r#gen, &self.repeat]);
        if counts.chain(&lists.map(Vec::len)).any(|&n| n > MAX_COUNT) {
            return bad("counts of at most a million");
        }
        Ok(())
    }

    fn points(&self) -> impl Iterator<Item = Point> {
        let prompts = |&depth| self.prompts.iter().map(move |&prompt| Point { depth, prompt });
        self.depths.iter().flat_map(prompts)
    }

    /// The point that fills most of the context.
    fn deepest(&self) -> Point {
        let points = self.points();
        points.max_by_key(|point| point.filled()).unwrap_or(Point { depth: 0, prompt: 1 })
    }

    /// Positions that a run fills.
    fn positions(&self) -> usize {
        self.deepest().filled() + self.r#gen
    }

    fn engine(&self, threads: usize) -> EngineConfig {
        EngineConfig {
            threads: Some(threads),
            isa: self.isa,
            context: Some(self.positions()),
            kv: self.kv,
            ..EngineConfig::default()
        }
    }
}

/// Measures a model's speed and memory. `open` opens the model; it is called several times, because
/// opening is measured too.
///
/// Memory is sampled in a first round, with one engine at a time, before the bandwidth probe allocates
/// its buffer. Then the numbers of threads, depths and prompts take turns in each repeat, so that a
/// change of the machine's speed meets them all, and bandwidth is probed around each run.
///
/// # Errors
/// When the model cannot be opened, the configuration does not fit it, or the user cancels.
pub fn bench(
    open: &dyn Fn() -> Result<Arc<Model>, String>,
    config: &BenchConfig,
    progress: &dyn Progress,
) -> Result<BenchReport> {
    config.check()?;
    let root = Path::new("/");
    let mut host = Host::detect();
    let start = Instant::now();
    let mut warnings: Vec<String> = host.busy().into_iter().collect();
    warnings.extend(config.threads.iter().max().and_then(|&most| host.oversubscribed(most)));
    let mut memory = Memory::begin();

    let load = || -> Result<(Arc<Model>, f64)> {
        let start = Instant::now();
        let model = open().map_err(EvalError::Open)?;
        Ok((model, milliseconds(start)))
    };
    let (model, load_ms) = load()?;
    let again = (0..config.repeat.min(5)).map(|_| Ok(load()?.1)).collect::<Result<Vec<_>>>()?;
    let load_warm_ms = median(&again);
    memory.sample();

    let points: Vec<Point> = config.points().collect();
    let runs = config.threads.len() * (config.repeat * points.len() + 2);
    progress.begin("benchmark", runs as u64, "runs");
    let tokens = random_tokens(config.deepest().filled(), model.spec().vocab_size);
    let warm_up = |lane: &mut Lane<'_>| {
        let mut run = Run::new(config.deepest());
        lane.measure(&mut run, config.r#gen.min(WARM_UP_TOKENS), None)
    };
    let (mut isa, mut kernels) = (Isa::detect(), Vec::new());
    for &threads in &config.threads {
        stop_if_cancelled(progress)?;
        let engine = Engine::new(Arc::clone(&model), &config.engine(threads))?;
        memory.sample();
        let mut lane = Lane::new(engine, &tokens);
        warm_up(&mut lane)?;
        memory.sample();
        isa = lane.engine().isa();
        kernels = kernel_reports(lane.engine());
        progress.advance(1);
    }
    memory.end();

    let weight_slices = model.weight_slices();
    let probe = ReadProbe::new(affordable_probe_bytes(&host));
    warnings.extend(doubts_of_probe(&probe, &host));
    let mut lanes = Vec::new();
    for &threads in &config.threads {
        stop_if_cancelled(progress)?;
        let engine = Engine::new(Arc::clone(&model), &config.engine(threads))?;
        let mut lane = Lane::new(engine, &tokens);
        warm_up(&mut lane)?;
        progress.advance(1);
        let runs: Vec<Run> = points.iter().map(|&point| Run::new(point)).collect();
        lanes.push((lane, runs));
    }
    let (energy, mut energy_report) = open_energy(root);
    if let Some(meter) = &energy {
        energy_report.idle_watts = meter.idle_watts();
    }
    let times = CpuTimes::now(root);
    for _ in 0..config.repeat {
        for (lane, runs) in &mut lanes {
            for run in runs {
                stop_if_cancelled(progress)?;
                lane.probe(run, &probe, &weight_slices);
                lane.measure(run, config.r#gen, energy.as_ref())?;
                lane.probe(run, &probe, &weight_slices);
                progress.advance(1);
            }
        }
    }
    let activity = times.activity(root);
    warnings.extend(activity.disturbances());
    host.finish();

    let mut rows: Vec<BenchRow> = Vec::new();
    for (lane, runs) in lanes {
        let row = |run| lane.row(run, config, energy_report.idle_watts);
        rows.extend(runs.into_iter().map(row));
    }
    warnings.extend(disagreements(&rows));
    Ok(BenchReport {
        schema_version: crate::SCHEMA_VERSION,
        output_blake3: rows.first().map(|row| row.output_blake3.clone()).unwrap_or_default(),
        rows,
        load_ms,
        load_warm_ms,
        residency: model.placement().residency.name().into(),
        copied_bytes: model.placement().copied_bytes,
        streamed_bytes: model.placement().streamed_bytes,
        coarse_head_bytes: model.coarse_head().map(CoarseHead::bytes),
        coarse_head_ms: model.coarse_head().map(|coarse| coarse.seconds() * 1e3),
        memory,
        energy: energy_report,
        ttft: None,
        sustained: None,
        prediction: None,
        activity,
        isa: isa.name().into(),
        kernels,
        kv: config.kv.name().into(),
        prompt: config.prompts[0],
        r#gen: config.r#gen,
        depth: config.depths[0],
        repeat: config.repeat,
        probe_bytes: probe.bytes(),
        probe_huge_page_bytes: probe.huge_page_bytes(),
        model: ModelFacts::of(&model),
        method: METHOD.into(),
        warnings,
        seconds: start.elapsed().as_secs_f64(),
        unix_time_s: unix_time_s(),
        host,
    })
}

/// Why the probe's figures may not be what the model meets.
fn doubts_of_probe(probe: &ReadProbe, host: &Host) -> Vec<String> {
    let mut doubts = Vec::new();
    if probe.huge_page_bytes().is_some_and(|huge| huge > probe.bytes() / 2) {
        doubts.push(
            "the memory probe's buffer is in huge pages, a mapped model is not: it reads faster \
             than the model can be read"
                .into(),
        );
    }
    if let Some(cache) = host.last_level_cache_bytes
        && probe.bytes() < 2 * cache
    {
        doubts.push(format!(
            "the memory probe's buffer of {} MiB may stay in the cache of {} MiB: bandwidth_gb_s may \
             be above what memory delivers",
            probe.bytes() >> 20,
            cache >> 20
        ));
    }
    doubts
}

/// The machine's counter of energy, if it suits windows as short as these.
fn open_energy(root: &Path) -> (Option<EnergyMeter>, EnergyReport) {
    let mut report = EnergyReport::default();
    match EnergyMeter::open(&root.join("sys")) {
        Ok(meter) if meter.suits(std::time::Duration::ZERO) => {
            report.source = Some(meter.name().into());
            return (Some(meter), report);
        }
        Ok(meter) => {
            let source = meter.name();
            report.reason = Some(format!(
                "{source} is too slow for runs of seconds; a sustained run of minutes can use it"
            ));
        }
        Err(reason) => report.reason = Some(reason),
    }
    (None, report)
}

/// Greedy output that differs from run to run: it is the same work for every repeat and every number of
/// threads, and must be the same tokens.
fn disagreements(rows: &[BenchRow]) -> Vec<String> {
    let mut found = Vec::new();
    for row in rows {
        let first = rows.iter().find(|r| (r.depth, r.prompt) == (row.depth, row.prompt));
        if !row.repeats_agree || first.is_some_and(|first| first.output_blake3 != row.output_blake3)
        {
            found.push(format!(
                "depth {}, prompt {}, {} threads: the generated tokens are not those of the first run",
                row.depth, row.prompt, row.threads
            ));
        }
    }
    found
}

fn stop_if_cancelled(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() { Err(EvalError::Cancelled) } else { Ok(()) }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Tokens whose embeddings lie all over the vocabulary, the same in every run.
pub(crate) fn random_tokens(count: usize, vocab_size: u32) -> Vec<u32> {
    let mut random = SplitMix64::new(0);
    (0..count).map(|_| random.below(vocab_size as usize) as u32).collect()
}

fn kernel_reports(engine: &Engine) -> Vec<KernelReport> {
    let uses = engine.kernel_uses().into_iter();
    uses.map(|u| KernelReport {
        codec: u.codec.name().into(),
        decode: u.decode,
        prefill: u.prefill,
    })
    .collect()
}
