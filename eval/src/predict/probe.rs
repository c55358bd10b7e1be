//! Probing this machine. The parts of a forward pass are measured where they can be told apart: matrices
//! of each codec by themselves, everything else on small random models through the engine that users run.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gristmill_formats::Progress;
use gristmill_formats::codec::{Codec, CodecId};
use gristmill_formats::container::PackedFile;
use gristmill_kernels::Kernels;
use gristmill_runtime::text::{Sampler, SamplerConfig};
use gristmill_runtime::{Engine, EngineConfig, Isa, KvType, Model, Pool};

use super::machine::{
    AttentionRate, GemmRate, GemvRate, Interval, Machine, Origin, Overheads, ReadRate,
};
use super::shape::ModelShape;
use crate::error::{EvalError, Result};
use crate::host::{Host, second_level_cache_bytes, unix_time_s};
use crate::hwbench::case::{Case, Family, Origin as From, Subject};
use crate::hwbench::matrix::Matrix;
use crate::hwbench::workload::{Sizes, Workload};
use crate::probe::{ReadProbe, affordable_probe_bytes};
use crate::synthetic::{Size, write_random};

/// Samples of each figure; their median counts, their extremes are the interval.
const SAMPLES: usize = 5;
/// Least time of a sample.
const SAMPLE: Duration = Duration::from_millis(15);
/// Working sets below that of memory, where they are smaller by half at least.
const WORKING_SETS: [u64; 3] = [8 << 20, 64 << 20, 192 << 20];
/// Tokens of a prompt, in one chunk.
const PROMPT: usize = 512;
/// Depth at which attention is measured.
const DEPTH: usize = 2048;
/// Codec of the small models.
const CODEC: CodecId = CodecId::Q4;
/// Cache of the small models when attention is not what is measured.
const OVERHEADS_KV: KvType = KvType::F16;
/// Bytes of the file that storage is measured with.
const STORAGE_BYTES: usize = 128 << 20;

/// What a prediction needs to know of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Needs {
    /// Codecs of the matrices.
    pub codecs: Vec<CodecId>,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Type of the cache.
    pub kv: KvType,
    /// Whether weights will be in huge pages.
    pub huge_pages: bool,
}

impl Machine {
    /// A machine of which nothing is known yet but its name.
    pub fn this() -> Self {
        let host = Host::detect();
        let unix_time_s = unix_time_s();
        Self {
            schema_version: crate::SCHEMA_VERSION,
            name: host.cpu.clone().unwrap_or_else(|| "this machine".into()),
            memory_bytes: host.memory_bytes,
            origin: Origin::Probed { host: Box::new(host), unix_time_s },
            reads: vec![],
            gemv: vec![],
            gemm: vec![],
            overheads: vec![],
            attention: vec![],
            storage_gb_s: None,
        }
    }

    /// Probes what is needed and not known; returns whether there was anything. Files are written to
    /// `scratch` and removed.
    ///
    /// # Errors
    /// When a file cannot be written, memory is short, or the user cancels.
    pub fn probe(
        &mut self,
        needs: &Needs,
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let mut threads = needs.threads.clone();
        threads.sort_unstable();
        threads.dedup();
        let host = Host::detect();
        let sizes = working_sets(affordable_probe_bytes(&host) as u64, needs.huge_pages);
        let missing: Vec<Task> = self.missing(needs, &threads, &sizes);
        if missing.is_empty() {
            return Ok(false);
        }
        progress.begin("probing this machine", missing.len() as u64, "rates");
        for task in missing {
            if progress.cancelled() {
                return Err(EvalError::Cancelled);
            }
            self.measure(task, &threads, &sizes, scratch)?;
            progress.advance(1);
        }
        Ok(true)
    }

