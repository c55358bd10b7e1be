//! Windows through the engines: the logits of their tokens, compared as they come.

use gristmill_formats::Progress;
use gristmill_runtime::{Engine, Kernels};

use super::divergence::{TokenComparison, compare};
use super::protocol::{QualityConfig, TokenPath};
use crate::error::{EvalError, Result};

/// Bytes of logits, of both models together, that are held at once: memory must not grow with the window.
const BLOCK_BYTES: usize = 64 << 20;
/// Most tokens whose logits are held at once, and what it is a multiple of: as many as the engine
/// computes together. More tokens at a time make better use of the weights that they are multiplied with.
const MAX_BLOCK_TOKENS: usize = 256;
const BLOCK_STEP: usize = 32;

/// One window of the text.
pub(super) struct Window<'a> {
    pub(super) index: usize,
    /// Those of the depth first.
    pub(super) tokens: &'a [u32],
    pub(super) config: &'a QualityConfig,
}

impl Window<'_> {
    /// The loss of each scored token.
    pub(super) fn score(
        &self,
        engine: &mut Engine,
        progress: &dyn Progress,
    ) -> Result<Vec<TokenComparison>> {
        let QualityConfig { depth, path, .. } = *self.config;
        let positions = self.config.scored_positions();
        let kernels = engine.kernels();
        let mut scored = Vec::with_capacity(positions.len());
        engine.reset();
        run(engine, TokenPath::Prefill, &self.tokens[..depth], depth, |_, _| ())?;
        for start in (depth..positions.end).step_by(MAX_BLOCK_TOKENS) {
            if progress.cancelled() {
                return Err(EvalError::Cancelled);
            }
            let end = positions.end.min(start + MAX_BLOCK_TOKENS);
            let from = positions.start.saturating_sub(start);
            run(engine, path, &self.tokens[start..end], from, |i, logits| {
                let target = self.tokens[start + i + 1] as usize;
                let nll = kernels.log_sum_exp(logits) - f64::from(logits[target]);
                scored.push(TokenComparison { nll, ..TokenComparison::default() });
            })?;
        }
        self.check(positions.start, &scored)?;
        Ok(scored)
    }

    /// The comparison at each scored token. The engines take turns, a block of tokens each, which
    /// changes nothing in their results. The reference computes all of it as a prompt.
    pub(super) fn score_pair(
        &self,
        student: &mut Engine,
        reference: &mut Engine,
        block: &mut Block,
        progress: &dyn Progress,
    ) -> Result<Vec<TokenComparison>> {
        let QualityConfig { depth, path, .. } = *self.config;
        let positions = self.config.scored_positions();
        let mut scored = Vec::with_capacity(positions.len());
        for (engine, path) in [(&mut *student, path), (&mut *reference, TokenPath::Prefill)] {
            engine.reset();
            let (before, unscored) = self.tokens[..positions.start].split_at(depth);
            run(engine, TokenPath::Prefill, before, before.len(), |_, _| ())?;
            run(engine, path, unscored, unscored.len(), |_, _| ())?;
        }
        for start in positions.clone().step_by(block.tokens()) {
            if progress.cancelled() {
                return Err(EvalError::Cancelled);
            }
            let end = positions.end.min(start + block.tokens());
            let tokens = &self.tokens[start..end];
            block.student.fill(student, path, tokens)?;
            block.reference.fill(reference, TokenPath::Prefill, tokens)?;
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

/// Appends tokens and hands the logits after each from index `from` on to `each`.
fn run(
    engine: &mut Engine,
    path: TokenPath,
    tokens: &[u32],
    from: usize,
    mut each: impl FnMut(usize, &[f32]),
) -> Result<()> {
    match path {
        TokenPath::Prefill if tokens.is_empty() => {}
        TokenPath::Prefill => engine.score(tokens, from, each)?,
        TokenPath::Decode => {
            for (i, &token) in tokens.iter().enumerate() {
                let logits = engine.decode(token)?;
                if i >= from {
                    each(i, logits);
                }
            }
        }
    }
    Ok(())
}

/// Logits of both models for a block of tokens.
pub(super) struct Block {
    reference: Rows,
    student: Rows,
    compared: Vec<TokenComparison>,
}

impl Block {
    pub(super) fn new(vocab_size: u32) -> Self {
        let vocab = vocab_size as usize;
        let tokens = block_tokens(vocab);
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

/// Tokens of a block: below [`BLOCK_STEP`] only where that many do not fit.
fn block_tokens(vocab: usize) -> usize {
    let fit = (BLOCK_BYTES / (2 * size_of::<f32>() * vocab)).clamp(1, MAX_BLOCK_TOKENS);
    if fit < BLOCK_STEP { fit } else { fit / BLOCK_STEP * BLOCK_STEP }
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
    fn fill(&mut self, engine: &mut Engine, path: TokenPath, tokens: &[u32]) -> Result<()> {
        let Self { values, vocab } = self;
        run(engine, path, tokens, 0, |i, logits| {
            values[i * *vocab..(i + 1) * *vocab].copy_from_slice(logits);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_bounded_whatever_the_vocabulary() {
        for vocab in [1, 1024, 49_152, 128_256, 262_144, 262_145, 1 << 20, 8 << 20] {
            let tokens = block_tokens(vocab);
            assert!(2 * size_of::<f32>() * vocab * tokens <= BLOCK_BYTES, "{vocab}: {tokens}");
            assert!((1..=MAX_BLOCK_TOKENS).contains(&tokens));
            assert!(tokens < BLOCK_STEP || tokens.is_multiple_of(BLOCK_STEP));
        }
        assert_eq!(block_tokens(1024), MAX_BLOCK_TOKENS);
        assert_eq!(block_tokens(262_144), BLOCK_STEP);
    }
}
