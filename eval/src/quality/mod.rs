//! Perplexity, and divergence from a reference.

mod divergence;
mod protocol;
mod report;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gristmill_formats::Progress;
use gristmill_runtime::{Engine, Kernels, RuntimeError};

pub use protocol::{Protocol, QualityConfig, TextTokens, UnknownProtocol};
pub use report::{Divergence, Estimate, QualityReport, Ratio, ReferenceQuality, WindowQuality};

use crate::error::{EvalError, Result};
use crate::host::Host;
use crate::model_facts::ModelFacts;
use crate::stats::{bootstrap_ci95, mean, nearest_rank, standard_error};
use divergence::{TokenComparison, compare};

/// Bytes of logits, of both models together, that are held at once: memory must not grow with the window.
const BLOCK_BYTES: usize = 64 << 20;
/// Most tokens whose logits are held at once, and what it is a multiple of: as many as the engine
/// computes together. More tokens at a time make better use of the weights that they are multiplied with.
const MAX_BLOCK_TOKENS: usize = 256;
const BLOCK_STEP: usize = 32;

/// Scores a text with a model and, if a reference is given, compares the two at every scored token. The
/// reference runs beside the model on the same tokens; nothing of the size of a window times the
/// vocabulary is ever held.
///
/// Both engines are reset, and hold the last window afterwards.
///
/// # Errors
/// When the text is too short, an engine's context is smaller than the window, the vocabularies differ,
/// logits are not finite, or the user cancels.
pub fn quality(
    student: &mut Engine,
    mut reference: Option<&mut Engine>,
    text: &TextTokens,
    config: &QualityConfig,
    progress: &dyn Progress,
) -> Result<QualityReport> {
    let host = Host::detect();
    let start = Instant::now();
    let windows = text.window_count(config)?;
    check_engine(student, text, config, windows)?;
    if let Some(reference) = &reference {
        check_engine(reference, text, config, windows)?;
        let (ours, theirs) = (student.model().spec(), reference.model().spec());
        if ours.vocab_size != theirs.vocab_size {
            return Err(EvalError::VocabularyMismatch {
                student: ours.vocab_size,
                reference: theirs.vocab_size,
            });
        }
    }

    progress.begin("scoring", windows as u64, "windows");
    let mut tally = Tally::default();
    let mut block = reference.as_ref().map(|_| Block::new(student.model().spec().vocab_size));
    for index in 0..windows {
        let tokens = text.window(index, config);
        let window = Window { index, tokens: &tokens, config };
        let scored = match (&mut reference, &mut block) {
            (Some(reference), Some(block)) => {
                window.score_pair(student, reference, block, progress)?
            }
            _ => {
                if progress.cancelled() {
                    return Err(EvalError::Cancelled);
                }
                window.score(student)?
            }
        };
        tally.add(scored);
        progress.advance(1);
    }

    let reference = reference.map(|engine| ReferenceQuality {
        ppl: perplexity(&tally.tokens.iter().map(|t| t.reference_nll).collect::<Vec<_>>()),
        model: ModelFacts::of(engine.model()),
        kv: engine.kv().name().into(),
    });
    let paired = reference.is_some();
    let ppl = perplexity(&tally.tokens.iter().map(|t| t.nll).collect::<Vec<_>>());
    let same_top1 = tally.by_window(|t| f64::from(u8::from(t.same_top1)));
    Ok(QualityReport {
        schema_version: crate::SCHEMA_VERSION,
        protocol: config.protocol,
        ctx: config.ctx,
        windows,
        tokens: tally.tokens.len() as u64,
        text_tokens: text.ids.len() as u64,
        bos: if config.protocol == Protocol::Chunk { text.bos } else { None },
        ppl,
        kld: paired.then(|| tally.divergence()),
        same_top1: paired.then(|| mean(&same_top1)),
        same_top1_ci95: if paired { bootstrap_ci95(&same_top1) } else { None },
        delta_p_rms: paired.then(|| {
            let squares: f64 = tally.tokens.iter().map(|t| t.delta_p * t.delta_p).sum();
            (squares / tally.tokens.len() as f64).sqrt()
        }),
        ppl_ratio: paired.then(|| tally.ratio()),
        per_window: tally.per_window(paired),
        reference,
        model: ModelFacts::of(student.model()),
        text_blake3: text.text_blake3.clone(),
        kv: student.kv().name().into(),
        threads: student.threads(),
        isa: student.isa().name().into(),
        seconds: start.elapsed().as_secs_f64(),
        unix_time_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        host,
    })
}

