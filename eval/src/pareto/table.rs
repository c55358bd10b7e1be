//! The report as tables: the same cells for Markdown and for the page.

use super::charts::in_threads;
use super::front::{Better, front};
use super::peers::{Peer, PeerSpeed};
use super::report::{ParetoPoint, ParetoReport};
use crate::spread::Spread;
use crate::table::Table;

/// A header and rows of as many cells.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cells {
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Cells {
    fn markdown(&self) -> String {
        // What a user typed must not end a cell.
        let safe = |cell: &String| cell.replace('|', "\\|").replace(['\n', '\r'], " ");
        let header: Vec<String> = self.header.iter().map(safe).collect();
        let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
        for row in &self.rows {
            table.row(row.iter().map(safe).collect());
        }
        table.render()
    }
}

impl ParetoReport {
    /// The report as Markdown: what was measured and how, the table, and other programs beside it.
    pub fn markdown(&self) -> String {
        let mut out = format!("{}\n\n{}", self.circumstances().join(" "), self.cells().markdown());
        let peers = self.peer_cells(true);
        if !peers.rows.is_empty() {
            out.push_str("\nOther programs, the files that no other of theirs beats");
            match self.peers.as_ref().and_then(|peers| peers.note.as_ref()) {
                Some(note) => out.push_str(&format!(" ({note}):\n\n")),
                None => out.push_str(":\n\n"),
            }
            out.push_str(&peers.markdown());
        }
        out
    }

    /// The report for a terminal.
    pub fn text(&self) -> String {
        let mut out = self.markdown();
        for warning in &self.warnings {
            out.push_str(&format!("\nwarning: {warning}"));
        }
        if !self.warnings.is_empty() {
            out.push('\n');
        }
        out
    }

    /// Sentences on how it was measured.
    pub(super) fn circumstances(&self) -> Vec<String> {
        let quality = &self.quality;
        let mut lines = vec![format!(
            "PPL and KLD against {} on {}: protocol {}, {} windows of {}, cache {}.",
            if self.models.len() == 1 { &self.models[0] } else { "each model" },
            quality.text,
            quality.protocol,
            quality.windows,
            quality.ctx,
            quality.kv
        )];
        if let Some(speed) = &self.speed {
            lines.push(format!(
                "Speed: prompt {}, {} generated, cache {}, {}; medians of {} in fresh processes, \
                 all files in turn.",
                speed.prompt,
                speed.r#gen,
                speed.kv,
                speed.isa,
                speed.in_rounds(),
            ));
        }
        lines.push(format!("{}, {}.", self.host.line(), date(self.unix_time_s)));
        lines
    }

    /// A row for each point.
    pub(super) fn cells(&self) -> Cells {
        let threads = self.threads();
        let mut header: Vec<String> =
            ["file", "bytes", "bits per weight", "PPL ±", "KLD (95 %)", "KLD p99.9", "same top 1"]
                .map(str::to_owned)
                .to_vec();
        for what in ["decode", "prefill"] {
            header
                .extend(threads.iter().map(|&n| format!("{what} tok/s, {} (95 %)", in_threads(n))));
        }
        if !threads.is_empty() {
            header.push("memory MiB, private + mapped".into());
        }
        let rows = self.points.iter().map(|point| self.row(point)).collect();
        Cells { header, rows }
    }

