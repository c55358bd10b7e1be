//! Multiple-choice questions: which answer a model finds likeliest after the question.

mod encoded;
mod report;
mod task;

use std::time::Instant;

use gristmill_formats::Progress;
use gristmill_runtime::Engine;

pub use encoded::EncodedTask;
pub use report::{Accuracy, Agreement, ChoiceReference, ChoiceReport, QuestionScore};
pub use task::{ChoiceTask, Question};

use crate::error::{EvalError, Result};
use crate::host::{Host, unix_time_s};
use crate::model_facts::ModelFacts;
use encoded::EncodedQuestion;

/// Asks a model, and a reference if there is one, every question of a task. A context is computed once
/// for all of its answers.
///
/// # Errors
/// When an engine's context is too small, the vocabularies differ, logits are not finite, or the user
/// cancels.
pub fn choices(
    student: &mut Engine,
    mut reference: Option<&mut Engine>,
    task: &EncodedTask,
    progress: &dyn Progress,
) -> Result<ChoiceReport> {
    let host = Host::detect();
    let start = Instant::now();
    check_engine(student, task)?;
    if let Some(reference) = &reference {
        check_engine(reference, task)?;
        let (ours, theirs) = (student.model().spec(), reference.model().spec());
        if ours.vocab_size != theirs.vocab_size {
            return Err(EvalError::VocabularyMismatch {
                student: ours.vocab_size,
                reference: theirs.vocab_size,
            });
        }
    }
    progress.begin("asking", task.questions.len() as u64, "questions");
    let mut per_question = Vec::with_capacity(task.questions.len());
    for question in &task.questions {
        if progress.cancelled() {
            return Err(EvalError::Cancelled);
        }
        let ll = ask(student, question)?;
        let reference_ll = reference.as_mut().map(|engine| ask(engine, question)).transpose()?;
        per_question.push(QuestionScore::new(question, ll, reference_ll));
        progress.advance(1);
    }

    let reference = reference.map(|engine| ChoiceReference {
        accuracy: Accuracy::of(&per_question, |question| question.reference_picks),
        model: ModelFacts::of(engine.model()),
        kv: engine.kv().name().into(),
    });
    Ok(ChoiceReport {
        schema_version: crate::SCHEMA_VERSION,
        questions: per_question.len(),
        truncated: task.truncated,
        choices_blake3: task.blake3.clone(),
        bos: task.bos,
        accuracy: Accuracy::of(&per_question, |question| Some(question.picks)),
        agreement: reference.is_some().then(|| Agreement::of(&per_question)),
        reference,
        model: ModelFacts::of(student.model()),
        kv: student.kv().name().into(),
        threads: student.threads(),
        isa: student.isa().name().into(),
        seconds: start.elapsed().as_secs_f64(),
        unix_time_s: unix_time_s(),
        host,
        per_question,
    })
}

fn check_engine(engine: &Engine, task: &EncodedTask) -> Result<()> {
    if engine.context() < task.context() {
        return Err(EvalError::Config(format!(
            "questions of {} tokens do not fit the engine's context of {}",
            task.context(),
            engine.context()
        )));
    }
    Ok(())
}

/// Log-likelihood of each answer.
fn ask(engine: &mut Engine, question: &EncodedQuestion) -> Result<Vec<f64>> {
    let kernels = engine.kernels();
    let log_probability = |logits: &[f32], token: u32| {
        f64::from(logits[token as usize]) - kernels.log_sum_exp(logits)
    };
    // The context that the engine holds, and the logits after it.
    let mut held: &[u32] = &[];
    let mut first = Vec::new();
    let mut scores = Vec::with_capacity(question.choices.len());
    for choice in &question.choices {
        if choice.context != held {
            engine.reset();
            first = engine.prefill(&choice.context)?.to_vec();
            held = &choice.context;
        }
        check_tokens(&choice.continuation, first.len())?;
        let mut sum = log_probability(&first, choice.continuation[0]);
        let (given, predicted) =
            (&choice.continuation[..choice.continuation.len() - 1], &choice.continuation[1..]);
        if !given.is_empty() {
            // Caches that keep less than everything may refuse to go back.
            if engine.rewind(held.len()).is_err() {
                engine.reset();
                engine.prefill(held)?;
            }
            engine.score(given, 0, |i, logits| sum += log_probability(logits, predicted[i]))?;
        }
        if !sum.is_finite() {
            let what = "the logits are not finite".into();
            return Err(EvalError::Question { line: question.line, what });
        }
        scores.push(sum);
    }
    Ok(scores)
}

/// The engine checks what it is given; the last token it only predicts.
fn check_tokens(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(&token) => {
            let vocab_size = vocab as u32;
            Err(gristmill_runtime::RuntimeError::UnknownToken { token, vocab_size }.into())
        }
        None => Ok(()),
    }
}