    fn missing(&self, needs: &Needs, threads: &[usize], sizes: &[Buffer]) -> Vec<Task> {
        let mut tasks = Vec::new();
        if self.storage_gb_s.is_none() {
            tasks.push(Task::Storage);
        }
        if threads.iter().any(|t| !self.reads.iter().any(|r| r.threads == *t)) {
            tasks.push(Task::Reads);
        }
        for &codec in &needs.codecs {
            for &buffer in sizes {
                let known = |t: &usize| {
                    let is = |r: &GemvRate| {
                        (r.codec, r.threads, r.huge_pages) == (codec, *t, buffer.huge_pages)
                            && r.bytes == buffer.bytes
                    };
                    self.gemv.iter().any(is)
                };
                if !threads.iter().all(known) {
                    tasks.push(Task::Gemv(codec, buffer));
                }
            }
            let known = |t: &usize| self.gemm(codec, *t, super::machine::Case::Median).is_some();
            if !threads.iter().all(known) {
                tasks.push(Task::Gemm(codec));
            }
        }
        let overheads = threads.iter().any(|&t| self.overheads(t).is_none());
        let mut caches = vec![needs.kv];
        // What is beside attention is told apart by its rate.
        if overheads && needs.kv != OVERHEADS_KV {
            caches.push(OVERHEADS_KV);
        }
        for kv in caches {
            if threads.iter().any(|&t| self.attention(kv, t).is_none()) {
                tasks.push(Task::Attention(kv));
            }
        }
        if overheads {
            tasks.push(Task::Overheads);
        }
        tasks
    }

    fn measure(
        &mut self,
        task: Task,
        threads: &[usize],
        sizes: &[Buffer],
        scratch: &Path,
    ) -> Result<()> {
        match task {
            Task::Storage => self.storage_gb_s = storage(scratch)?,
            Task::Reads => {
                let most = sizes.iter().map(|b| b.bytes).max().unwrap_or_default();
                let probe = ReadProbe::new(most as usize);
                self.reads = threads.iter().map(|&t| read_rate(&probe, t)).collect();
            }
            Task::Gemv(codec, buffer) => {
                let is = |r: &GemvRate| {
                    (r.codec, r.bytes, r.huge_pages) == (codec, buffer.bytes, buffer.huge_pages)
                };
                self.gemv.retain(|r| !is(r));
                let mut matrix = matrix(codec, buffer, threads);
                for &threads in threads {
                    let gb_s = product_rate(&mut matrix, codec, Family::Gemv, 1, threads);
                    let Buffer { bytes, huge_pages } = buffer;
                    self.gemv.push(GemvRate { codec, threads, bytes, huge_pages, gb_s });
                }
            }
            Task::Gemm(codec) => {
                self.gemm.retain(|r| r.codec != codec);
                let buffer = Buffer { bytes: 8 << 20, huge_pages: false };
                let mut matrix = matrix(codec, buffer, threads);
                for &threads in threads {
                    let gmac_s = product_rate(&mut matrix, codec, Family::Gemm, PROMPT, threads);
                    self.gemm.push(GemmRate { codec, threads, tokens: PROMPT, gmac_s });
                }
            }
            Task::Overheads => {
                let models = SmallModels::new(scratch)?;
                let of = |&threads: &usize| {
                    let attention = self.attention(OVERHEADS_KV, threads);
                    models.overheads(attention.expect("it is probed before"))
                };
                self.overheads = threads.iter().map(of).collect::<Result<_>>()?;
            }
            Task::Attention(kv) => {
                let models = SmallModels::new(scratch)?;
                self.attention.retain(|a| a.kv != kv);
                for &threads in threads {
                    self.attention.push(models.attention(kv, threads)?);
                }
            }
        }
        Ok(())
    }
}

/// A kind of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buffer {
    bytes: u64,
    huge_pages: bool,
}

/// Something to measure.
#[derive(Debug, Clone, Copy)]
enum Task {
    Storage,
    Reads,
    Gemv(CodecId, Buffer),
    Gemm(CodecId),
    Overheads,
    Attention(KvType),
}

/// Small ones as files are mapped; the one that no cache holds in the pages that it will have.
fn working_sets(memory: u64, huge_pages: bool) -> Vec<Buffer> {
    let small = WORKING_SETS.into_iter().filter(|&bytes| 2 * bytes <= memory);
    let small = small.map(|bytes| Buffer { bytes, huge_pages: false });
    small.chain([Buffer { bytes: memory, huge_pages }]).collect()
}

fn read_rate(probe: &ReadProbe, threads: usize) -> ReadRate {
    let samples: Vec<f64> = (0..SAMPLES).map(|_| probe.measure(threads).gb_s).collect();
    ReadRate { threads, bytes: probe.bytes(), gb_s: Interval::of(&samples) }
}

