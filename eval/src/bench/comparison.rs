//! A measurement beside an earlier one.

use serde::{Deserialize, Serialize};

use super::interleaved::{FileRuns, Interleaved, short};
use super::report::{BenchReport, BenchRow};
use crate::spread::{MIN_RUNS, Verdict};
use crate::stats::{bootstrap_ratio_ci95, median};
use crate::table::{Table, interval, number, wrapped};

/// What `bench` prints: of one file, or of several in turns.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum BenchDocument {
    /// Several files, or one in several processes.
    Interleaved(Box<Interleaved>),
    /// One file in one process.
    One(Box<BenchReport>),
}

/// How rates changed since an earlier document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Rows that both have.
    pub rows: Vec<ComparedRow>,
    /// Why the two cannot be compared; empty if they can.
    pub reasons: Vec<String>,
    /// Largest slowdown that was allowed, in percent; null when no limit was given.
    pub max_slowdown_percent: Option<f64>,
    /// Whether the limit is kept, where the two can be compared; null without a limit.
    pub passed: Option<bool>,
}

/// A rate then and now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparedRow {
    /// The file, where there are several.
    pub file: Option<String>,
    /// Threads.
    pub threads: usize,
    /// Tokens in the context before the prompt.
    pub depth: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// `decode_tok_s` or `prefill_tok_s`.
    pub figure: String,
    /// The earlier rate.
    pub earlier: f64,
    /// The rate now.
    pub now: f64,
    /// Now over earlier: above 1 is faster.
    pub ratio: f64,
    /// 95 % interval by bootstrap over the repeats (or processes) of both; null for fewer than five of
    /// either.
    pub ratio_ci95: Option<[f64; 2]>,
    /// What it says.
    pub verdict: Verdict,
}

/// One file of a document.
struct Side<'a> {
    name: Option<&'a str>,
    report: &'a BenchReport,
    /// Processes of the file, when there are several.
    runs: Option<&'a FileRuns>,
}

impl BenchDocument {
    /// Reads what `bench --json` printed.
    ///
    /// # Errors
    /// When the text is not JSON, or not of `bench`.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let document: serde_json::Value = serde_json::from_str(text)?;
        Ok(match document.get("files") {
            Some(_) => Self::Interleaved(serde_json::from_value(document)?),
            None => Self::One(serde_json::from_value(document)?),
        })
    }

    fn sides(&self) -> Vec<Side<'_>> {
        match self {
            Self::One(report) => vec![Side { name: None, report, runs: None }],
            Self::Interleaved(all) => {
                let files = all.files.iter().filter_map(|file| {
                    let report = file.reports.first()?;
                    Some(Side { name: Some(&file.name), report, runs: Some(file) })
                });
                files.collect()
            }
        }
    }

    /// What disturbed the measurement.
    fn disturbances(&self) -> Vec<String> {
        match self {
            // Earlier versions did not measure what others did: there the load average must do.
            Self::One(report) => match report.activity.others_cores {
                Some(_) => report.activity.disturbances(),
                None => report.host.busy().into_iter().collect(),
            },
            Self::Interleaved(all) => all.disturbances.clone(),
        }
    }
}

impl Side<'_> {
    /// Rates of a row, one per repeat or, where there are several processes, one per process.
    fn rates(&self, threads: usize, place: (usize, usize), figure: Figure) -> Option<Vec<f64>> {
        match self.runs {
            None => Some(figure.by_repeat(self.report.row_at(threads, place)?)),
            Some(runs) => {
                let rates = runs
                    .reports
                    .iter()
                    .map(|report| Some(figure.rate(report.row_at(threads, place)?)));
                rates.collect()
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Figure {
    Decode,
    Prefill,
}

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode_tok_s",
            Self::Prefill => "prefill_tok_s",
        }
    }

    fn rate(self, row: &BenchRow) -> f64 {
        match self {
            Self::Decode => row.decode_tok_s,
            Self::Prefill => row.prefill_tok_s,
        }
    }

    fn by_repeat(self, row: &BenchRow) -> Vec<f64> {
        match self {
            Self::Decode => row.decode_tok_s_by_repeat.clone(),
            Self::Prefill => row.prefill_tok_s_by_repeat.clone(),
        }
    }
}

