//! The report for people.

use super::report::{BenchReport, MIN_SAMPLES_P95, MIN_SAMPLES_P99, Percentiles};
use crate::first_text::{Start, Ttft};
use crate::table::{Table, mebibytes, number, percent, wrapped};

/// The three percentiles; `~` marks one of too few samples, `-` one that is not given.
fn latencies(times: Percentiles) -> String {
    let doubtful = if times.too_few_for_p95 { "~" } else { "" };
    let p99 = times.p99.map_or_else(|| "-".into(), number);
    format!("{} / {doubtful}{} / {p99}", number(times.p50), number(times.p95))
}

/// A time in at most six characters.
fn brief(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.3}"),
        ..100.0 => format!("{ms:.2}"),
        ..1000.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

fn whole_percent(share: f64) -> String {
    format!("{:.0}", share * 100.0)
}

impl BenchReport {
    /// Where the weights were, in words.
    fn weights(&self) -> String {
        let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        match (self.copied_bytes, self.streamed_bytes) {
            (0, 0) => "mapped".into(),
            (copied, 0) => format!("copied into huge pages ({})", mb(copied)),
            (copied, streamed) => format!("{} in memory, {} streamed", mb(copied), mb(streamed)),
        }
    }

    /// How the output head was computed, in words.
    fn head(&self) -> String {
        let (Some(bytes), Some(ms)) = (self.coarse_head_bytes, self.coarse_head_ms) else {
            return "in full".into();
        };
        let shares = self.rows.iter().filter_map(|row| row.fine_head_share).map(percent);
        format!(
            "in two stages ({:.1} MB of coarse head made in {} ms, then {} of the panels)",
            bytes as f64 / 1e6,
            number(ms),
            shares.collect::<Vec<_>>().join(", "),
        )
    }

    /// The report as a Markdown table with lines on its circumstances.
    pub fn table(&self) -> String {
        let energy = self.rows.iter().any(|row| row.joules_per_token.is_some());
        let mut columns = vec![
            "threads",
            "depth",
            "prompt",
            "prefill",
            "TTFT ms",
            "decode",
            "ITL p50/p95/p99 ms",
            "MB/tok",
            "GB/s",
            "% memory",
            "% model",
        ];
        columns.extend(energy.then_some("J/tok"));
        let mut table = Table::new(&columns);
        for row in &self.rows {
            let mut cells = vec![
                row.threads.to_string(),
                row.depth.to_string(),
                row.prompt.to_string(),
                number(row.prefill_tok_s),
                number(row.ttft_ms.p50),
                number(row.decode_tok_s),
                latencies(row.tpot_ms),
                number(row.bytes_per_token as f64 / 1e6),
                number(row.achieved_gb_s),
                whole_percent(row.share_of_bandwidth),
                whole_percent(row.share_of_model_sized_bandwidth),
            ];
            if energy {
                cells.push(row.joules_per_token.map_or_else(|| "-".into(), number));
            }
            table.row(cells);
        }
        let mut out = table.render();
        if let Some(ttft) = &self.ttft {
            out.push('\n');
            out.push_str(&starts(ttft));
        }
        out.push('\n');
        out.push_str(&self.circumstances());
        for error in self.prediction.iter().flatten() {
            out.push_str(&error.line());
            out.push('\n');
        }
        if let Some(sustained) = &self.sustained {
            out.push_str(&sustained.lines());
        }
        out.push_str(&self.footnotes());
        for warning in &self.warnings {
            out.push_str("warning: ");
            out.push_str(warning);
            out.push('\n');
        }
        wrapped(&out)
    }

