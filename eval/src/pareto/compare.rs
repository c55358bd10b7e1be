//! Whether two reports agree: a measurement that cannot be repeated says nothing.

use serde::Serialize;

use super::report::{ParetoPoint, ParetoReport};
use crate::table::{Table, interval};

/// Two reports, figure by figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParetoComparison {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Figures with an interval in both.
    pub figures: Vec<Compared>,
    /// Points that only one of the two has.
    pub only_in_one: Vec<String>,
    /// What differs in how they were measured; empty when they are comparable.
    pub differences: Vec<String>,
}

/// A figure in both reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// The point.
    pub point: String,
    /// What was measured.
    pub measure: String,
    /// 95 % interval in the first report.
    pub first: [f64; 2],
    /// 95 % interval in the second.
    pub second: [f64; 2],
    /// Whether the intervals have a value in common.
    pub overlap: bool,
}

/// Compares two reports by the points' names.
pub fn compare_pareto(first: &ParetoReport, second: &ParetoReport) -> ParetoComparison {
    let name = |report: &ParetoReport, point: &ParetoPoint| {
        format!("{} / {}", point.model, report.full_name(point))
    };
    let named = |report: &ParetoReport| -> Vec<(String, ParetoPoint)> {
        report.points.iter().map(|p| (name(report, p), p.clone())).collect()
    };
    let (ours, theirs) = (named(first), named(second));
    let mut figures = Vec::new();
    for (name, a) in &ours {
        let Some((_, b)) = theirs.iter().find(|(other, _)| other == name) else { continue };
        let pairs = intervals(a).into_iter().zip(intervals(b));
        for ((measure, first), (_, second)) in pairs {
            let (Some(first), Some(second)) = (first, second) else { continue };
            let overlap = first[0] <= second[1] && second[0] <= first[1];
            figures.push(Compared { point: name.clone(), measure, first, second, overlap });
        }
    }
    let missing = |from: &[(String, ParetoPoint)], of: &[(String, ParetoPoint)]| {
        let absent = of.iter().filter(|(name, _)| !from.iter().any(|(other, _)| other == name));
        absent.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let only_in_one = [missing(&theirs, &ours), missing(&ours, &theirs)].concat();
    ParetoComparison {
        schema_version: crate::SCHEMA_VERSION,
        figures,
        only_in_one,
        differences: differences(first, second),
    }
}

/// The figures of a point that have an interval, in an order that depends on its numbers of threads
/// alone.
fn intervals(point: &ParetoPoint) -> Vec<(String, Option<[f64; 2]>)> {
    let mut list = vec![
        ("PPL".to_owned(), point.ppl.ci95),
        ("KLD".to_owned(), point.kld.and_then(|kld| kld.ci95)),
    ];
    for speed in &point.speed {
        let threads = speed.threads;
        list.push((format!("decode tok/s, {threads} threads"), speed.decode_tok_s.ci95));
        list.push((format!("prefill tok/s, {threads} threads"), speed.prefill_tok_s.ci95));
    }
    list
}

fn differences(first: &ParetoReport, second: &ParetoReport) -> Vec<String> {
    let mut list = Vec::new();
    let mut note = |what: &str, a: String, b: String| {
        if a != b {
            list.push(format!("{what}: {a} and {b}"));
        }
    };
    let quality = |r: &ParetoReport| {
        let q = &r.quality;
        format!("{} {} x {}, cache {}", q.protocol, q.windows, q.ctx, q.kv)
    };
    note("quality", quality(first), quality(second));
    let text = |r: &ParetoReport| r.quality.text_blake3.clone();
    note("text", text(first), text(second));
    let speed = |r: &ParetoReport| {
        r.speed.as_ref().map_or("not measured".into(), |s| {
            format!(
                "threads {:?}, {} + {}, cache {}, {}",
                s.threads, s.prompt, s.r#gen, s.kv, s.isa
            )
        })
    };
    note("speed", speed(first), speed(second));
    let cpu = |r: &ParetoReport| r.host.cpu.clone().unwrap_or_else(|| "unknown".into());
    note("CPU", cpu(first), cpu(second));
    list
}

impl ParetoComparison {
    /// Whether the reports have figures in common and all of them agree.
    pub fn agrees(&self) -> bool {
        !self.figures.is_empty()
            && self.only_in_one.is_empty()
            && self.differences.is_empty()
            && self.figures.iter().all(|figure| figure.overlap)
    }

    /// The comparison as a table with a verdict.
    pub fn text(&self) -> String {
        let mut table = Table::new(&["point", "measure", "first", "second", "overlap"]);
        for figure in &self.figures {
            table.row(vec![
                figure.point.clone(),
                figure.measure.clone(),
                interval(Some(figure.first)),
                interval(Some(figure.second)),
                if figure.overlap { "yes" } else { "NO" }.into(),
            ]);
        }
        let mut out = table.render();
        out.push('\n');
        for difference in &self.differences {
            out.push_str(&format!("not measured alike: {difference}\n"));
        }
        for name in &self.only_in_one {
            out.push_str(&format!("only in one of them: {name}\n"));
        }
        let apart = self.figures.iter().filter(|figure| !figure.overlap).count();
        let verdict = if self.agrees() { "passed" } else { "FAILED" };
        let total = self.figures.len();
        out.push_str(&format!("check {verdict}: {} of {total} intervals overlap\n", total - apart));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pareto::testing::report;

    #[test]
    fn a_report_agrees_with_itself() {
        let comparison = compare_pareto(&report(), &report());
        assert!(comparison.agrees(), "{}", comparison.text());
        // PPL for each of 11 points, KLD for each of 10, 2 rates for each of 2 threads.
        assert_eq!(comparison.figures.len(), 11 + 10 + 11 * 4);
        assert!(comparison.text().ends_with("check passed: 65 of 65 intervals overlap\n"));
    }

    #[test]
    fn what_does_not_overlap_is_found() {
        let mut other = report();
        let rate = &mut other.points[3].speed[1].decode_tok_s;
        rate.ci95 = rate.ci95.map(|ci95| ci95.map(|bound| bound * 1.2));
        let comparison = compare_pareto(&report(), &other);
        assert!(!comparison.agrees());
        let apart: Vec<_> = comparison.figures.iter().filter(|f| !f.overlap).collect();
        assert_eq!(apart.len(), 1);
        assert_eq!(apart[0].measure, "decode tok/s, 2 threads");
        assert!(comparison.text().contains("| NO") || comparison.text().contains("NO |"));
    }

    #[test]
    fn reports_of_other_settings_or_points_do_not_agree() {
        let mut other = report();
        other.quality.windows = 7;
        let comparison = compare_pareto(&report(), &other);
        assert_eq!(comparison.differences.len(), 1);
        assert!(!comparison.agrees());
        let mut other = report();
        other.points.pop();
        let comparison = compare_pareto(&report(), &other);
        assert_eq!(comparison.only_in_one, ["Model-135M / 4 bits"]);
        assert!(!comparison.agrees());
    }

    #[test]
    fn nothing_in_common_is_no_agreement() {
        let mut other = report();
        other.points.clear();
        assert!(!compare_pareto(&other, &other).agrees());
    }
}
