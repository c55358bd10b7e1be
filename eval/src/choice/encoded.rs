//! Questions as tokens.

use gristmill_runtime::text::Tokenizer;

use super::task::{ChoiceTask, Question};
use crate::error::{EvalError, Result};

/// A task for models of one vocabulary.
#[derive(Debug, Clone)]
pub struct EncodedTask {
    pub(super) questions: Vec<EncodedQuestion>,
    pub(super) blake3: String,
    pub(super) bos: Option<u32>,
    /// Questions that lost the beginning of their context.
    pub(super) truncated: usize,
    context: usize,
}

/// Tokens of a question.
#[derive(Debug, Clone)]
pub(super) struct EncodedQuestion {
    pub(super) line: usize,
    pub(super) gold: usize,
    pub(super) choices: Vec<EncodedChoice>,
}

/// Tokens of an answer after its context.
#[derive(Debug, Clone)]
pub(super) struct EncodedChoice {
    pub(super) context: Vec<u32>,
    pub(super) continuation: Vec<u32>,
    /// Characters of the answer, without the blank before it.
    pub(super) chars: usize,
    /// Bytes of it.
    pub(super) bytes: usize,
}

impl EncodedTask {
    /// Tokenizes as lm-evaluation-harness does (`TemplateLM._encode_pair`): blanks at the end of the context
    /// go to the continuation; the whole is tokenized, and what follows as many tokens as the context has by
    /// itself is the continuation. A tokenizer's BOS goes before the context (the harness with
    /// `add_bos_token=True`). Contexts are cut at their beginning where `max_context` is less than they need.
    ///
    /// # Errors
    /// When a text has no tokens, or an answer alone does not fit.
    pub fn new(task: &ChoiceTask, tokenizer: &Tokenizer, max_context: usize) -> Result<Self> {
        let bos = tokenizer.adds_bos().then(|| tokenizer.bos_id()).flatten();
        // What the harness puts before a continuation without a context.
        let prefix = tokenizer.bos_id().or(tokenizer.eos_id());
        let (mut truncated, mut context) = (0, 1);
        let mut encode = |question: &Question| -> Result<EncodedQuestion> {
            let failed = |what: String| EvalError::Question { line: question.line, what };
            let kept = question.context.trim_end();
            let blanks = &question.context[kept.len()..];
            let mut before = tokenizer.encode(kept, false)?;
            let skipped = before.len();
            if let Some(bos) = bos {
                before.insert(0, bos);
            }
            if before.is_empty() {
                let prefix = prefix.ok_or_else(|| {
                    failed("no context, and the tokenizer has no token to begin with".into())
                })?;
                before.push(prefix);
            }
            let mut was_cut = false;
            let mut choices = Vec::with_capacity(question.choices.len());
            for (index, choice) in question.choices.iter().enumerate() {
                let whole = tokenizer.encode(&format!("{kept}{blanks} {choice}"), false)?;
                let continuation = whole.get(skipped..).unwrap_or_default().to_vec();
                if continuation.is_empty() {
                    return Err(failed(format!("answer {index} adds no token to its context")));
                }
                // The last token is only predicted.
                let Some(room) = max_context.checked_sub(continuation.len() - 1).filter(|&n| n > 0)
                else {
                    let tokens = continuation.len();
                    return Err(failed(format!(
                        "answer {index} has {tokens} tokens, the model takes {max_context}"
                    )));
                };
                let cut = before.len().saturating_sub(room);
                was_cut |= cut > 0;
                context = context.max(before.len() - cut + continuation.len() - 1);
                choices.push(EncodedChoice {
                    context: before[cut..].to_vec(),
                    continuation,
                    chars: choice.chars().count(),
                    bytes: choice.len(),
                });
            }
            truncated += usize::from(was_cut);
            Ok(EncodedQuestion { line: question.line, gold: question.gold, choices })
        };
        let questions = task.questions.iter().map(&mut encode).collect::<Result<_>>()?;
        Ok(Self { questions, blake3: task.blake3.clone(), bos, truncated, context })
    }

    /// Positions that an engine needs.
    pub fn context(&self) -> usize {
        self.context
    }
}
