//! Perplexity, and divergence from a reference.

mod against;
mod divergence;
mod protocol;
mod report;
mod scoring;
mod tally;

use std::time::Instant;

use gristmill_formats::Progress;
use gristmill_runtime::{Engine, RuntimeError};

pub use against::{EarlierReport, PairedDifference, QualityComparison, QualityVerdict};
pub use protocol::{Protocol, QualityConfig, TextTokens, TokenPath, UnknownProtocol};
pub use report::{
    Difference, Divergence, Estimate, PositionQuality, QualityReport, Ratio, ReferenceQuality,
    WindowQuality,
};

use crate::error::{EvalError, Result};
use crate::host::{Host, unix_time_s};
use crate::model_facts::ModelFacts;
use scoring::{Block, Window};
use tally::Tally;

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
            _ => window.score(student, progress)?,
        };
        tally.add(scored);
        progress.advance(1);
    }

    let reference = reference.map(|engine| ReferenceQuality {
        ppl: tally.perplexity(|t| t.reference_nll),
        model: ModelFacts::of(engine.model()),
        kv: engine.kv().name().into(),
    });
    let paired = reference.is_some();
    let (same_top1, same_top1_ci95) = tally.same_top1();
    let (delta_p_rms, delta_p_rms_ci95) = tally.delta_p_rms();
    Ok(QualityReport {
        schema_version: crate::SCHEMA_VERSION,
        protocol: config.protocol,
        ctx: config.ctx,
        depth: config.depth,
        path: config.path,
        windows,
        first_window: config.first_window(),
        tokens: tally.count(),
        text_tokens: text.ids.len() as u64,
        bos: if config.protocol == Protocol::Chunk { text.bos } else { None },
        ppl: tally.perplexity(|t| t.nll),
        kld: paired.then(|| tally.divergence()),
        same_top1: paired.then_some(same_top1),
        same_top1_ci95: same_top1_ci95.filter(|_| paired),
        delta_p_rms: paired.then_some(delta_p_rms),
        delta_p_rms_ci95: delta_p_rms_ci95.filter(|_| paired),
        ppl_ratio: paired.then(|| tally.ratio()),
        ppl_difference: paired.then(|| tally.difference()),
        by_position: tally.by_position(config, paired),
        per_window: tally.per_window(paired),
        reference,
        model: ModelFacts::of(student.model()),
        text_blake3: text.text_blake3.clone(),
        kv: student.kv().name().into(),
        threads: student.threads(),
        isa: student.isa().name().into(),
        seconds: start.elapsed().as_secs_f64(),
        unix_time_s: unix_time_s(),
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
    if engine.context() < config.context() {
        return Err(EvalError::Config(format!(
            "windows of {} tokens and a depth of {} do not fit the engine's context of {}",
            config.ctx,
            config.depth,
            engine.context()
        )));
    }
    // The last token of a window is only predicted: the engine never sees it.
    let vocab_size = engine.model().spec().vocab_size;
    let mut used = text.used(windows, config).iter().chain(&text.bos);
    match used.find(|&&token| token >= vocab_size) {
        Some(&token) => Err(RuntimeError::UnknownToken { token, vocab_size }.into()),
        None => Ok(()),
    }
}
