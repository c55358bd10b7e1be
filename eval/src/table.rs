//! Aligned tables that are Markdown as well.

/// Columns of text; the first is aligned to the left, the others to the right.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|h| (*h).to_string()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }

    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|c| self.rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0).max(2))
            .collect();
        let mut out = String::new();
        for (r, row) in self.rows.iter().enumerate() {
            for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let cell =
                    if c == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
                out.push_str("| ");
                out.push_str(&cell);
                out.push(' ');
            }
            out.push_str("|\n");
            if r == 0 {
                for (c, &width) in widths.iter().enumerate() {
                    out.push('|');
                    out.push_str(&"-".repeat(width + 1));
                    out.push(if c == 0 { '-' } else { ':' });
                }
                out.push_str("|\n");
            }
        }
        out
    }
}

/// Breaks lines that are longer than tables are, between words; what is broken goes on after two blanks.
/// Lines of tables stay as they are.
pub(crate) fn wrapped(text: &str) -> String {
    const WIDTH: usize = 118;
    let mut out = String::new();
    for line in text.lines() {
        let mut width = 0;
        for word in line.split(' ') {
            let next = word.chars().count();
            if width > 0 && width + 1 + next > WIDTH && !line.starts_with('|') {
                out.push_str("\n  ");
                width = 2;
            } else if width > 0 {
                out.push(' ');
                width += 1;
            }
            out.push_str(word);
            width += next;
        }
        out.push('\n');
    }
    out
}

/// A number with about four significant digits.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => return "0".into(),
        x if x >= 1000.0 => 0,
        x if x >= 100.0 => 1,
        x if x >= 10.0 => 2,
        x if x >= 1.0 => 3,
        x if x >= 0.1 => 4,
        x if x >= 0.001 => 5,
        _ => return format!("{value:.2e}"),
    };
    format!("{value:.digits$}")
}

/// `low … high`, or nothing where there is no interval.
pub(crate) fn interval(ci95: Option<[f64; 2]>) -> String {
    ci95.map_or(String::new(), |[low, high]| format!("{} … {}", number(low), number(high)))
}

/// A share in percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Mebibytes.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_rule_is_markdown() {
        let mut table = Table::new(&["name", "x"]);
        table.row(vec!["a".into(), "1.25".into()]);
        table.row(vec!["longer".into(), "−".into()]);
        assert_eq!(
            table.render(),
            "| name   |    x |\n|--------|-----:|\n| a      | 1.25 |\n| longer |    − |\n"
        );
    }

    #[test]
    fn long_lines_are_broken_between_words_and_tables_are_not() {
        let words = ["word"; 40].join(" ");
        let broken = wrapped(&words);
        assert_eq!(broken.lines().count(), 2);
        assert!(broken.lines().all(|line| line.len() <= 118), "{broken}");
        assert_eq!(broken.split_whitespace().count(), 40);
        let row = format!("| {words} |\nshort\n\n");
        assert_eq!(wrapped(&row), row);
    }

    #[test]
    fn numbers_keep_four_digits() {
        for (value, text) in [
            (0.0, "0"),
            (23.481_52, "23.48"),
            (0.012_345, "0.01235"),
            (1.5e-6, "1.50e-6"),
            (1234.5, "1234"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
