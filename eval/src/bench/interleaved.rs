//! Several files measured in turns, each time in a fresh process.

use serde::{Deserialize, Serialize};

use super::report::{BenchReport, BenchRow};
use crate::host::Host;
use crate::spread::{Spread, Verdict};
use crate::table::{Table, interval, number, wrapped};

/// Clocks of the runs may differ by this share while their times are comparable.
const MAX_CLOCK_CHANGE: f64 = 0.05;

/// What was measured of several files (or of one, several times), and how they compare with the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interleaved {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Fresh processes per file. In each round every file has one; every other round goes backwards.
    pub rounds: usize,
    /// Whether nothing disturbed the runs.
    pub comparable: bool,
    /// What did.
    pub disturbances: Vec<String>,
    /// The files, in the order asked for.
    pub files: Vec<FileRuns>,
    /// The machine.
    pub host: Host,
}

/// The runs of one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileRuns {
    /// What the user named it.
    pub name: String,
    /// A row per number of threads, depth and prompt.
    pub rows: Vec<RunsRow>,
    /// What each process reported.
    pub reports: Vec<BenchReport>,
}

/// One number of threads at one depth with one prompt, over the runs of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunsRow {
    /// Threads.
    pub threads: usize,
    /// Tokens in the context before the prompt.
    pub depth: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated per second.
    pub decode_tok_s: Spread,
    /// Tokens of the prompt per second.
    pub prefill_tok_s: Spread,
    /// Median time from a prompt's tokens to the first generated one.
    pub ttft_ms: Spread,
    /// Median time of a following token.
    pub tpot_ms: Spread,
    /// Bytes that decoding a token reads.
    pub bytes_per_token: u64,
    /// Rate over that of the first file in the same round; null for the first file.
    pub decode_ratio: Option<Spread>,
    /// What that says.
    pub decode_verdict: Option<Verdict>,
    /// The same of prompts.
    pub prefill_ratio: Option<Spread>,
    /// What that says.
    pub prefill_verdict: Option<Verdict>,
}

impl Interleaved {
    /// Puts the reports of the rounds together: for each file its name and one report per round.
    ///
    /// # Panics
    /// When there are no files or a file has no report.
    pub fn of(files: Vec<(String, Vec<BenchReport>)>) -> Self {
        let disturbances = disturbances(&files);
        let comparable = disturbances.is_empty();
        let first = files[0].1.clone();
        let rounds = first.len();
        let runs = |(i, (name, reports)): (usize, (String, Vec<BenchReport>))| {
            let reference = (i > 0).then_some(first.as_slice());
            let rows = reports[0].rows.iter();
            let rows = rows.filter_map(|row| RunsRow::of(row, &reports, reference, comparable));
            FileRuns { rows: rows.collect(), name, reports }
        };
        Self {
            schema_version: crate::SCHEMA_VERSION,
            rounds,
            comparable,
            disturbances,
            host: first[0].host.clone(),
            files: files.into_iter().enumerate().map(runs).collect(),
        }
    }

    /// The result as a Markdown table with lines on its circumstances.
    pub fn table(&self) -> String {
        let mut table = Table::new(&[
            "file", "threads", "depth", "prompt", "MB", "decode", "95 %", "ratio", "95 %",
            "prefill", "ratio", "95 %",
        ]);
        let mut verdicts = Vec::new();
        for file in &self.files {
            for row in &file.rows {
                let ratio = |ratio: &Option<Spread>| match ratio {
                    Some(spread) => (format!("{:.3}", spread.median), interval(spread.ci95)),
                    None => ("1".into(), String::new()),
                };
                let (decode, decode_ci) = ratio(&row.decode_ratio);
                let (prefill, prefill_ci) = ratio(&row.prefill_ratio);
                table.row(vec![
                    short(&file.name).into(),
                    row.threads.to_string(),
                    row.depth.to_string(),
                    row.prompt.to_string(),
                    number(file.reports[0].model.file_bytes as f64 / 1e6),
                    number(row.decode_tok_s.median),
                    interval(row.decode_tok_s.ci95),
                    decode,
                    decode_ci,
                    number(row.prefill_tok_s.median),
                    prefill,
                    prefill_ci,
                ]);
                if let (Some(decode), Some(prefill)) = (row.decode_verdict, row.prefill_verdict) {
                    verdicts.push(format!(
                        "{}, {} threads, depth {}, prompt {}: decoding {}, prompts {}\n",
                        short(&file.name),
                        row.threads,
                        row.depth,
                        row.prompt,
                        decode.name(),
                        prefill.name()
                    ));
                }
            }
        }
        let mut out = format!(
            "{}\ntokens per second, medians of {} fresh processes each, in turns; ratios to the first file within a round; KV \
             {}\n{}\n",
            table.render(),
            self.rounds,
            self.files[0].reports[0].kv,
            self.host.line(),
        );
        out.extend(verdicts);
        for disturbance in &self.disturbances {
            out.push_str("not comparable: ");
            out.push_str(disturbance);
            out.push('\n');
        }
        wrapped(&out)
    }
}