fn matrix(codec: CodecId, buffer: Buffer, threads: &[usize]) -> Matrix {
    let sizes = Sizes {
        memory_bytes: buffer.bytes as usize,
        huge_pages: buffer.huge_pages,
        cache_bytes: second_level_cache_bytes().map_or(256 << 10, |bytes| bytes as usize / 2),
        most_threads: threads.iter().copied().max().unwrap_or(1),
        prompts: &[PROMPT],
        depths: &[],
    };
    Matrix::new(Codec::from(codec), &sizes)
}

/// 1e9 bytes or products per second.
fn product_rate(
    matrix: &mut Matrix,
    codec: CodecId,
    family: Family,
    tokens: usize,
    threads: usize,
) -> Interval {
    let kernels = Kernels::for_isa(Isa::detect()).expect("the detected class is there");
    let subject = Subject::Codec(codec);
    let case = Case { family, subject, tokens, depth: None, from: From::Memory };
    let mut pool = Pool::new(threads);
    let mut sample = |least: Duration| {
        let start = Instant::now();
        let mut done = 0;
        loop {
            done += matrix.run(&case, kernels, &mut pool);
            let elapsed = start.elapsed();
            if elapsed >= least {
                return done as f64 / elapsed.as_secs_f64() / 1e9;
            }
        }
    };
    sample(SAMPLE);
    Interval::of(&[(); SAMPLES].map(|()| sample(SAMPLE)))
}