    fn row(&self, point: &ParetoPoint) -> Vec<String> {
        let mut row = vec![
            self.full_name(point),
            grouped(point.facts.file_bytes),
            format!("{:.2}", point.facts.bits_per_weight),
            format!("{:.3} ± {:.3}", point.ppl.value, point.ppl.stderr),
            point.kld.map_or_else(String::new, |kld| with_interval(kld.mean, kld.ci95)),
            point.kld.map_or_else(String::new, |kld| three(kld.p999)),
            point.same_top1.map_or_else(String::new, share),
        ];
        let threads = self.threads();
        let rate = |rate: &Spread| with_interval(rate.median, rate.ci95);
        let speeds = || threads.iter().map(|&threads| point.speed_with(threads));
        row.extend(speeds().map(|s| s.map_or_else(String::new, |s| rate(&s.decode_tok_s))));
        row.extend(speeds().map(|s| s.map_or_else(String::new, |s| rate(&s.prefill_tok_s))));
        if !threads.is_empty() {
            let mib =
                |bytes: Option<u64>| bytes.map_or_else(|| "?".into(), |b| (b >> 20).to_string());
            row.push(point.memory.map_or_else(String::new, |memory| {
                format!("{} + {}", mib(memory.anonymous_peak_bytes), mib(memory.file_peak_bytes))
            }));
        }
        row
    }

    /// A row for each file of another program, by size. In brief: only those on their front, and no speeds
    /// of other machines.
    pub(super) fn peer_cells(&self, brief: bool) -> Cells {
        let peers = self.peers.as_ref().map_or(&[][..], |peers| &peers.peers);
        let places: Vec<(f64, f64)> = peers
            .iter()
            .map(|peer| (peer.bytes as f64, peer.kld.unwrap_or(f64::INFINITY)))
            .collect();
        let mut order = if brief {
            front(&places, Better::Lower)
        } else {
            let mut all: Vec<usize> = (0..peers.len()).collect();
            all.sort_by_key(|&i| peers[i].bytes);
            all
        };
        // As ours: from the largest down.
        order.reverse();
        let peers: Vec<&Peer> = order.into_iter().map(|i| &peers[i]).collect();
        let cpu = self.host.cpu.as_deref();
        let shown = |speed: &&PeerSpeed| !brief || speed.is_of(cpu);
        let timed = peers.iter().any(|peer| peer.speed.iter().any(|speed| shown(&speed)));
        let mut header: Vec<String> =
            ["program and type", "bytes", "PPL", "KLD (95 %)", "KLD p99.9", "same top 1"]
                .map(str::to_owned)
                .to_vec();
        header.push("best gristmill file of at most as many bytes".into());
        if timed {
            header.push("decode / prefill tok/s".into());
        }
        let rows = peers.iter().map(|peer| {
            let mut row = vec![
                peer.name(),
                grouped(peer.bytes),
                peer.ppl.map_or_else(String::new, |ppl| format!("{ppl:.3}")),
                peer.kld.map_or_else(String::new, |kld| with_interval(kld, peer.kld_ci)),
                peer.kld_p999.map_or_else(String::new, three),
                peer.same_top1.map_or_else(String::new, share),
                self.answer_to(peer),
            ];
            if timed {
                row.push(speeds(peer.speed.iter().filter(shown)));
            }
            row
        });
        Cells { rows: rows.collect(), header }
    }

    /// The least divergence that one of ours has with at most a peer's bytes.
    fn answer_to(&self, peer: &Peer) -> String {
        let fits = self.files().filter(|point| point.facts.file_bytes <= peer.bytes);
        let klds = fits.filter_map(|point| Some((point, point.kld?.mean)));
        let best = klds.min_by(|a, b| a.1.total_cmp(&b.1));
        best.map_or_else(String::new, |(point, kld)| {
            format!("{}: KLD {}", self.full_name(point), three(kld))
        })
    }
}

/// A peer's speeds with the machines they were measured on.
fn speeds<'a>(speeds: impl Iterator<Item = &'a PeerSpeed>) -> String {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "?".into(), |rate| format!("{rate:.0}"));
    let speeds = speeds.map(|speed| {
        format!(
            "{} / {} ({} on {})",
            rate(speed.decode_tok_s),
            rate(speed.prefill_tok_s),
            in_threads(speed.threads),
            speed.device
        )
    });
    speeds.collect::<Vec<_>>().join("; ")
}

