//! The result of a quality measurement.

use serde::{Deserialize, Serialize};

use super::protocol::{Protocol, TokenPath};
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
    /// 95 % confidence interval, by bootstrap over windows; null for a single window.
    #[serde(default)]
    pub ci95: Option<[f64; 2]>,
}

/// A ratio of two models' values on the same windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The value.
    pub value: f64,
    /// 95 % confidence interval, paired; null for a single window.
    pub ci95: Option<[f64; 2]>,
    /// The same without use of the pairs, as if each model had been measured on other windows.
    #[serde(default)]
    pub unpaired_ci95: Option<[f64; 2]>,
    /// How many times wider that is; null where the paired interval has no width.
    #[serde(default)]
    pub times_tighter: Option<f64>,
}

/// A difference of two models' values on the same windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The value.
    pub value: f64,
    /// 95 % confidence interval, paired; null for a single window.
    pub ci95: Option<[f64; 2]>,
}

/// Means over the tokens at some positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PositionQuality {
    /// First position, that is how many tokens a prediction has before its last one, the depth included.
    pub from: usize,
    /// The position after the last.
    pub to: usize,
    /// Tokens scored.
    pub tokens: u64,
    /// Mean loss of the model in nats per token.
    pub nll: f64,
    /// Mean loss of the reference.
    pub reference_nll: Option<f64>,
    /// Mean divergence.
    pub kld: Option<f64>,
    /// 95 % confidence interval of it, by bootstrap over windows.
    pub kld_ci95: Option<[f64; 2]>,
    /// Share of tokens at which both find the same token likeliest.
    pub same_top1: Option<f64>,
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
    /// Tokens of the text before each window, which are context and not scored.
    #[serde(default)]
    pub depth: usize,
    /// How the model computed the tokens of a window.
    #[serde(default)]
    pub path: TokenPath,
    /// Windows.
    pub windows: usize,
    /// The first of them, counted from the start of the text; not 0 where the depth leaves windows out.
    #[serde(default)]
    pub first_window: usize,
    /// Tokens scored.
    pub tokens: u64,
    /// Tokens of the whole text.
    pub text_tokens: u64,
    /// Token that replaced the first of each window, if one did.
    pub bos: Option<u32>,
    /// Perplexity; the standard error is over tokens, as llama.cpp prints it.
    pub ppl: Estimate,
    /// The reference, if there was one; with it the following seven.
    pub reference: Option<ReferenceQuality>,
    /// Divergence from the reference.
    pub kld: Option<Divergence>,
    /// Share of tokens at which both find the same token likeliest.
    pub same_top1: Option<f64>,
    /// 95 % confidence interval of that share, by bootstrap over windows.
    pub same_top1_ci95: Option<[f64; 2]>,
    /// Root mean square of the difference between the probabilities of the token that follows.
    pub delta_p_rms: Option<f64>,
    /// 95 % confidence interval of it, by bootstrap over windows.
    #[serde(default)]
    pub delta_p_rms_ci95: Option<[f64; 2]>,
    /// Perplexity over the reference's.
    pub ppl_ratio: Option<Ratio>,
    /// Perplexity less the reference's.
    #[serde(default)]
    pub ppl_difference: Option<Difference>,
    /// Means by position.
    #[serde(default)]
    pub by_position: Vec<PositionQuality>,
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
        let bounds = |ci95: Option<[f64; 2]>, digits: usize| {
            ci95.map_or(String::new(), |[l, h]| format!("{l:.digits$} … {h:.digits$}"))
        };
        let estimate = |e: Estimate| {
            let spread = format!("± {:.4}; {}", e.stderr, bounds(e.ci95, 4));
            (format!("{:.4}", e.value), spread.trim_end_matches("; ").to_owned())
        };
        let (value, spread) = estimate(self.ppl);
        row("PPL", value, spread);
        if let Some(reference) = &self.reference {
            let (value, spread) = estimate(reference.ppl);
            row("PPL of the reference", value, spread);
        }
        if let Some(ratio) = self.ppl_ratio {
            let (value, name) = (format!("{:.5}", ratio.value), "PPL / PPL of the reference");
            row(name, value, bounds(ratio.ci95, 5));
            if let Some(times) = ratio.times_tighter {
                let spread = bounds(ratio.unpaired_ci95, 5);
                row("  the same, not paired", format!("{} x as wide", number(times)), spread);
            }
        }
        if let Some(difference) = self.ppl_difference {
            let value = format!("{:.4}", difference.value);
            row("PPL - PPL of the reference", value, bounds(difference.ci95, 4));
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
            row("same top 1", percent(share), percents(self.same_top1_ci95));
        }
        if let Some(rms) = self.delta_p_rms {
            row("RMS Δp", percent(rms), percents(self.delta_p_rms_ci95));
        }
        row("bits per weight", format!("{:.3}", self.model.bits_per_weight), String::new());
        row("file", format!("{:.1} MB", self.model.file_bytes as f64 / 1e6), String::new());
        let depth = match self.depth {
            0 => String::new(),
            depth => format!(" after {depth} tokens"),
        };
        let path = match self.path {
            TokenPath::Prefill => "",
            TokenPath::Decode => ", token by token",
        };
        format!(
            "{}\n{} protocol, {} windows of {}{depth}{path}, {} tokens scored; KV {}, {} threads, \
             {}, {:.1} s\n{}\n",
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

    /// Means by position as a Markdown table; the columns that need a reference only where there is one.
    pub fn position_table(&self) -> String {
        let paired = self.reference.is_some();
        let mut header = vec!["positions", "tokens", "NLL"];
        if paired {
            header.extend(["NLL of the reference", "KLD", "95 % interval", "same top 1"]);
        }
        let mut table = Table::new(&header);
        for bin in &self.by_position {
            let mut cells = vec![
                format!("{} … {}", bin.from, bin.to - 1),
                bin.tokens.to_string(),
                format!("{:.4}", bin.nll),
            ];
            if paired {
                let or_nothing =
                    |value: Option<f64>, show: fn(f64) -> String| value.map_or(String::new(), show);
                cells.extend([
                    or_nothing(bin.reference_nll, |nll| format!("{nll:.4}")),
                    or_nothing(bin.kld, number),
                    interval(bin.kld_ci95),
                    or_nothing(bin.same_top1, percent),
                ]);
            }
            table.row(cells);
        }
        table.render()
    }
}

/// `low … high` in percent, or nothing where there is no interval.
fn percents(ci95: Option<[f64; 2]>) -> String {
    ci95.map_or(String::new(), |[low, high]| format!("{} … {}", percent(low), percent(high)))
}
