//! What a report holds.

use serde::{Deserialize, Serialize};

use super::peers::Peers;
use crate::bench::BenchReport;
use crate::host::Host;
use crate::model_facts::ModelFacts;
use crate::quality::{Divergence, Estimate, Protocol, QualityReport, Ratio};
use crate::spread::Spread;

/// Models and the files made from them: size, quality and speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParetoReport {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The models, by name, in the order of the points.
    pub models: Vec<String>,
    /// How quality was measured, the same for all points.
    pub quality: ParetoQuality,
    /// How speed was measured; null when it was not.
    pub speed: Option<ParetoSpeed>,
    /// Each model itself and then its files.
    pub points: Vec<ParetoPoint>,
    /// What other programs reach, from a file; null when none was given.
    pub peers: Option<Peers>,
    /// Why timings should not be compared with others, if so.
    pub warnings: Vec<String>,
    /// When the report was made, in seconds since 1970.
    pub unix_time_s: u64,
    /// The machine.
    pub host: Host,
}

/// How quality was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParetoQuality {
    /// Name of the text's file.
    pub text: String,
    /// BLAKE3 of the text.
    pub text_blake3: String,
    /// Which tokens were scored in which context.
    pub protocol: Protocol,
    /// Tokens of a window.
    pub ctx: usize,
    /// Windows.
    pub windows: usize,
    /// Element type of the files' key/value cache.
    pub kv: String,
}

/// How speed was measured: in rounds, in each of which all files take turns, each in a fresh process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParetoSpeed {
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated after it.
    pub r#gen: usize,
    /// Element type of the key/value cache.
    pub kv: String,
    /// Rounds.
    pub rounds: usize,
    /// Instruction-set class that ran.
    pub isa: String,
}

/// A model, or a file made from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParetoPoint {
    /// The model that it is, or was made from, and is compared with.
    pub model: String,
    /// Its name within the model.
    pub name: String,
    /// Whether it is the model itself.
    pub is_reference: bool,
    /// How it was made, in the words of the file; null for a model that is not packed.
    pub recipe: Option<String>,
    /// What identifies it: codecs, bytes, bits per weight.
    #[serde(flatten)]
    pub facts: ModelFacts,
    /// What making it took; null when it was there already.
    pub quantize_seconds: Option<f64>,
    /// Tokens scored.
    pub tokens: u64,
    /// Perplexity.
    pub ppl: Estimate,
    /// Perplexity over the model's, paired; null for the model itself, as the following three.
    pub ppl_ratio: Option<Ratio>,
    /// Divergence from the model.
    pub kld: Option<Divergence>,
    /// Share of tokens at which both find the same token likeliest.
    pub same_top1: Option<f64>,
    /// 95 % confidence interval of that share.
    pub same_top1_ci95: Option<[f64; 2]>,
    /// Speed, a row per number of threads; empty when it was not measured.
    pub speed: Vec<PointSpeed>,
    /// Memory while its speed was measured.
    pub memory: Option<PointMemory>,
}

/// Speed with one number of threads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointSpeed {
    /// Threads.
    pub threads: usize,
    /// Tokens generated per second after the first.
    pub decode_tok_s: Spread,
    /// Tokens of the prompt processed per second.
    pub prefill_tok_s: Spread,
}

/// Memory of a process that runs a file, the most over rounds and numbers of threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PointMemory {
    /// Private memory: it must be free.
    pub anonymous_peak_bytes: Option<u64>,
    /// Resident pages of mapped files, weights included: the system can drop and reread them.
    pub file_peak_bytes: Option<u64>,
}

impl ParetoSpeed {
    /// `1 round`, `5 rounds`.
    pub(super) fn in_rounds(&self) -> String {
        format!("{} round{}", self.rounds, if self.rounds == 1 { "" } else { "s" })
    }
}

impl ParetoPoint {
    /// The point of a file that was compared with its model.
    pub fn of_file(model: &str, name: &str, report: &QualityReport) -> Self {
        Self {
            model: model.into(),
            name: name.into(),
            is_reference: false,
            recipe: None,
            facts: report.model.clone(),
            quantize_seconds: None,
            tokens: report.tokens,
            ppl: report.ppl,
            ppl_ratio: report.ppl_ratio,
            kld: report.kld,
            same_top1: report.same_top1,
            same_top1_ci95: report.same_top1_ci95,
            speed: Vec::new(),
            memory: None,
        }
    }

    /// The point of the model that a file was compared with; `None` when it was compared with none.
    pub fn of_reference(model: &str, report: &QualityReport) -> Option<Self> {
        let reference = report.reference.as_ref()?;
        Some(Self {
            model: model.into(),
            name: model.into(),
            is_reference: true,
            recipe: None,
            facts: reference.model.clone(),
            quantize_seconds: None,
            tokens: report.tokens,
            ppl: reference.ppl,
            ppl_ratio: None,
            kld: None,
            same_top1: None,
            same_top1_ci95: None,
            speed: Vec::new(),
            memory: None,
        })
    }

    /// Adds speed and memory from the reports of the rounds.
    #[must_use]
    pub fn with_rounds(mut self, rounds: &[&BenchReport]) -> Self {
        let threads = rounds.first().map_or(&[][..], |round| &round.rows);
        self.speed = threads
            .iter()
            .filter_map(|row| {
                let rows = || {
                    let rows = rounds.iter().flat_map(|round| &round.rows);
                    rows.filter(|other| other.threads == row.threads)
                };
                Some(PointSpeed {
                    threads: row.threads,
                    decode_tok_s: Spread::of(rows().map(|r| r.decode_tok_s).collect())?,
                    prefill_tok_s: Spread::of(rows().map(|r| r.prefill_tok_s).collect())?,
                })
            })
            .collect();
        self.memory = (!rounds.is_empty()).then(|| PointMemory {
            anonymous_peak_bytes: rounds.iter().filter_map(|r| r.memory.anonymous_peak_bytes).max(),
            file_peak_bytes: rounds.iter().filter_map(|r| r.memory.file_peak_bytes).max(),
        });
        self
    }

    /// The speed with a number of threads.
    pub(super) fn speed_with(&self, threads: usize) -> Option<&PointSpeed> {
        self.speed.iter().find(|speed| speed.threads == threads)
    }

    /// The interval of the perplexity that is due to the file and not to the text: the interval of the
    /// paired ratio times the model's perplexity.
    pub(super) fn paired_ppl_ci95(&self) -> Option<[f64; 2]> {
        let ratio = self.ppl_ratio?;
        let reference = self.ppl.value / ratio.value;
        ratio.ci95.map(|ci95| ci95.map(|bound| bound * reference))
    }
}

impl ParetoReport {
    /// The points that are files, and so can lie on a front.
    pub(super) fn files(&self) -> impl Iterator<Item = &ParetoPoint> {
        self.points.iter().filter(|point| !point.is_reference)
    }

    /// The models themselves.
    pub(super) fn references(&self) -> impl Iterator<Item = &ParetoPoint> {
        self.points.iter().filter(|point| point.is_reference)
    }

    /// A point's name among all models.
    pub(super) fn full_name(&self, point: &ParetoPoint) -> String {
        match (self.models.len(), point.is_reference) {
            (0 | 1, false) | (_, true) => point.name.clone(),
            _ => format!("{} {}", point.model, point.name),
        }
    }

    /// The numbers of threads that speed was measured with.
    pub(super) fn threads(&self) -> &[usize] {
        self.speed.as_ref().map_or(&[], |speed| &speed.threads)
    }
}