fn with_interval(value: f64, ci95: Option<[f64; 2]>) -> String {
    match ci95 {
        Some([low, high]) => format!("{} ({} … {})", three(value), three(low), three(high)),
        None => three(value),
    }
}

/// A number with three significant digits, or all before the point: as many as intervals warrant.
pub(super) fn three(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let digits = (2 - value.abs().log10().floor() as i32).max(0) as usize;
    format!("{value:.digits$}")
}

fn share(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

/// An integer with its digits in groups of three.
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The day in UTC, `2026-11-21`.
pub(super) fn date(unix_time_s: u64) -> String {
    // Howard Hinnant's "civil from days": years that begin in March put the leap day at the end.
    let days = unix_time_s / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pareto::testing::report;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, day) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (1_709_251_199, "2024-02-29"),
            (1_767_225_600, "2026-01-01"),
        ] {
            assert_eq!(date(seconds), day);
        }
    }

    #[test]
    fn three_digits_count() {
        for (value, text) in [
            (0.000_182_4, "0.000182"),
            (0.0226, "0.0226"),
            (13.61, "13.6"),
            (1234.5, "1234"),
            (0.0, "0"),
        ] {
            assert_eq!(three(value), text);
        }
    }

    #[test]
    fn digits_are_grouped() {
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (272_584_497, "272,584,497")]
        {
            assert_eq!(grouped(value), text);
        }
    }

    #[test]
    fn every_point_has_a_row_with_all_cells() {
        let report = report();
        let cells = report.cells();
        assert_eq!(cells.rows.len(), report.points.len());
        assert_eq!(cells.header.len(), 7 + 2 * 2 + 1);
        assert!(cells.rows.iter().all(|row| row.len() == cells.header.len()));
        let row = &cells.rows[5];
        assert_eq!(row[..3], ["84MB", "83,990,000", "5.00"]);
        assert_eq!(row[4], "0.0226 (0.0210 … 0.0242)");
        assert!(row[7].starts_with("208 (202 … "), "{row:?}");
        assert_eq!(row[11], "25 + 80");
        // The model is not compared with itself.
        assert_eq!(cells.rows[0][4], "");
    }

    #[test]
    fn without_speed_there_are_no_columns_of_it() {
        let mut report = report();
        report.speed = None;
        report.points.iter_mut().for_each(|point| point.speed.clear());
        assert_eq!(report.cells().header.len(), 7);
        assert!(!report.markdown().contains("Speed:"));
    }

    #[test]
    fn markdown_keeps_its_columns_whatever_names_hold() {
        let mut report = report();
        report.points[3].name = "a|b\nc".into();
        let markdown = report.markdown();
        assert!(markdown.contains("| a\\|b c "), "{markdown}");
        assert!(markdown.starts_with("PPL and KLD against Model-135M on wiki.test.raw: "));
        assert!(markdown.contains("2026-11-"), "{markdown}");
        let pipes = |line: &str| line.replace("\\|", "").matches('|').count();
        let counts: Vec<usize> =
            markdown.lines().filter(|line| line.starts_with('|')).map(pipes).collect();
        assert!(counts[..13].iter().all(|&count| count == 13), "{counts:?}");
    }

    #[test]
    fn peers_are_shown_beside_what_ours_reach_in_as_many_bytes() {
        let cells = report().peer_cells(true);
        let names: Vec<&str> = cells.rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(
            names,
            ["llama.cpp Q8_0", "llama.cpp Q4_K_M", "ik_llama.cpp IQ4_KS", "ik_llama.cpp IQ2_K"]
        );
        assert_eq!(cells.rows[1][6], "105.4MB: KLD 0.00320");
        assert_eq!(cells.rows[1][7], "58 / ? (1 thread on Test CPU)");
        assert_eq!(cells.rows[0][7], "", "of another machine");
        let all = report().peer_cells(false);
        assert_eq!(all.rows.len(), 5);
        assert_eq!(all.rows[0][7], "127 / 385 (1 thread on elsewhere)");
    }
}
