//! The result of a quality measurement.

use serde::{Deserialize, Serialize};

use super::protocol::Protocol;
use crate::host::Host;
use crate::model_facts::ModelFacts;
use crate::table::{Table, interval, number, percent};

/// A value and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
}

/// A ratio of two models' values on the same windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The value.
    pub value: f64,
    /// 95 % confidence interval, paired; null for a single window.
    pub ci95: Option<[f64; 2]>,
}

/// Kullback-Leibler divergence of the model's distribution from the reference's, in nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Mean over tokens.
    pub mean: f64,
    /// 95 % confidence interval of the mean, by bootstrap over windows; null for a single window.
    pub ci95: Option<[f64; 2]>,
    /// Median over tokens.
    pub median: f64,
    /// 90th percentile, by nearest rank as the following.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

/// The reference in the same measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceQuality {
    /// Its perplexity.
    pub ppl: Estimate,
    /// The model.
    #[serde(flatten)]
    pub model: ModelFacts,
    /// Element type of its key/value cache.
    pub kv: String,
}

/// One window, so that reports over the same windows can be compared in pairs afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WindowQuality {
    /// Mean loss of the model in nats per token.
    pub nll: f64,
    /// Mean loss of the reference.
    pub reference_nll: Option<f64>,
    /// Mean divergence.
    pub kld: Option<f64>,
}

/// Quality of a model on a text, and against a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QualityReport {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Which tokens were scored in which context.
    pub protocol: Protocol,
    /// Tokens of a window.
    pub ctx: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens scored.
    pub tokens: u64,
    /// Tokens of the whole text.
    pub text_tokens: u64,
    /// Token that replaced the first of each window, if one did.
    pub bos: Option<u32>,
    /// Perplexity; the standard error is over tokens, as llama.cpp prints it.
    pub ppl: Estimate,
    /// The reference, if there was one; with it the following five.
    pub reference: Option<ReferenceQuality>,
    /// Divergence from the reference.
    pub kld: Option<Divergence>,
    /// Share of tokens at which both find the same token likeliest.
    pub same_top1: Option<f64>,
    /// 95 % confidence interval of that share, by bootstrap over windows.
    pub same_top1_ci95: Option<[f64; 2]>,
    /// Root mean square of the difference between the probabilities of the token that follows.
    pub delta_p_rms: Option<f64>,
    /// Perplexity over the reference's.
    pub ppl_ratio: Option<Ratio>,
    /// The model.
    #[serde(flatten)]
    pub model: ModelFacts,
    /// BLAKE3 of the text.
    pub text_blake3: String,
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
    /// Means per window.
    pub per_window: Vec<WindowQuality>,
}

impl QualityReport {
    /// The report as a Markdown table with a line on its circumstances.
    pub fn table(&self) -> String {
        let mut table = Table::new(&["measure", "value", "± / 95 % interval"]);
        let mut row = |name: &str, value: String, spread: String| {
            table.row(vec![name.into(), value, spread]);
        };
        // As many digits as llama.cpp prints, so that figures can be laid side by side.
        let estimate = |e: Estimate| (format!("{:.4}", e.value), format!("± {:.4}", e.stderr));
        let (value, spread) = estimate(self.ppl);
        row("PPL", value, spread);
        if let Some(reference) = &self.reference {
            let (value, spread) = estimate(reference.ppl);
            row("PPL of the reference", value, spread);
        }
        if let Some(ratio) = self.ppl_ratio {
            let ci95 = ratio.ci95.map(|[l, h]| format!("{l:.5} … {h:.5}"));
            row(
                "PPL / PPL of the reference",
                format!("{:.5}", ratio.value),
                ci95.unwrap_or_default(),
            );
        }
        if let Some(kld) = self.kld {
            row("KLD mean", number(kld.mean), interval(kld.ci95));
            for (name, value) in [
                ("KLD median", kld.median),
                ("KLD p90", kld.p90),
                ("KLD p99", kld.p99),
                ("KLD p99.9", kld.p999),
                ("KLD max", kld.max),
            ] {
                row(name, number(value), String::new());
            }
        }
        if let Some(share) = self.same_top1 {
            let ci95 = self.same_top1_ci95;
            let ci95 = ci95.map(|[l, h]| format!("{} … {}", percent(l), percent(h)));
            row("same top 1", percent(share), ci95.unwrap_or_default());
        }
        if let Some(rms) = self.delta_p_rms {
            row("RMS Δp", percent(rms), String::new());
        }
        row("bits per weight", format!("{:.3}", self.model.bits_per_weight), String::new());
        row("file", format!("{:.1} MB", self.model.file_bytes as f64 / 1e6), String::new());
        format!(
            "{}\n{} protocol, {} windows of {}, {} tokens scored; KV {}, {} threads, {}, {:.1} s\n{}\n",
            table.render(),
            self.protocol,
            self.windows,
            self.ctx,
            self.tokens,
            self.kv,
            self.threads,
            self.isa,
            self.seconds,
            self.host.line(),
        )
    }
}
