//! One engine, taking its turns at every depth and prompt.

use std::time::Instant;

use gristmill_runtime::text::{Sampler, SamplerConfig};
use gristmill_runtime::{Engine, HeadUse, Model};

use super::report::{BenchRow, Percentiles};
use super::{BenchConfig, milliseconds};
use crate::energy::{EnergyMeter, EnergyUse};
use crate::error::{EvalError, Result};
use crate::model_facts::{kv_bytes_read, mean_position};
use crate::probe::{ReadProbe, probe_slices};
use crate::spread::Spread;
use crate::stats::median;

/// A depth and a prompt after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) depth: usize,
    pub(super) prompt: usize,
}

impl Point {
    /// Positions that are filled before anything is generated.
    pub(super) fn filled(self) -> usize {
        self.depth + self.prompt
    }
}

/// Times of one point.
#[derive(Debug)]
pub(super) struct Run {
    point: Point,
    prefill_s: Vec<f64>,
    ttft_ms: Vec<f64>,
    /// Mean time of a token in each repeat.
    decode_s: Vec<f64>,
    tpot_ms: Vec<f64>,
    /// Of the two-stage head while decoding.
    head_use: HeadUse,
    /// Digest of the tokens that were generated, of each repeat.
    outputs: Vec<blake3::Hash>,
    energy: EnergyUse,
    /// Bandwidth of memory and over the weights, in GB/s.
    memory: Vec<f64>,
    weights: Vec<f64>,
}

impl Run {
    pub(super) fn new(point: Point) -> Self {
        Self {
            point,
            prefill_s: vec![],
            ttft_ms: vec![],
            decode_s: vec![],
            tpot_ms: vec![],
            head_use: HeadUse::default(),
            outputs: vec![],
            energy: EnergyUse::default(),
            memory: vec![],
            weights: vec![],
        }
    }
}

/// An engine with what it has in its context.
pub(super) struct Lane<'a> {
    engine: Engine,
    /// Tokens of every depth and prompt.
    tokens: &'a [u32],
    /// Positions of the context that hold `tokens`; generated ones follow.
    known: usize,
}

impl<'a> Lane<'a> {
    pub(super) fn new(engine: Engine, tokens: &'a [u32]) -> Self {
        Self { engine, tokens, known: 0 }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Fills the context up to a depth, keeping what is there.
    fn go_to(&mut self, depth: usize) -> Result<()> {
        if depth == 0 || self.known < depth || self.engine.rewind(depth).is_err() {
            self.engine.reset();
            self.known = 0;
            if depth > 0 {
                self.engine.prefill(&self.tokens[..depth])?;
                self.known = depth;
            }
        }
        Ok(())
    }

    /// The prompt of a point and `count` tokens after the first.
    pub(super) fn measure(
        &mut self,
        run: &mut Run,
        count: usize,
        energy: Option<&EnergyMeter>,
    ) -> Result<()> {
        let vocab_size = self.engine.model().spec().vocab_size as usize;
        let mut sampler = Sampler::new(SamplerConfig::greedy(), vocab_size)
            .map_err(|error| EvalError::Config(error.to_string()))?;
        let Point { depth, prompt } = run.point;
        self.go_to(depth)?;
        let start = Instant::now();
        let prompt = &self.tokens[depth..depth + prompt];
        let logits = self.engine.prefill_top(prompt, sampler.reach())?;
        run.prefill_s.push(start.elapsed().as_secs_f64());
        let mut token = sampler.sample(logits);
        run.ttft_ms.push(milliseconds(start));
        self.known = run.point.filled();

        let mut generated = Vec::with_capacity(count + 1);
        generated.push(token);
        let used = self.engine.head_use();
        let window = energy.map(EnergyMeter::begin);
        let start = Instant::now();
        let mut before = start;
        for _ in 0..count {
            token = sampler.sample(self.engine.decode_top(token, sampler.reach())?);
            let now = Instant::now();
            run.tpot_ms.push((now - before).as_secs_f64() * 1e3);
            before = now;
            generated.push(token);
        }
        if let Some(window) = window {
            run.energy.add(window.end(), count);
        }
        run.decode_s.push((before - start).as_secs_f64() / count as f64);
        let used = self.engine.head_use().since(used);
        run.head_use.tokens += used.tokens;
        run.head_use.panels += used.panels;
        run.outputs.push(digest(&generated));
        Ok(())
    }

    /// Bandwidth of this moment.
    pub(super) fn probe(&self, run: &mut Run, memory: &ReadProbe, weights: &[&[u8]]) {
        let threads = self.engine.threads();
        run.memory.push(memory.measure(threads).gb_s);
        run.weights.push(probe_slices(threads, weights).gb_s);
    }

    pub(super) fn row(
        &self,
        mut run: Run,
        config: &BenchConfig,
        idle_watts: Option<f64>,
    ) -> BenchRow {
        let model: &Model = self.engine.model();
        let rates = |seconds: &[f64], tokens: usize| -> Vec<f64> {
            seconds.iter().map(|s| tokens as f64 / s).collect()
        };
        let decode_tok_s_by_repeat = rates(&run.decode_s, 1);
        let prefill_tok_s_by_repeat = rates(&run.prefill_s, run.point.prompt);
        let decode_tok_s = median(&decode_tok_s_by_repeat);
        let position = mean_position(run.point.filled(), config.r#gen);
        let fine_head_share = model.fine_head_share(run.head_use);
        let weight_bytes_per_token = model.bytes_per_token(fine_head_share);
        let kv_bytes_per_token = kv_bytes_read(model.spec(), config.kv, position);
        let bytes_per_token = weight_bytes_per_token + kv_bytes_per_token;
        let achieved_gb_s = bytes_per_token as f64 * decode_tok_s / 1e9;
        let (bandwidth_gb_s, model_sized) = (median(&run.memory), median(&run.weights));
        let first = run.outputs[0];
        BenchRow {
            threads: self.engine.threads(),
            depth: run.point.depth,
            prompt: run.point.prompt,
            decode_tok_s,
            decode_tok_s_ci95: Spread::of(decode_tok_s_by_repeat.clone()).and_then(|s| s.ci95),
            decode_tok_s_by_repeat,
            prefill_tok_s: median(&prefill_tok_s_by_repeat),
            prefill_tok_s_by_repeat,
            ttft_ms: Percentiles::of(&mut run.ttft_ms),
            tpot_ms: Percentiles::of(&mut run.tpot_ms),
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
            joules_per_token: run.energy.joules_per_token(),
            net_joules_per_token: run.energy.net_joules_per_token(idle_watts),
            output_blake3: first.to_hex().to_string(),
            repeats_agree: run.outputs.iter().all(|output| *output == first),
        }
    }
}

/// Digest of tokens, each as four bytes, least significant first.
fn digest(tokens: &[u32]) -> blake3::Hash {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    blake3::hash(&bytes)
}