/// Reading a file that is not in memory; `None` where the system cannot be told to drop it.
fn storage(scratch: &Path) -> Result<Option<Interval>> {
    let path = scratch.join("storage-probe");
    let failed = |error: std::io::Error| {
        EvalError::Config(format!("{}: storage cannot be probed: {error}", path.display()))
    };
    let result = (|| {
        let mut piece = vec![0u8; 1 << 20];
        let mut random = crate::stats::SplitMix64::new(5);
        // Not zero, which some storage does not keep.
        piece.iter_mut().zip(random.bytes(1 << 20)).for_each(|(to, byte)| *to = byte);
        let mut samples = Vec::new();
        fs::write(&path, piece.repeat(STORAGE_BYTES >> 20)).map_err(failed)?;
        let mut file = fs::File::open(&path).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        for _ in 0..3 {
            if !crate::file_cache::drop_pages(&file) {
                return Ok(None);
            }
            let start = Instant::now();
            std::io::Seek::rewind(&mut file).map_err(failed)?;
            while file.read(&mut piece).map_err(failed)? > 0 {}
            samples.push(STORAGE_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
        Ok(Some(Interval::of(&samples)))
    })();
    // What cannot be removed is left in a directory for such files.
    let _ = fs::remove_file(&path);
    result
}

/// Models so small that what is beside their products shows.
struct SmallModels {
    narrow: Arc<Model>,
    wide: Arc<Model>,
    /// With many tokens to choose from.
    wordy: Arc<Model>,
    /// With much attention.
    attentive: Arc<Model>,
}

/// Times of an engine, in seconds per token.
struct Times {
    decode: Interval,
    prompt: Interval,
}

impl SmallModels {
    fn new(scratch: &Path) -> Result<Self> {
        let size = |d_model, layers, heads, kv_heads, d_ff| Size {
            d_model,
            layers,
            heads,
            kv_heads,
            head_dim: 64,
            d_ff,
        };
        let model = |name: &str, size: Size, vocab: u32| -> Result<Arc<Model>> {
            let path = scratch.join(format!("{name}-probe.grist"));
            let spec = size.spec(vocab, 2 * DEPTH as u32);
            write_random(&path, name, spec, &Codec::from(CODEC))?;
            let opened = PackedFile::open(&path).map_err(gristmill_runtime::RuntimeError::from);
            // The mapping keeps what it needs.
            let removed = fs::remove_file(&path);
            let model = Model::load(Arc::new(opened?))?;
            removed.map_err(|error| EvalError::Config(format!("{}: {error}", path.display())))?;
            Ok(Arc::new(model))
        };
        Ok(Self {
            narrow: model("narrow", size(128, 8, 8, 2, 128), 64)?,
            wide: model("wide", size(2048, 3, 1, 1, 64), 64)?,
            wordy: model("wordy", size(64, 1, 1, 1, 64), 1 << 16)?,
            attentive: model("attentive", size(64, 2, 12, 4, 64), 64)?,
        })
    }

    /// Two unknowns from two models: what a stage costs, and a column of its input.
    fn overheads(&self, attention: &AttentionRate) -> Result<Overheads> {
        let threads = attention.threads;
        let rate = {
            let buffer = Buffer { bytes: 1 << 20, huge_pages: false };
            let mut matrix = matrix(CODEC, buffer, &[threads]);
            let gemv = product_rate(&mut matrix, CODEC, Family::Gemv, 1, threads);
            let gemm = product_rate(&mut matrix, CODEC, Family::Gemm, PROMPT, threads);
            (gemv.mid * 1e9, gemm.mid * 1e9)
        };
        let attention = (attention.decode_gmac_s.mid * 1e9, attention.prompt_gmac_s.mid * 1e9);
        let beside = |model: &Arc<Model>| -> Result<(ModelShape, Times)> {
            let shape = ModelShape::of(&**model.source())?;
            let times = time(model, OVERHEADS_KV, threads, 0)?;
            let (prompt, tokens) = (PROMPT as u64, TOKENS as u64);
            let macs = |first, count| shape.attention_macs(first, count) as f64 / count as f64;
            let products =
                shape.weight_bytes_per_token as f64 / rate.0 + macs(prompt, tokens) / attention.0;
            let prompt_products =
                shape.prompt_macs() as f64 / rate.1 + macs(0, prompt) / attention.1;
            let less = |s: Interval, seconds: f64| {
                let less = |x: f64| (x - seconds).max(0.0);
                Interval { low: less(s.low), mid: less(s.mid), high: less(s.high) }
            };
            let decode = less(times.decode, products);
            Ok((shape, Times { decode, prompt: less(times.prompt, prompt_products) }))
        };
        let (narrow, narrow_times) = beside(&self.narrow)?;
        let (wide, wide_times) = beside(&self.wide)?;
        let (wordy, wordy_times) = beside(&self.wordy)?;
        let pairs = |shape: &ModelShape, of: fn(&ModelShape) -> usize| {
            (of(shape) as f64, shape.columns() as f64)
        };
        let solve = |of: fn(&ModelShape) -> usize, time: fn(&Times) -> Interval| {
            let [narrow, wide] = [(&narrow, &narrow_times), (&wide, &wide_times)]
                .map(|(shape, times)| (pairs(shape, of), time(times)));
            solve_two(narrow, wide)
        };
        let (stage, column) = solve(ModelShape::stages, |t| t.decode);
        let (layer, prompt_column) = solve(ModelShape::layers, |t| t.prompt);
        let known = wordy.stages() as f64 * stage.mid + wordy.columns() as f64 * column.mid;
        let vocab = f64::from(wordy.spec.vocab_size);
        let per_entry = |x: f64| (x - known).max(0.0) / vocab;
        let rest = wordy_times.decode;
        let vocab = Interval {
            low: per_entry(rest.low),
            mid: per_entry(rest.mid),
            high: per_entry(rest.high),
        };
        Ok(Overheads {
            threads,
            barrier_us: barrier(threads).scaled(1e6),
            stage_us: stage.scaled(1e6),
            column_ns: column.scaled(1e9),
            vocab_ns: vocab.scaled(1e9),
            prompt_layer_us: layer.scaled(1e6),
            prompt_column_ns: prompt_column.scaled(1e9),
        })
    }

    fn attention(&self, kv: KvType, threads: usize) -> Result<AttentionRate> {
        let shape = ModelShape::of(&**self.attentive.source())?;
        let shallow = time(&self.attentive, kv, threads, 0)?;
        let deep = time(&self.attentive, kv, threads, DEPTH)?;
        // Of a prompt at the start and of tokens behind it there is attention, too.
        let (prompt, depth) = (PROMPT as u64, DEPTH as u64);
        let macs =
            |first: u64, count: u64| shape.attention_macs(first, count) as f64 / count as f64;
        let rate = |macs: f64, deep: Interval, shallow: Interval| {
            let rate = |deep: f64| macs / (deep - shallow.mid).max(1e-9) / 1e9;
            Interval { low: rate(deep.high), mid: rate(deep.mid), high: rate(deep.low) }
        };
        let decode = macs(depth + prompt, TOKENS as u64) - macs(prompt, TOKENS as u64);
        Ok(AttentionRate {
            kv,
            threads,
            decode_gmac_s: rate(decode, deep.decode, shallow.decode),
            prompt_gmac_s: rate(macs(depth, prompt) - macs(0, prompt), deep.prompt, shallow.prompt),
        })
    }
}

/// Tokens of a sample of decoding.
const TOKENS: usize = 64;

/// Seconds per token of decoding and of a prompt, behind `depth` tokens.
fn time(model: &Arc<Model>, kv: KvType, threads: usize, depth: usize) -> Result<Times> {
    let context = Some(depth + PROMPT + TOKENS);
    let config = EngineConfig { threads: Some(threads), context, kv, ..EngineConfig::default() };
    let mut engine = Engine::new(Arc::clone(model), &config)?;
    let vocab = model.spec().vocab_size;
    let tokens = vec![1u32; depth.max(PROMPT)];
    let mut sampler = Sampler::new(SamplerConfig::greedy(), vocab as usize)
        .map_err(|error| EvalError::Config(error.to_string()))?;
    let (mut prompts, mut decodes) = (Vec::new(), Vec::new());
    if depth > 0 {
        engine.prefill(&tokens[..depth])?;
    }
    for round in 0..=SAMPLES {
        engine.rewind(depth)?;
        let start = Instant::now();
        engine.prefill(&tokens[..PROMPT])?;
        let prompt = start.elapsed().as_secs_f64() / PROMPT as f64;
        let start = Instant::now();
        for _ in 0..TOKENS {
            sampler.sample(engine.decode_top(1, sampler.reach())?);
        }
        let decode = start.elapsed().as_secs_f64() / TOKENS as f64;
        // The first round touches pages and wakes threads.
        if round > 0 {
            prompts.push(prompt);
            decodes.push(decode);
        }
    }
    Ok(Times { decode: Interval::of(&decodes), prompt: Interval::of(&prompts) })
}

/// Seconds of an empty stage.
fn barrier(threads: usize) -> Interval {
    const STAGES: usize = 2000;
    let mut pool = Pool::new(threads);
    let (mut states, mut items) = (vec![(); threads], vec![0u64; 4 * threads]);
    let mut sample = || {
        let start = Instant::now();
        for _ in 0..STAGES {
            pool.for_each(&mut states, &mut items, 1, |(), i, item| item[0] = i as u64);
        }
        start.elapsed().as_secs_f64() / STAGES as f64
    };
    sample();
    Interval::of(&[(); SAMPLES].map(|()| sample()))
}

/// Solves `a x + b y = t` for `x` and `y` from two such equations, medians first; the extremes of `x`
/// come with those of the first time, `y` staying. Noise must not make either negative.
fn solve_two(
    first: ((f64, f64), Interval),
    second: ((f64, f64), Interval),
) -> (Interval, Interval) {
    let (((a, b), t), ((c, d), u)) = (first, second);
    let determinant = a * d - b * c;
    let mut x = ((t.mid * d - u.mid * b) / determinant).max(0.0);
    let mut y = ((a * u.mid - c * t.mid) / determinant).max(0.0);
    if x == 0.0 {
        y = u.mid / d;
    } else if y == 0.0 {
        x = t.mid / a;
    }
    let x_at = |t: f64| ((t - b * y) / a).max(0.0);
    let x = Interval { low: x_at(t.low), mid: x, high: x_at(t.high) };
    (x, Interval { low: y, mid: y, high: y })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_equations_are_solved() {
        let spread = |mid: f64| Interval { low: mid, mid, high: mid };
        // 10 x + 100 y and 5 x + 1000 y with x = 3, y = 0.5.
        let (x, y) = solve_two(((10.0, 100.0), spread(80.0)), ((5.0, 1000.0), spread(515.0)));
        assert!((x.mid - 3.0).abs() < 1e-12 && (y.mid - 0.5).abs() < 1e-12);
        // Noise that would make the second negative.
        let (x, y) = solve_two(((10.0, 100.0), spread(30.0)), ((5.0, 1000.0), spread(14.0)));
        assert_eq!((x.mid, y.mid), (3.0, 0.0));
    }

    #[test]
    fn working_sets_end_with_memory() {
        let sets = working_sets(1 << 30, true);
        assert_eq!(sets.len(), 4);
        assert_eq!(sets[3], Buffer { bytes: 1 << 30, huge_pages: true });
        assert_eq!(working_sets(64 << 20, false).len(), 2);
    }
}
