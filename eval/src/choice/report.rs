//! The result of asking questions.

use serde::{Deserialize, Serialize};

use super::encoded::EncodedQuestion;
use crate::host::Host;
use crate::model_facts::ModelFacts;
use crate::quality::{Difference, Estimate};
use crate::stats::{bootstrap_ci95, mean, standard_error};
use crate::table::{Table, percent};

/// Shares of the questions that were answered rightly, with their standard errors over questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// The likeliest answer counts: lm-evaluation-harness's `acc`.
    pub acc: Estimate,
    /// The likeliest per character: its `acc_norm`.
    pub acc_norm: Estimate,
    /// The likeliest per byte: its `acc_bytes`; another figure only for text that is not ASCII.
    pub acc_bytes: Estimate,
}

/// The reference in the same measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceReference {
    /// Its shares.
    #[serde(flatten)]
    pub accuracy: Accuracy,
    /// The reference.
    #[serde(flatten)]
    pub model: ModelFacts,
    /// Element type of its key/value cache.
    pub kv: String,
}

/// The model beside the reference, question by question.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// `acc` less the reference's, with a paired interval.
    pub acc_difference: Difference,
    /// The same of `acc_norm`.
    pub acc_norm_difference: Difference,
    /// The same of `acc_bytes`.
    pub acc_bytes_difference: Difference,
    /// Share of the questions to which both give the same answer, right or wrong, by `acc`.
    pub same_answer: Estimate,
    /// The same by `acc_norm`.
    pub same_answer_norm: Estimate,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionScore {
    /// Line of the file, from 1.
    pub line: usize,
    /// Index of the right answer.
    pub gold: usize,
    /// Indices of the answers that were picked: by likelihood, per character, per byte.
    pub picks: [usize; 3],
    /// Log-likelihood of each answer in nats.
    pub ll: Vec<f64>,
    /// The reference's picks.
    pub reference_picks: Option<[usize; 3]>,
    /// The reference's log-likelihoods.
    pub reference_ll: Option<Vec<f64>>,
}

/// How a model answers multiple-choice questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceReport {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Questions.
    pub questions: usize,
    /// Questions whose context was cut at its beginning to fit the model.
    pub truncated: usize,
    /// BLAKE3 of the file of questions.
    pub choices_blake3: String,
    /// Token before each context, if the tokenizer puts one there.
    pub bos: Option<u32>,
    /// Shares of right answers.
    #[serde(flatten)]
    pub accuracy: Accuracy,
    /// The reference, if there was one.
    pub reference: Option<ChoiceReference>,
    /// The two beside each other.
    pub agreement: Option<Agreement>,
    /// The model.
    #[serde(flatten)]
    pub model: ModelFacts,
    /// Element type of the key/value cache.
    pub kv: String,
    /// Threads.
    pub threads: usize,
    /// Instruction-set class.
    pub isa: String,
    /// Duration.
    pub seconds: f64,
    /// When it ended, in seconds since 1970.
    pub unix_time_s: u64,
    /// The machine.
    pub host: Host,
    /// Each question, so that reports over the same questions can be compared in pairs.
    pub per_question: Vec<QuestionScore>,
}

impl QuestionScore {
    pub(super) fn new(
        question: &EncodedQuestion,
        ll: Vec<f64>,
        reference_ll: Option<Vec<f64>>,
    ) -> Self {
        Self {
            line: question.line,
            gold: question.gold,
            picks: picks(question, &ll),
            reference_picks: reference_ll.as_ref().map(|ll| picks(question, ll)),
            ll,
            reference_ll,
        }
    }
}

/// The first of the largest, under each of the three measures.
fn picks(question: &EncodedQuestion, ll: &[f64]) -> [usize; 3] {
    let lengths = |i: usize| {
        let choice = &question.choices[i];
        [1.0, choice.chars as f64, choice.bytes as f64]
    };
    std::array::from_fn(|measure| {
        let score = |i: usize| ll[i] / lengths(i)[measure];
        (0..ll.len()).fold(0, |best, i| if score(i) > score(best) { i } else { best })
    })
}