    /// How it was measured, line by line.
    fn circumstances(&self) -> String {
        let memory = |bytes: Option<u64>| {
            bytes.map_or_else(|| "unknown".into(), |b| format!("{} MiB", mebibytes(b)))
        };
        let mut ceilings: Vec<(usize, f64, f64)> = Vec::new();
        for row in &self.rows {
            if !ceilings.iter().any(|&(threads, ..)| threads == row.threads) {
                let model = row.bandwidth_model_sized_gb_s;
                ceilings.push((row.threads, row.bandwidth_gb_s, model));
            }
        }
        let ceilings: Vec<String> = ceilings
            .into_iter()
            .map(|(threads, memory, model)| {
                format!("{threads} threads {} and {}", number(memory), number(model))
            })
            .collect();
        let faults = |count: Option<u64>| count.map_or_else(|| "?".into(), |n| n.to_string());
        let energy = match (&self.energy.source, &self.energy.reason) {
            (Some(source), _) => {
                let idle = self.energy.idle_watts.map_or_else(|| "unknown".into(), number);
                format!("energy from {source}, {idle} W at rest")
            }
            (None, reason) => {
                format!("no energy: {}", reason.as_deref().unwrap_or("no reason is known"))
            }
        };
        format!(
            "rates in tokens per second; {} generated, {} repeats; {:.3} bits per weight, {:.1} MB, {}; KV {}\n\
             GB/s that can be read, of memory and of the model's own bytes: {}\n\
             load {} ms (again {} ms), weights {}, head {}\n\
             memory: must have {}, mapped {}, {} major faults{}\n\
             {energy}\n\
             {}\n{}\n",
            self.r#gen,
            self.repeat,
            self.model.bits_per_weight,
            self.model.file_bytes as f64 / 1e6,
            self.model.codecs.join("+"),
            self.kv,
            ceilings.join(", "),
            number(self.load_ms),
            number(self.load_warm_ms),
            self.weights(),
            self.head(),
            memory(self.memory.must_have_bytes.or(self.memory.anonymous_peak_bytes)),
            memory(self.memory.mapped_bytes.or(self.memory.file_peak_bytes)),
            faults(self.memory.major_faults),
            self.memory.cgroup_peak_bytes.map_or_else(String::new, |peak| {
                let limit = memory(self.memory.cgroup_limit_bytes);
                format!("; control group {} at its peak of {limit}", memory(Some(peak)))
            }),
            self.host.line(),
            self.host.settings(),
        )
    }

    /// Explanations of marks that occur.
    fn footnotes(&self) -> String {
        let mut out = String::new();
        if self.rows.iter().any(|row| row.tpot_ms.too_few_for_p95) {
            out.push_str(&format!(
                "~ of fewer than {MIN_SAMPLES_P95} samples, which says little\n"
            ));
        }
        if self.rows.iter().any(|row| row.tpot_ms.p99.is_none()) {
            out.push_str(&format!("p99 takes {MIN_SAMPLES_P99} samples (--gen, --repeat)\n"));
        }
        if self.rows.iter().any(|row| row.share_of_bandwidth > 1.0) {
            out.push_str("above 100 % of memory: weights stay in a cache between tokens\n");
        }
        out
    }
}

/// Times to first token, part by part.
fn starts(ttft: &Ttft) -> String {
    let title = format!("TTFT ms, {} tokens", ttft.prompt_tokens);
    let mut table = Table::new(&[
        &title,
        "p50",
        "process",
        "load",
        "tokenizer",
        "engine",
        "tokenize",
        "prefill",
        "sample",
        "detok.",
        "read MB",
    ]);
    let part = |ms: Option<f64>| ms.map_or_else(|| "-".into(), brief);
    let mut row = |name: &str, start: &Start| {
        table.row(vec![
            name.into(),
            brief(start.ttft_ms.p50),
            part(start.process_ms),
            part(start.load_ms),
            part(start.tokenizer_ms),
            part(start.engine_ms),
            part(start.tokenize_ms),
            brief(start.prefill_ms),
            brief(start.sample_ms),
            part(start.detokenize_ms),
            part(start.storage_read_bytes.map(|bytes| bytes as f64 / 1e6)),
        ]);
    };
    row("warm process", &ttft.warm);
    let mut caches = Vec::new();
    let new = [("new process", &ttft.cold), ("cache dropped", &ttft.uncached)];
    for (name, start) in new.into_iter().filter_map(|(name, start)| Some((name, start.as_ref()?))) {
        row(name, start);
        caches.push(format!("{name}: {}", start.file_cache.as_deref().unwrap_or("unknown")));
    }
    let mut out = table.render();
    if !caches.is_empty() {
        out.push_str(&format!(
            "file cache, by what was read from storage: {}\n",
            caches.join(", ")
        ));
    }
    for reason in &ttft.reasons {
        out.push_str(reason);
        out.push('\n');
    }
    out
}
