//! Comparison with an earlier report over the same windows.

use serde::{Deserialize, Serialize};

use super::protocol::{Protocol, QualityConfig, TextTokens, TokenPath};
use super::report::{QualityReport, Ratio, WindowQuality};
use crate::error::{EvalError, Result};
use crate::model_facts::ModelFacts;
use crate::stats::{bootstrap_ci95, mean};
use crate::table::{Table, interval, number};

/// What a comparison needs of an earlier report's JSON. Other members are ignored, so that reports of
/// other versions with the same schema can be read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EarlierReport {
    schema_version: u32,
    protocol: Protocol,
    ctx: usize,
    #[serde(default)]
    depth: usize,
    #[serde(default)]
    path: TokenPath,
    windows: usize,
    text_tokens: u64,
    bos: Option<u32>,
    text_blake3: String,
    #[serde(flatten)]
    model: ModelFacts,
    kv: String,
    reference: Option<EarlierReference>,
    per_window: Vec<WindowQuality>,
}

/// The reference of an earlier report.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct EarlierReference {
    fingerprint: String,
    kv: String,
}

/// What an interval says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QualityVerdict {
    /// All of the interval is below 0: the model loses less than the earlier one.
    Better,
    /// All of it is above 0.
    Worse,
    /// It holds 0, or there is none.
    NotDistinguishable,
}

impl QualityVerdict {
    fn of(ci95: Option<[f64; 2]>) -> Self {
        match ci95 {
            Some([_, high]) if high < 0.0 => Self::Better,
            Some([low, _]) if low > 0.0 => Self::Worse,
            _ => Self::NotDistinguishable,
        }
    }
}

impl std::fmt::Display for QualityVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NotDistinguishable => "not distinguishable",
        })
    }
}

/// A figure of the model less that of the earlier one, in nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairedDifference {
    /// Mean over windows.
    pub value: f64,
    /// 95 % confidence interval, paired; null for a single window.
    pub ci95: Option<[f64; 2]>,
    /// What that says.
    pub verdict: QualityVerdict,
}

impl PairedDifference {
    fn of(ours: &[f64], theirs: &[f64]) -> Self {
        let differences: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
        let ci95 = bootstrap_ci95(&differences);
        Self { value: mean(&differences), ci95, verdict: QualityVerdict::of(ci95) }
    }
}

/// A model beside the one of an earlier report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QualityComparison {
    /// The earlier model.
    #[serde(flatten)]
    pub model: ModelFacts,
    /// Element type of its key/value cache.
    pub kv: String,
    /// How it computed the tokens of a window.
    pub path: TokenPath,
    /// Perplexity over its perplexity.
    pub ppl_ratio: Ratio,
    /// Loss less its loss.
    pub nll: PairedDifference,
    /// Divergence less its divergence; null where there are not two from one reference.
    pub kld: Option<PairedDifference>,
    /// Why that is null.
    pub kld_reason: Option<String>,
}

