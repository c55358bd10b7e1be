//! Speed of prefill and decoding beside the read bandwidth that bounds it.

mod report;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gristmill_formats::Progress;
use gristmill_runtime::text::{Sampler, SamplerConfig};
use gristmill_runtime::{CoarseHead, Engine, EngineConfig, HeadUse, Isa, KvType, Model};

pub use report::{BenchReport, BenchRow, KernelReport, Percentiles};

use crate::error::{EvalError, Result};
use crate::host::{Host, Memory, reset_peak_memory};
use crate::model_facts::{ModelFacts, kv_bytes_read};
use crate::probe::{ReadProbe, affordable_probe_bytes, probe_slices};
use crate::stats::{SplitMix64, median, percentile};

/// Most repeats, tokens and so on that a configuration may ask for.
const MAX_COUNT: usize = 1 << 20;
/// Tokens generated before anything is timed: enough to touch every page and wake every thread.
const WARM_UP_TOKENS: usize = 8;

const METHOD: &str = "warm process; tokenizing and detokenizing excluded, greedy sampling included; \
    prompt of fixed pseudo-random tokens; rates are medians over repeats, times are nearest-rank \
    percentiles pooled over repeats; numbers of threads interleaved; bandwidth is that of read-only \
    streams before and after each repeat, median";

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchConfig {
    /// Numbers of threads; one row each.
    pub threads: Vec<usize>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated after the first.
    pub r#gen: usize,
    /// Tokens in the context before the prompt.
    pub depth: usize,
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
            prompt: 512,
            r#gen: 128,
            depth: 0,
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
        if self.prompt == 0 || self.r#gen == 0 || self.repeat == 0 {
            return bad("a prompt, tokens to generate and a repeat");
        }
        let counts = [self.prompt, self.r#gen, self.depth, self.repeat, self.threads.len()];
        if counts.iter().any(|&n| n > MAX_COUNT) {
            return bad("counts of at most a million");
        }
        Ok(())
    }

    /// Positions that a run fills.
    fn positions(&self) -> usize {
        self.depth + self.prompt + self.r#gen
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
/// its buffer. Then the numbers of threads take turns in each repeat, so that a change of the machine's
/// speed meets them all, and bandwidth is probed around each run.
///
/// # Errors
/// When the model cannot be opened, the configuration does not fit it, or the user cancels.
pub fn bench(
    open: &dyn Fn() -> Result<Arc<Model>, String>,
    config: &BenchConfig,
    progress: &dyn Progress,
) -> Result<BenchReport> {
    config.check()?;
    let host = Host::detect();
    let start = Instant::now();
    let mut warnings: Vec<String> = host.busy().into_iter().collect();
    warnings.extend(config.threads.iter().max().and_then(|&most| host.oversubscribed(most)));
    let mut memory = Memory { resident_peak_was_reset: reset_peak_memory(), ..Memory::default() };

    let load = || -> Result<(Arc<Model>, f64)> {
        let start = Instant::now();
        let model = open().map_err(EvalError::Open)?;
        Ok((model, milliseconds(start)))
    };
    let (model, load_ms) = load()?;
    let again = (0..config.repeat.min(5)).map(|_| Ok(load()?.1)).collect::<Result<Vec<_>>>()?;
    let load_warm_ms = median(&again);
    memory.sample();

    let runs = config.threads.len() * (config.repeat + 2);
    progress.begin("benchmark", runs as u64, "runs");
    let tokens = random_tokens(config.depth + config.prompt, model.spec().vocab_size);
    let (mut isa, mut kernels) = (Isa::detect(), Vec::new());
    for &threads in &config.threads {
        stop_if_cancelled(progress)?;
        let mut engine = Engine::new(Arc::clone(&model), &config.engine(threads))?;
        memory.sample();
        let mut run = Run::new(config, &tokens);
        run.measure(&mut engine, config.r#gen.min(WARM_UP_TOKENS))?;
        memory.sample();
        isa = engine.isa();
        kernels = kernel_reports(&engine);
        progress.advance(1);
    }

    let weight_slices = model.weight_slices();
    let probe = ReadProbe::new(affordable_probe_bytes(&host));
    if probe.huge_page_bytes().is_some_and(|huge| huge > probe.bytes() / 2) {
        warnings.push(
            "the memory probe's buffer is in huge pages, a mapped model is not: it reads faster \
             than the model can be read"
                .into(),
        );
    }
    if let Some(cache) = host.last_level_cache_bytes
        && probe.bytes() < 2 * cache
    {
        warnings.push(format!(
            "the memory probe's buffer of {} MiB may stay in the cache of {} MiB: bandwidth_gb_s may \
             be above what memory delivers",
            probe.bytes() >> 20,
            cache >> 20
        ));
    }
    let mut lanes = Vec::new();
    for &threads in &config.threads {
        stop_if_cancelled(progress)?;
        let mut engine = Engine::new(Arc::clone(&model), &config.engine(threads))?;
        let mut run = Run::new(config, &tokens);
        run.measure(&mut engine, config.r#gen.min(WARM_UP_TOKENS))?;
        progress.advance(1);
        lanes.push(Lane {
            engine,
            run: Run::new(config, &tokens),
            memory: vec![],
            weights: vec![],
        });
    }
    for _ in 0..config.repeat {
        for lane in &mut lanes {
            stop_if_cancelled(progress)?;
            lane.probe(&probe, &weight_slices);
            lane.run.measure(&mut lane.engine, config.r#gen)?;
            lane.probe(&probe, &weight_slices);
            progress.advance(1);
        }
    }

    Ok(BenchReport {
        schema_version: crate::SCHEMA_VERSION,
        rows: lanes.into_iter().map(|lane| lane.row(&model, config)).collect(),
        load_ms,
        load_warm_ms,
        residency: model.placement().residency.name().into(),
        copied_bytes: model.placement().copied_bytes,
        streamed_bytes: model.placement().streamed_bytes,
        coarse_head_bytes: model.coarse_head().map(CoarseHead::bytes),
        coarse_head_ms: model.coarse_head().map(|coarse| coarse.seconds() * 1e3),
        memory,
        isa: isa.name().into(),
        kernels,
        kv: config.kv.name().into(),
        prompt: config.prompt,
        r#gen: config.r#gen,
        depth: config.depth,
        repeat: config.repeat,
        probe_bytes: probe.bytes(),
        probe_huge_page_bytes: probe.huge_page_bytes(),
        model: ModelFacts::of(&model),
        method: METHOD.into(),
        warnings,
        seconds: start.elapsed().as_secs_f64(),
        unix_time_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        host,
    })
}

fn stop_if_cancelled(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() { Err(EvalError::Cancelled) } else { Ok(()) }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Tokens whose embeddings lie all over the vocabulary, the same in every run.
fn random_tokens(count: usize, vocab_size: u32) -> Vec<u32> {
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

/// Times of one engine's runs.
struct Run<'a> {
    config: &'a BenchConfig,
    /// Tokens of the depth, then of the prompt.
    tokens: &'a [u32],
    prefill_s: Vec<f64>,
    ttft_ms: Vec<f64>,
    /// Mean time of a token in each repeat.
    decode_s: Vec<f64>,
    tpot_ms: Vec<f64>,
    /// Of the two-stage head while decoding.
    head_use: HeadUse,
}

impl<'a> Run<'a> {
    fn new(config: &'a BenchConfig, tokens: &'a [u32]) -> Self {
        let (prefill_s, ttft_ms, decode_s, tpot_ms) = (vec![], vec![], vec![], vec![]);
        let head_use = HeadUse::default();
        Self { config, tokens, prefill_s, ttft_ms, decode_s, tpot_ms, head_use }
    }

    /// One prompt and `count` tokens after the first.
    fn measure(&mut self, engine: &mut Engine, count: usize) -> Result<()> {
        let vocab_size = engine.model().spec().vocab_size as usize;
        let mut sampler = Sampler::new(SamplerConfig::greedy(), vocab_size)
            .map_err(|error| EvalError::Config(error.to_string()))?;
        let depth = self.config.depth;
        // Going back keeps what was computed for the depth; where that is impossible, compute it anew.
        if depth == 0 || engine.position() < depth || engine.rewind(depth).is_err() {
            engine.reset();
            if depth > 0 {
                engine.prefill(&self.tokens[..depth])?;
            }
        }
        let start = Instant::now();
        let logits = engine.prefill_top(&self.tokens[depth..], sampler.reach())?;
        self.prefill_s.push(start.elapsed().as_secs_f64());
        let mut token = sampler.sample(logits);
        self.ttft_ms.push(milliseconds(start));

        let used = engine.head_use();
        let start = Instant::now();
        let mut before = start;
        for _ in 0..count {
            token = sampler.sample(engine.decode_top(token, sampler.reach())?);
            let now = Instant::now();
            self.tpot_ms.push((now - before).as_secs_f64() * 1e3);
            before = now;
        }
        self.decode_s.push((before - start).as_secs_f64() / count as f64);
        let used = engine.head_use().since(used);
        self.head_use.tokens += used.tokens;
        self.head_use.panels += used.panels;
        Ok(())
    }
}

/// One number of threads.
struct Lane<'a> {
    engine: Engine,
    run: Run<'a>,
    /// Bandwidth of memory and over the weights, in GB/s.
    memory: Vec<f64>,
    weights: Vec<f64>,
}

impl Lane<'_> {
    fn probe(&mut self, memory: &ReadProbe, weights: &[&[u8]]) {
        let threads = self.engine.threads();
        self.memory.push(memory.measure(threads).gb_s);
        self.weights.push(probe_slices(threads, weights).gb_s);
    }

    fn row(mut self, model: &Model, config: &BenchConfig) -> BenchRow {
        let rates = |seconds: &[f64], tokens: usize| -> Vec<f64> {
            seconds.iter().map(|s| tokens as f64 / s).collect()
        };
        let percentiles = |values: &mut [f64]| Percentiles {
            p50: percentile(values, 0.5),
            p95: percentile(values, 0.95),
        };
        let decode_tok_s_by_repeat = rates(&self.run.decode_s, 1);
        let prefill_tok_s_by_repeat = rates(&self.run.prefill_s, config.prompt);
        let decode_tok_s = median(&decode_tok_s_by_repeat);
        let mean_position = config.depth + config.prompt + (config.r#gen - 1) / 2;
        let fine_head_share = model.fine_head_share(self.run.head_use);
        let weight_bytes_per_token = model.bytes_per_token(fine_head_share);
        let kv_bytes_per_token = kv_bytes_read(model, config.kv, mean_position as u64);
        let bytes_per_token = weight_bytes_per_token + kv_bytes_per_token;
        let achieved_gb_s = bytes_per_token as f64 * decode_tok_s / 1e9;
        let (bandwidth_gb_s, model_sized) = (median(&self.memory), median(&self.weights));
        BenchRow {
            threads: self.engine.threads(),
            decode_tok_s,
            decode_tok_s_by_repeat,
            prefill_tok_s: median(&prefill_tok_s_by_repeat),
            prefill_tok_s_by_repeat,
            ttft_ms: percentiles(&mut self.run.ttft_ms),
            tpot_ms: percentiles(&mut self.run.tpot_ms),
            bytes_per_token,
            weight_bytes_per_token,
            fine_head_share,
            kv_bytes_per_token,
            achieved_gb_s,
            bandwidth_gb_s,
            bandwidth_model_sized_gb_s: model_sized,
            share_of_bandwidth: achieved_gb_s / bandwidth_gb_s,
            share_of_model_sized_bandwidth: achieved_gb_s / model_sized,
            predicted_decode_tok_s: model_sized * 1e9 / bytes_per_token as f64,
        }
    }
}