fn share(values: impl Iterator<Item = bool>) -> Estimate {
    let values: Vec<f64> = values.map(|holds| f64::from(u8::from(holds))).collect();
    Estimate {
        value: mean(&values),
        stderr: standard_error(&values),
        ci95: bootstrap_ci95(&values),
    }
}

impl Accuracy {
    pub(super) fn of(
        questions: &[QuestionScore],
        picks: impl Fn(&QuestionScore) -> Option<[usize; 3]>,
    ) -> Self {
        let of = |measure: usize| {
            share(questions.iter().map(|q| picks(q).is_some_and(|picks| picks[measure] == q.gold)))
        };
        Self { acc: of(0), acc_norm: of(1), acc_bytes: of(2) }
    }
}

impl Agreement {
    /// Of questions that a reference was asked, too.
    pub(super) fn of(questions: &[QuestionScore]) -> Self {
        let pairs = || questions.iter().filter_map(|q| Some((q.picks, q.reference_picks?, q.gold)));
        let difference = |measure: usize| {
            let right = |pick: usize, gold: usize| f64::from(u8::from(pick == gold));
            let differences: Vec<f64> = pairs()
                .map(|(ours, theirs, gold)| {
                    right(ours[measure], gold) - right(theirs[measure], gold)
                })
                .collect();
            Difference { value: mean(&differences), ci95: bootstrap_ci95(&differences) }
        };
        let same = |measure: usize| {
            share(pairs().map(|(ours, theirs, _)| ours[measure] == theirs[measure]))
        };
        Self {
            acc_difference: difference(0),
            acc_norm_difference: difference(1),
            acc_bytes_difference: difference(2),
            same_answer: same(0),
            same_answer_norm: same(1),
        }
    }
}

impl ChoiceReport {
    /// The report as a Markdown table with a line on its circumstances.
    pub fn table(&self) -> String {
        let mut table = Table::new(&["measure", "value", "±", "95 % interval"]);
        let bounds = |ci95: Option<[f64; 2]>| {
            ci95.map_or(String::new(), |[low, high]| {
                format!("{} … {}", percent(low), percent(high))
            })
        };
        let mut row = |name: &str, Estimate { value, stderr, ci95 }: Estimate| {
            table.row(vec![name.into(), percent(value), percent(stderr), bounds(ci95)]);
        };
        let Accuracy { acc, acc_norm, acc_bytes } = self.accuracy;
        row("acc", acc);
        row("acc_norm (per character)", acc_norm);
        row("acc_bytes (per byte)", acc_bytes);
        if let Some(reference) = &self.reference {
            row("acc of the reference", reference.accuracy.acc);
            row("acc_norm of the reference", reference.accuracy.acc_norm);
        }
        if let Some(agreement) = &self.agreement {
            row("same answer, by acc", agreement.same_answer);
            row("same answer, by acc_norm", agreement.same_answer_norm);
            for (name, difference) in [
                ("acc less the reference's", agreement.acc_difference),
                ("acc_norm less the reference's", agreement.acc_norm_difference),
            ] {
                let (value, ci95) = (percent(difference.value), bounds(difference.ci95));
                table.row(vec![name.into(), value, String::new(), ci95]);
            }
        }
        let truncated = match self.truncated {
            0 => String::new(),
            cut => format!(" ({cut} cut to fit the model)"),
        };
        let noun = if self.questions == 1 { "question" } else { "questions" };
        format!(
            "{}\n{} {noun}{truncated}; {:.3} bits per weight, {:.1} MB; KV {}, {} threads, {}, {:.1} s\n{}\n",
            table.render(),
            self.questions,
            self.model.bits_per_weight,
            self.model.file_bytes as f64 / 1e6,
            self.kv,
            self.threads,
            self.isa,
            self.seconds,
            self.host.line(),
        )
    }
}
