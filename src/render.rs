//! One result, rendered as text for people or as one JSON document for programs.

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

/// Version of the JSON documents that the verbs print; raised when a field changes its meaning.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// What a verb found out.
pub(crate) trait Render: Serialize {
    /// The text for people, lines ended.
    fn text(&self) -> String;
}

/// Prints a result on standard output.
pub(crate) fn emit(result: &impl Render, json: bool) -> Result<()> {
    print(&if json { json_text(result)? } else { result.text() })
}

/// Prints a text on standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// A JSON document, lines ended.
pub(crate) fn json_text(result: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(result)?;
    text.push('\n');
    Ok(text)
}

/// Tells the user something beside the result.
pub(crate) fn note(message: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// Columns of text: the first flush left, the others flush right.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = match column {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Lines of `name  value` with the values under each other.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    lines: Vec<(String, String)>,
}

impl Facts {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl std::fmt::Display) {
        self.lines.push((name.into(), value.to_string()));
    }

    pub(crate) fn text(&self) -> String {
        let width = self.lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.lines {
            let _ = writeln!(text, "{name:<width$}  {value}");
        }
        text
    }
}

/// A size in decimal units, as hubs and disks state it.
pub(crate) fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        ..1e3 => format!("{count} B"),
        ..1e6 => format!("{:.1} kB", count / 1e3),
        ..1e9 => format!("{:.2} MB", count / 1e6),
        _ => format!("{:.2} GB", count / 1e9),
    }
}

/// A rate with three significant digits or all before the point.
pub(crate) fn rate(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["codec", "bytes"]);
        table.row(["q4".into(), "12".into()]);
        table.row(["bf16".into(), "12345".into()]);
        assert_eq!(table.text(), "codec  bytes\nq4        12\nbf16   12345\n");
    }

    #[test]
    fn sizes_use_decimal_units() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(4_334_640), "4.33 MB");
        assert_eq!(bytes(88_384), "88.4 kB");
    }
}