/// Whether an engine can take the windows of a text.
fn check_engine(
    engine: &Engine,
    text: &TextTokens,
    config: &QualityConfig,
    windows: usize,
) -> Result<()> {
    if engine.context() < config.ctx {
        return Err(EvalError::Config(format!(
            "windows of {} tokens do not fit the engine's context of {}",
            config.ctx,
            engine.context()
        )));
    }
    // The last token of a window is only predicted: the engine never sees it.
    let vocab_size = engine.model().spec().vocab_size;
    let mut used = text.ids[..windows * config.ctx].iter().chain(&text.bos);
    match used.find(|&&token| token >= vocab_size) {
        Some(&token) => Err(RuntimeError::UnknownToken { token, vocab_size }.into()),
        None => Ok(()),
    }
}

/// `exp` of the mean loss. Its standard error is that of the mean loss times the perplexity: the first
/// term of the exponential's expansion.
fn perplexity(nll: &[f64]) -> Estimate {
    let value = mean(nll).exp();
    Estimate { value, stderr: value * standard_error(nll) }
}

/// One window of the text.
struct Window<'a> {
    index: usize,
    tokens: &'a [u32],
    config: &'a QualityConfig,
}

impl Window<'_> {
    /// The loss of each scored token.
    fn score(&self, engine: &mut Engine) -> Result<Vec<TokenComparison>> {
        let positions = self.config.protocol.scored_positions(self.config.ctx);
        let kernels = engine.kernels();
        let mut scored = Vec::with_capacity(positions.len());
        engine.reset();
        engine.score(&self.tokens[..positions.end], positions.start, |i, logits| {
            let target = self.tokens[i + 1] as usize;
            let nll = kernels.log_sum_exp(logits) - f64::from(logits[target]);
            scored.push(TokenComparison { nll, ..TokenComparison::default() });
        })?;
        self.check(positions.start, &scored)?;
        Ok(scored)
    }

    /// The comparison at each scored token. The engines take turns, a block of tokens each, which
    /// changes nothing in their results.
    fn score_pair(
        &self,
        student: &mut Engine,
        reference: &mut Engine,
        block: &mut Block,
        progress: &dyn Progress,
    ) -> Result<Vec<TokenComparison>> {
        let positions = self.config.protocol.scored_positions(self.config.ctx);
        let mut scored = Vec::with_capacity(positions.len());
        for engine in [&mut *student, &mut *reference] {
            engine.reset();
            if positions.start > 0 {
                let context = &self.tokens[..positions.start];
                engine.score(context, context.len(), |_, _| ())?;
            }
        }
        for start in positions.clone().step_by(block.tokens()) {
            if progress.cancelled() {
                return Err(EvalError::Cancelled);
            }
            let end = positions.end.min(start + block.tokens());
            let tokens = &self.tokens[start..end];
            block.student.fill(student, tokens)?;
            block.reference.fill(reference, tokens)?;
            let targets = &self.tokens[start + 1..end + 1];
            scored.extend_from_slice(block.compare(student.kernels(), targets, student.threads()));
        }
        self.check(positions.start, &scored)?;
        Ok(scored)
    }

    fn check(&self, first: usize, scored: &[TokenComparison]) -> Result<()> {
        let Some(i) = scored.iter().position(|t| !t.is_finite()) else { return Ok(()) };
        let model = if scored[i].nll.is_finite() { "the reference" } else { "the model" };
        Err(EvalError::NotFinite { model, window: self.index, position: first + i })
    }
}

/// Logits of both models for a block of tokens.
struct Block {
    reference: Rows,
    student: Rows,
    compared: Vec<TokenComparison>,
}

