//! The report as Markdown tables.

use std::fmt::Write;

use gristmill_kernels::Isa;

use super::case::{Case, Ceiling, Family, Origin, Unit};
use super::report::{HwBenchReport, HwBenchRow};
use crate::table::{Table, mebibytes, number};

impl HwBenchReport {
    /// The tables of all families, with a line on their circumstances before them.
    pub fn markdown(&self) -> String {
        let quick = if self.quick { " (a quick run: rough figures)" } else { "" };
        let mut out = format!(
            "{}. Medians of {} repeats{quick}; memory is a buffer of {} MiB, the cache holds {} MiB \
             per thread. `*` marks the class that is chosen.\n\nCeilings\n\n{}",
            self.host.line(),
            self.repeat,
            mebibytes(self.memory_bytes),
            mebibytes(self.cache_bytes),
            self.ceilings_table(),
        );
        let measured = |family: &Family| self.rows.iter().any(|row| row.case.family == *family);
        for family in Family::ALL.into_iter().filter(measured) {
            let _ = write!(out, "\n{}\n\n{}", title(family), self.family_table(family));
        }
        out
    }

    /// The tables, and what else to know.
    pub fn text(&self) -> String {
        let mut out = self.markdown();
        out.push('\n');
        for warning in &self.warnings {
            let _ = writeln!(out, "warning: {warning}");
        }
        for slow in &self.slow_choices {
            let _ = writeln!(
                out,
                "check FAILED: {}, {}: {} has {} {}, {} has {}",
                name(&slow.case),
                threads_name(slow.threads),
                self.chosen.name(),
                number(slow.chosen_rate),
                unit_name(slow.case.unit()),
                slow.faster.name(),
                number(slow.faster_rate),
            );
        }
        if self.checked && self.slow_choices.is_empty() {
            let _ = writeln!(
                out,
                "check passed: no class is faster than {} by more than {:.0} %",
                self.chosen.name(),
                self.tolerance * 100.0
            );
        }
        out
    }

    /// Numbers of threads in the order of the rows.
    fn threads(&self) -> Vec<usize> {
        in_order(self.rows.iter().map(|row| row.threads))
    }

    fn ceilings_table(&self) -> String {
        let threads = self.threads();
        let header = threads.iter().map(|&n| threads_name(n));
        let mut table = table(std::iter::once("ceiling".to_string()).chain(header));
        for (ceiling, isa) in in_order(self.ceilings.iter().map(|row| (row.ceiling, row.isa))) {
            let mut cells = vec![ceiling_name(ceiling, isa)];
            cells.extend(threads.iter().map(|&threads| {
                let row = self
                    .ceilings
                    .iter()
                    .find(|row| (row.ceiling, row.isa, row.threads) == (ceiling, isa, threads));
                row.map_or_else(String::new, |row| number(row.rate))
            }));
            table.row(cells);
        }
        table.render()
    }

    fn family_table(&self, family: Family) -> String {
        let rows: Vec<&HwBenchRow> =
            self.rows.iter().filter(|row| row.case.family == family).collect();
        let columns = in_order(rows.iter().map(|row| (row.threads, row.isa)));
        let header = columns.iter().map(|&(threads, isa)| {
            let mark = if isa == self.chosen { "*" } else { "" };
            format!("{}{mark}, {}", isa.name(), threads_name(threads))
        });
        let mut table = table(std::iter::once("of".to_string()).chain(header));
        for case in in_order(rows.iter().map(|row| row.case)) {
            let mut cells = vec![name(&case)];
            cells.extend(columns.iter().map(|&column| {
                let of = |row: &&&HwBenchRow| row.case == case && (row.threads, row.isa) == column;
                rows.iter().find(of).map_or_else(String::new, |row| cell(row))
            }));
            table.row(cells);
        }
        table.render()
    }
}

fn table(header: impl Iterator<Item = String>) -> Table {
    let header: Vec<String> = header.collect();
    Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Each value once, in the order of first appearance.
fn in_order<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut seen, value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
        seen
    })
}

fn cell(row: &HwBenchRow) -> String {
    match (row.cost, row.share) {
        (Some(cost), _) => format!("{cost:.2}"),
        (None, Some(share)) => format!("{} ({:.0} %)", number(row.rate), share * 100.0),
        (None, None) => number(row.rate),
    }
}

fn title(family: Family) -> &'static str {
    match family {
        Family::Gemv => "One token: GB/s of weights (share of the read bandwidth)",
        Family::SmallM => "A few tokens, weights from memory: time over that of one token",
        Family::Gemm => {
            "A prompt: GMAC/s (share of the multiplier's peak, half of it for q8 and q6: two planes)"
        }
        Family::Attention => {
            "Attention: GB/s of keys and values for one token (share of the read bandwidth), GMAC/s \
             for a prompt (share of the f32 peak)"
        }
        Family::Elementwise => "Elementwise: GB/s of inputs",
    }
}

fn name(case: &Case) -> String {
    let mut name = case.subject.name().to_string();
    match case.family {
        Family::Gemv => {
            name += if case.from == Origin::Memory { ", memory" } else { ", cache" };
        }
        Family::SmallM | Family::Gemm => {
            let _ = write!(name, ", {} tokens", case.tokens);
        }
        Family::Attention => {
            let what = if case.tokens == 1 { "one token" } else { "prompt" };
            let _ = write!(name, ", depth {}, {what}", case.depth.unwrap_or(0));
        }
        Family::Elementwise => (),
    }
    name
}

fn ceiling_name(ceiling: Ceiling, isa: Option<Isa>) -> String {
    let what = match ceiling {
        Ceiling::ReadMemory => "reading memory",
        Ceiling::ReadCache => "reading the cache",
        Ceiling::Int8 => "int8 products",
        Ceiling::F32 => "f32 fused multiply-adds",
    };
    let isa = isa.map_or(String::new(), |isa| format!(", {}", isa.name()));
    format!("{what}{isa}, {}", unit_name(ceiling.unit()))
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "GB/s",
        Unit::Macs => "GMAC/s",
    }
}

fn threads_name(threads: usize) -> String {
    if threads == 1 { "1 thread".into() } else { format!("{threads} threads") }
}