impl Comparison {
    /// Compares what was measured now with an earlier document. Files are matched by their fingerprints.
    pub fn of(
        now: &BenchDocument,
        earlier: &BenchDocument,
        max_slowdown_percent: Option<f64>,
    ) -> Self {
        let (mut rows, mut reasons) = (Vec::new(), Vec::new());
        reasons.extend(now.disturbances());
        reasons.extend(earlier.disturbances().into_iter().map(|d| format!("earlier, {d}")));
        let old_sides = earlier.sides();
        for side in now.sides() {
            let same =
                |old: &&Side<'_>| old.report.model.fingerprint == side.report.model.fingerprint;
            let Some(old) = old_sides.iter().find(same).or(old_sides.first()) else {
                reasons.push("the earlier document has no measurement".into());
                continue;
            };
            for reason in differences(side.report, old.report) {
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
            let before = rows.len();
            for row in &side.report.rows {
                for figure in [Figure::Decode, Figure::Prefill] {
                    rows.extend(ComparedRow::of(&side, old, row, figure));
                }
            }
            if rows.len() == before {
                reasons.push("no row has the threads, depth and prompt of an earlier one".into());
            }
        }
        if !reasons.is_empty() {
            rows.iter_mut().for_each(|row| row.verdict = Verdict::NotComparable);
        }
        let passed = max_slowdown_percent.map(|percent| {
            let least = 1.0 - percent / 100.0;
            let too_slow = |row: &ComparedRow| row.ratio < least && row.verdict == Verdict::Slower;
            reasons.is_empty() && !rows.is_empty() && !rows.iter().any(too_slow)
        });
        Self { rows, reasons, max_slowdown_percent, passed }
    }

    /// The comparison as a Markdown table with its verdicts.
    pub fn table(&self) -> String {
        let mut table = Table::new(&[
            "file", "threads", "depth", "prompt", "figure", "earlier", "now", "ratio", "95 %",
            "verdict",
        ]);
        for row in &self.rows {
            table.row(vec![
                row.file.as_deref().map_or("-", short).into(),
                row.threads.to_string(),
                row.depth.to_string(),
                row.prompt.to_string(),
                row.figure.clone(),
                number(row.earlier),
                number(row.now),
                format!("{:.3}", row.ratio),
                interval(row.ratio_ci95),
                row.verdict.name().into(),
            ]);
        }
        let mut out = table.render();
        for reason in &self.reasons {
            out.push_str("not comparable: ");
            out.push_str(reason);
            out.push('\n');
        }
        if let (Some(percent), Some(passed)) = (self.max_slowdown_percent, self.passed) {
            let word = if passed { "ok" } else { "FAILED" };
            out.push_str(&format!("{word}: at most {percent} % slower\n"));
        }
        wrapped(&out)
    }
}

impl ComparedRow {
    /// `None` when the earlier document has no such row.
    fn of(now: &Side<'_>, earlier: &Side<'_>, row: &BenchRow, figure: Figure) -> Option<Self> {
        let (threads, place) = (row.threads, now.report.place_of(row));
        let new = now.rates(threads, place, figure)?;
        let old = earlier.rates(threads, place, figure)?;
        if new.is_empty() || old.is_empty() {
            return None;
        }
        let enough = new.len().min(old.len()) >= MIN_RUNS;
        let ratio_ci95 = enough.then(|| bootstrap_ratio_ci95(&new, &old)).flatten();
        let (now_median, earlier_median) = (median(&new), median(&old));
        Some(Self {
            file: now.name.map(str::to_owned),
            threads,
            depth: place.0,
            prompt: place.1,
            figure: figure.name().into(),
            earlier: earlier_median,
            now: now_median,
            ratio: now_median / earlier_median,
            ratio_ci95,
            verdict: Verdict::of(ratio_ci95),
        })
    }
}

/// What must be the same for two rates to be compared, and is not.
fn differences(now: &BenchReport, earlier: &BenchReport) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    let facts = [
        ("another model", now.model.fingerprint.clone(), earlier.model.fingerprint.clone()),
        ("another CPU", text(&now.host.cpu), text(&earlier.host.cpu)),
        ("another number of cores", now.host.cores.to_string(), earlier.host.cores.to_string()),
        ("another instruction set", now.isa.clone(), earlier.isa.clone()),
        ("another type of cache", now.kv.clone(), earlier.kv.clone()),
        ("another residency of the weights", now.residency.clone(), earlier.residency.clone()),
        ("another number of generated tokens", now.r#gen.to_string(), earlier.r#gen.to_string()),
        (
            "another way to compute the head",
            now.coarse_head_bytes.is_some().to_string(),
            earlier.coarse_head_bytes.is_some().to_string(),
        ),
    ];
    let differ = facts.into_iter().filter(|(_, now, earlier)| now != earlier);
    let mut found: Vec<String> =
        differ.map(|(what, now, earlier)| format!("{what}: {now}, earlier {earlier}")).collect();
    // Earlier versions did not tell it.
    if let (Some(now), Some(earlier)) = (&now.host.governor, &earlier.host.governor)
        && now != earlier
    {
        found.push(format!("another governor: {now}, earlier {earlier}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixtures::report;

    const STEADY: [f64; 5] = [50.0, 50.5, 49.5, 50.2, 49.8];

    fn one(decode_tok_s: &[f64]) -> BenchDocument {
        BenchDocument::One(Box::new(report(decode_tok_s)))
    }

    fn scaled(factor: f64) -> BenchDocument {
        one(&STEADY.map(|rate| rate * factor))
    }

    fn decoding(found: &Comparison) -> &ComparedRow {
        found.rows.iter().find(|row| row.figure == "decode_tok_s").expect("a row")
    }

    #[test]
    fn a_change_beyond_the_noise_is_told_from_one_within() {
        for (factor, verdict) in
            [(0.8, Verdict::Slower), (1.2, Verdict::Faster), (1.001, Verdict::NotDistinguishable)]
        {
            let found = Comparison::of(&scaled(factor), &one(&STEADY), None);
            let row = decoding(&found);
            assert_eq!(row.verdict, verdict, "{row:?}");
            assert!((row.ratio - factor).abs() < 1e-9);
            assert_eq!((found.passed, found.reasons.len()), (None, 0));
        }
        let few = Comparison::of(&one(&[10.0, 10.1]), &one(&STEADY), None);
        let row = decoding(&few);
        assert_eq!((row.ratio_ci95, row.verdict), (None, Verdict::NotDistinguishable));
    }

    #[test]
    fn a_limit_fails_on_what_is_surely_too_slow() {
        let passed = |factor| Comparison::of(&scaled(factor), &one(&STEADY), Some(10.0)).passed;
        assert_eq!(passed(0.8), Some(false));
        assert_eq!(passed(0.95), Some(true));
        assert_eq!(passed(1.5), Some(true));
        let found = Comparison::of(&scaled(0.8), &one(&STEADY), Some(10.0));
        assert!(found.table().contains("FAILED"), "{}", found.table());
    }

    #[test]
    fn other_circumstances_are_named_and_fail_a_limit() {
        type Change = fn(&mut BenchReport);
        let changes: [(&str, Change); 5] = [
            ("another CPU", |r| r.host.cpu = Some("another".into())),
            ("another instruction set", |r| r.isa = "avx2".into()),
            ("another type of cache", |r| r.kv = "int8".into()),
            ("another model", |r| r.model.fingerprint = "f2".into()),
            ("load average", |r| r.host.load_average = Some([9.0, 0.0, 0.0])),
        ];
        for (reason, change) in changes {
            let mut other = report(&STEADY);
            change(&mut other);
            let now = BenchDocument::One(Box::new(other));
            let found = Comparison::of(&now, &one(&STEADY), Some(50.0));
            assert_eq!(decoding(&found).verdict, Verdict::NotComparable);
            assert_eq!(found.passed, Some(false));
            let reasons = found.reasons.join("; ");
            assert!(reasons.contains(reason), "{reason}: {reasons}");
        }
        let mut longer = report(&STEADY);
        longer.prompt = 64;
        let now = BenchDocument::One(Box::new(longer));
        let found = Comparison::of(&now, &one(&STEADY), None);
        assert!(found.rows.is_empty() && found.reasons[0].contains("no row"), "{found:?}");
    }

    #[test]
    fn processes_are_compared_by_process() {
        let runs = |factor: f64| {
            let reports = STEADY.iter().map(|rate| report(&[rate * factor])).collect();
            BenchDocument::Interleaved(Box::new(Interleaved::of(vec![("a.grist".into(), reports)])))
        };
        let found = Comparison::of(&runs(0.7), &runs(1.0), Some(5.0));
        let row = decoding(&found);
        assert_eq!((row.verdict, row.file.as_deref()), (Verdict::Slower, Some("a.grist")));
        assert_eq!(found.passed, Some(false));
        let text = serde_json::to_string(&runs(1.0)).expect("plain data");
        assert_eq!(BenchDocument::from_json(&text).expect("the same shape"), runs(1.0));
        assert!(BenchDocument::from_json("{\"schema_version\": 1}").is_err());
    }
}