impl EarlierReport {
    /// Reads the JSON of a report.
    ///
    /// # Errors
    /// When it is not one, or of another schema.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let report: Self = serde_json::from_slice(json)
            .map_err(|e| EvalError::Config(format!("not a report of `eval --json`: {e}")))?;
        if report.schema_version != crate::SCHEMA_VERSION {
            return Err(EvalError::Config(format!(
                "a report with schema version {}, expected {}; measure that model again",
                report.schema_version,
                crate::SCHEMA_VERSION
            )));
        }
        if report.per_window.len() != report.windows {
            return Err(EvalError::Config(format!(
                "the report says {} windows and has {}",
                report.windows,
                report.per_window.len()
            )));
        }
        Ok(report)
    }

    /// Whether a measurement of this text would score the same tokens in the same context: to be asked
    /// before the work.
    ///
    /// # Errors
    /// Names what differs.
    pub fn check(&self, text: &TextTokens, config: &QualityConfig) -> Result<()> {
        let bos = if config.protocol == Protocol::Chunk { text.bos } else { None };
        let windows = text.window_count(config)?;
        let tokens = self.text_tokens;
        let differences = [
            (self.text_blake3 != text.text_blake3, "another text".to_owned()),
            (
                tokens != text.ids.len() as u64 || self.bos != bos,
                format!("another tokenizer ({tokens} tokens of the text)"),
            ),
            (self.protocol != config.protocol, format!("--protocol {}", self.protocol)),
            (self.ctx != config.ctx, format!("--ctx {}", self.ctx)),
            (self.depth != config.depth, format!("--depth {}", self.depth)),
            (self.windows != windows, format!("--windows {}", self.windows)),
        ];
        let found: Vec<_> =
            differences.into_iter().filter_map(|(differs, what)| differs.then_some(what)).collect();
        if found.is_empty() {
            return Ok(());
        }
        Err(EvalError::Config(format!(
            "the earlier report is of {}: windows that are not the same cannot be compared",
            found.join(", ")
        )))
    }

    /// The differences between a report over the same windows and this one.
    ///
    /// # Panics
    /// When they do not have as many windows; [`Self::check`] finds that.
    pub fn compare(&self, report: &QualityReport) -> QualityComparison {
        assert_eq!(self.windows, report.windows, "the same windows");
        let nll = |windows: &[WindowQuality]| windows.iter().map(|w| w.nll).collect::<Vec<_>>();
        let (ours, theirs) = (nll(&report.per_window), nll(&self.per_window));
        let kld = self.compare_divergence(report);
        QualityComparison {
            model: self.model.clone(),
            kv: self.kv.clone(),
            path: self.path,
            ppl_ratio: Ratio::of(&ours, &theirs),
            nll: PairedDifference::of(&ours, &theirs),
            kld_reason: kld.as_ref().err().map(|reason| (*reason).to_owned()),
            kld: kld.ok(),
        }
    }

    fn compare_divergence(&self, report: &QualityReport) -> Result<PairedDifference, &'static str> {
        let (Some(ours), Some(theirs)) = (&report.reference, &self.reference) else {
            return Err(if report.reference.is_none() {
                "no reference was given"
            } else {
                "the earlier report has no reference"
            });
        };
        if (&ours.model.fingerprint, &ours.kv) != (&theirs.fingerprint, &theirs.kv) {
            return Err("the earlier report has another reference");
        }
        let kld = |windows: &[WindowQuality]| -> Option<Vec<f64>> {
            windows.iter().map(|w| w.kld).collect()
        };
        let (Some(ours), Some(theirs)) = (kld(&report.per_window), kld(&self.per_window)) else {
            return Err("a window has no divergence");
        };
        Ok(PairedDifference::of(&ours, &theirs))
    }
}

impl QualityComparison {
    /// The comparison as a Markdown table.
    pub fn table(&self) -> String {
        let mut table = Table::new(&["against the earlier report", "value", "95 % interval", ""]);
        let bounds = self.ppl_ratio.ci95.map(|[low, high]| format!("{low:.5} … {high:.5}"));
        let ratio = format!("{:.5}", self.ppl_ratio.value);
        let mut row = |name: &str, value: String, ci95: String, verdict: String| {
            table.row(vec![name.into(), value, ci95, verdict]);
        };
        row("PPL / PPL", ratio, bounds.unwrap_or_default(), String::new());
        let figures = [("NLL - NLL", Some(self.nll)), ("KLD - KLD", self.kld)];
        for (name, figure) in figures {
            if let Some(PairedDifference { value, ci95, verdict }) = figure {
                row(name, number(value), interval(ci95), verdict.to_string());
            }
        }
        let mut text = table.render();
        if let Some(reason) = &self.kld_reason {
            text.push_str(&format!("KLD not compared: {reason}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_decides() {
        assert_eq!(QualityVerdict::of(Some([-0.2, -0.1])), QualityVerdict::Better);
        assert_eq!(QualityVerdict::of(Some([0.1, 0.2])), QualityVerdict::Worse);
        for undecided in [Some([-0.1, 0.1]), Some([0.0, 0.0]), None] {
            assert_eq!(QualityVerdict::of(undecided), QualityVerdict::NotDistinguishable);
        }
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.5, 2.25, 3.75, 4.5]);
        let difference = PairedDifference::of(&a, &b);
        assert_eq!((difference.value, difference.verdict), (-0.5, QualityVerdict::Better));
        assert_eq!(PairedDifference::of(&b, &a).verdict, QualityVerdict::Worse);
        assert_eq!(PairedDifference::of(&a, &a).verdict, QualityVerdict::NotDistinguishable);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for json in ["", "[]", "{}", r#"{"schema_version":1}"#] {
            assert!(EarlierReport::from_json(json.as_bytes()).is_err(), "{json}");
        }
    }
}