impl RunsRow {
    /// `None` when a run lacks the row.
    fn of(
        like: &BenchRow,
        reports: &[BenchReport],
        reference: Option<&[BenchReport]>,
        comparable: bool,
    ) -> Option<Self> {
        let place = reports[0].place_of(like);
        let rows = |reports: &[BenchReport]| -> Option<Vec<BenchRow>> {
            reports.iter().map(|report| report.row_at(like.threads, place).cloned()).collect()
        };
        let own = rows(reports)?;
        let reference = reference.and_then(rows);
        let spread = |value: &dyn Fn(&BenchRow) -> f64| Spread::of(own.iter().map(value).collect());
        let ratio = |value: &dyn Fn(&BenchRow) -> f64| {
            let pairs = own.iter().zip(reference.as_ref()?);
            Spread::of(pairs.map(|(own, first)| value(own) / value(first)).collect())
        };
        let verdict = |ratio: &Option<Spread>| {
            let found = Verdict::of(ratio.as_ref()?.ci95);
            Some(if comparable { found } else { Verdict::NotComparable })
        };
        let decode_ratio = ratio(&|row| row.decode_tok_s);
        let prefill_ratio = ratio(&|row| row.prefill_tok_s);
        Some(Self {
            threads: like.threads,
            depth: place.0,
            prompt: place.1,
            decode_tok_s: spread(&|row| row.decode_tok_s)?,
            prefill_tok_s: spread(&|row| row.prefill_tok_s)?,
            ttft_ms: spread(&|row| row.ttft_ms.p50)?,
            tpot_ms: spread(&|row| row.tpot_ms.p50)?,
            bytes_per_token: like.bytes_per_token,
            decode_verdict: verdict(&decode_ratio),
            decode_ratio,
            prefill_verdict: verdict(&prefill_ratio),
            prefill_ratio,
        })
    }
}

/// The last part of a path.
pub(super) fn short(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or(name)
}

/// Why the times of these runs are not only those of the files.
fn disturbances(files: &[(String, Vec<BenchReport>)]) -> Vec<String> {
    let reports = || files.iter().flat_map(|(_, reports)| reports);
    let total = reports().count();
    let mut found = Vec::new();
    let disturbed: Vec<_> =
        reports().map(|report| report.activity.disturbances()).filter(|d| !d.is_empty()).collect();
    if let Some(example) = disturbed.first() {
        found.push(format!(
            "{} of {total} runs were disturbed: in the first of them {}",
            disturbed.len(),
            example.join(", ")
        ));
    }
    let clocks = || reports().filter_map(|report| report.activity.busy_mhz);
    if let (Some(low), Some(high)) = (clocks().reduce(f64::min), clocks().reduce(f64::max))
        && high > low * (1.0 + MAX_CLOCK_CHANGE)
    {
        found
            .push(format!("the CPU's clock was between {low:.0} and {high:.0} MHz after the runs"));
    }
    let first = &files[0].1[0];
    for (name, reports) in files {
        for report in reports {
            for (what, own, of_first) in
                [("KV", &report.kv, &first.kv), ("instruction set", &report.isa, &first.isa)]
            {
                let different =
                    format!("{name} ran with {what} {own}, the first file with {of_first}");
                if own != of_first && !found.contains(&different) {
                    found.push(different);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixtures::report;

    const STEADY: [f64; 5] = [50.0, 51.0, 49.0, 50.2, 49.8];

    fn runs(factor: f64) -> Vec<BenchReport> {
        STEADY.iter().map(|rate| report(&[rate * factor])).collect()
    }

    #[test]
    fn ratios_are_within_a_round() {
        let drift: Vec<BenchReport> = STEADY
            .iter()
            .enumerate()
            .map(|(i, rate)| report(&[rate * 1.1 / (i + 1) as f64]))
            .collect();
        let first: Vec<BenchReport> =
            STEADY.iter().enumerate().map(|(i, rate)| report(&[rate / (i + 1) as f64])).collect();
        let found = Interleaved::of(vec![("a".into(), first), ("dir/b".into(), drift)]);
        assert!(found.comparable, "{:?}", found.disturbances);
        assert_eq!(found.rounds, 5);
        assert!(found.files[0].rows[0].decode_ratio.is_none());
        let row = &found.files[1].rows[0];
        assert_eq!((row.depth, row.prompt, row.threads), (0, 32, 2));
        let ratio = row.decode_ratio.as_ref().expect("a second file");
        assert!(ratio.by_run.iter().all(|ratio| (ratio - 1.1).abs() < 1e-9), "{ratio:?}");
        assert_eq!(row.decode_verdict, Some(Verdict::Faster));
        assert_eq!(row.prefill_verdict, Some(Verdict::NotDistinguishable));
        let table = found.table();
        assert!(table.contains("| b ") && table.contains("decoding faster"), "{table}");
        let json = serde_json::to_value(&found).expect("plain data");
        assert_eq!(serde_json::from_value::<Interleaved>(json).expect("the same shape"), found);
    }

    #[test]
    fn a_busy_machine_compares_nothing() {
        for disturb in [
            (|r| r.activity.others_cores = Some(0.7)) as fn(&mut BenchReport),
            |r| r.activity.steal_share = Some(0.2),
            |r| r.activity.busy_mhz = Some(1000.0),
            |r| r.kv = "int8".into(),
        ] {
            let (mut first, mut second) = (runs(1.0), runs(2.0));
            first.iter_mut().for_each(|report| report.activity.busy_mhz = Some(3000.0));
            disturb(&mut second[3]);
            let found = Interleaved::of(vec![("a".into(), first), ("b".into(), second)]);
            assert!(!found.comparable && !found.disturbances.is_empty());
            let row = &found.files[1].rows[0];
            assert_eq!(row.decode_verdict, Some(Verdict::NotComparable));
            assert!(row.decode_ratio.is_some(), "the figure is still there");
            assert!(found.table().contains("not comparable: "));
        }
    }
}