impl Block {
    fn new(vocab_size: u32) -> Self {
        let vocab = vocab_size as usize;
        let tokens = BLOCK_BYTES / (2 * size_of::<f32>() * vocab) / BLOCK_STEP * BLOCK_STEP;
        let tokens = tokens.clamp(BLOCK_STEP, MAX_BLOCK_TOKENS);
        Self {
            reference: Rows::new(vocab, tokens),
            student: Rows::new(vocab, tokens),
            compared: vec![TokenComparison::default(); tokens],
        }
    }

    /// Tokens that fit.
    fn tokens(&self) -> usize {
        self.compared.len()
    }

    /// Compares the rows of as many tokens as there are targets, on some threads.
    fn compare(
        &mut self,
        kernels: &'static Kernels,
        targets: &[u32],
        threads: usize,
    ) -> &[TokenComparison] {
        let Self { reference, student, compared } = self;
        let (reference, student) = (&*reference, &*student);
        let compared = &mut compared[..targets.len()];
        let share = targets.len().div_ceil(threads);
        std::thread::scope(|scope| {
            let parts = compared.chunks_mut(share).zip(targets.chunks(share)).enumerate();
            for (part, (compared, targets)) in parts {
                let mut work = move || {
                    for (i, (to, &target)) in compared.iter_mut().zip(targets).enumerate() {
                        let row = part * share + i;
                        *to = compare(kernels, reference.row(row), student.row(row), target);
                    }
                };
                if threads == 1 {
                    work();
                } else {
                    scope.spawn(work);
                }
            }
        });
        compared
    }
}

/// Rows of logits.
struct Rows {
    values: Vec<f32>,
    vocab: usize,
}

impl Rows {
    fn new(vocab: usize, tokens: usize) -> Self {
        Self { values: vec![0.0; vocab * tokens], vocab }
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab..(index + 1) * self.vocab]
    }

    /// Runs an engine over as many tokens as there are rows, at most, and keeps its logits.
    fn fill(&mut self, engine: &mut Engine, tokens: &[u32]) -> Result<()> {
        let Self { values, vocab } = self;
        Ok(engine.score(tokens, 0, |i, logits| {
            values[i * *vocab..(i + 1) * *vocab].copy_from_slice(logits);
        })?)
    }
}

/// All that was scored.
#[derive(Debug, Default)]
struct Tally {
    tokens: Vec<TokenComparison>,
    /// Tokens of each window; the same for all.
    window: usize,
}

impl Tally {
    fn add(&mut self, window: Vec<TokenComparison>) {
        self.window = window.len();
        self.tokens.extend(window);
    }

    /// Means of a figure over each window.
    fn by_window(&self, figure: impl Fn(&TokenComparison) -> f64) -> Vec<f64> {
        let windows = self.tokens.chunks(self.window);
        windows.map(|w| w.iter().map(&figure).sum::<f64>() / w.len() as f64).collect()
    }

    fn divergence(&self) -> Divergence {
        let windows = self.by_window(|t| t.kld);
        let mut sorted: Vec<f64> = self.tokens.iter().map(|t| t.kld).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        Divergence {
            mean: mean(&windows),
            ci95: bootstrap_ci95(&windows),
            median: nearest_rank(&sorted, 0.5),
            p90: nearest_rank(&sorted, 0.9),
            p99: nearest_rank(&sorted, 0.99),
            p999: nearest_rank(&sorted, 0.999),
            max: nearest_rank(&sorted, 1.0),
        }
    }

    /// Perplexity over the reference's: the exponential of the mean difference of the losses, whose
    /// interval is far narrower than that of either perplexity because the text is the same.
    fn ratio(&self) -> Ratio {
        let windows = self.by_window(|t| t.nll - t.reference_nll);
        Ratio {
            value: mean(&windows).exp(),
            ci95: bootstrap_ci95(&windows).map(|ci95| ci95.map(f64::exp)),
        }
    }

    fn per_window(&self, paired: bool) -> Vec<WindowQuality> {
        let nll = self.by_window(|t| t.nll);
        let reference = self.by_window(|t| t.reference_nll);
        let kld = self.by_window(|t| t.kld);
        (0..nll.len())
            .map(|w| WindowQuality {
                nll: nll[w],
                reference_nll: paired.then_some(reference[w]),
                kld: paired.then_some(kld[w]),
            })
            .collect()
    }
}
