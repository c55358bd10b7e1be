//! The page: one file that needs nothing else, no script and no network.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::charts::{Chart, charts};
use super::report::ParetoReport;
use super::svg::{SIZES, draw};
use super::table::{Cells, date};

const STYLE: &str = include_str!("page.css");

/// Text as it may stand in an element or in an attribute within double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Control characters are no XML, whatever stands for them.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

impl ParetoReport {
    /// The report as a page with plots. It is HTML and XML, and loads nothing.
    pub fn html(&self) -> String {
        let title = format!("{}: size, quality, speed", self.models.join(", "));
        let title = escape(&title);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n\
             <meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta name=\"color-scheme\" content=\"light dark\"/>\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <header>\n<h1>{title}</h1>\n"
        );
        out.push_str(&self.lead());
        out.push_str(&self.facts());
        for warning in &self.warnings {
            let _ = writeln!(out, "<p class=\"warning\">{}</p>", escape(warning));
        }
        out.push_str("</header>\n<main>\n<div class=\"charts\">\n");
        for chart in charts(self) {
            out.push_str(&figure(&chart));
        }
        out.push_str("</div>\n<h2>All figures</h2>\n");
        out.push_str(
            "<p class=\"soft\">± is the standard error of a perplexity over tokens; the interval of \
             what the packing costs is that of the KL divergence, measured on the same windows.</p>\n",
        );
        out.push_str(&table(&self.cells()));
        out.push_str(&self.peers_section());
        let _ = write!(
            out,
            "</main>\n<footer>Made by gristmill {} with <code>gristmill pareto</code> on {}. The same \
             figures, and more, are in pareto.json.</footer>\n</body>\n</html>\n",
            escape(&self.host.version),
            date(self.unix_time_s)
        );
        out
    }

    /// What the page is about.
    fn lead(&self) -> String {
        let count = self.files().count();
        let what = format!(
            "{count} {} of {}, each compared with the model it was made from: \
             how far its predictions are from the model's, at how many bytes and at what speed. Down is \
             better in every plot.",
            if count == 1 { "packed file" } else { "packed files" },
            if self.models.len() == 1 { &self.models[0] } else { "several models" },
        );
        format!("<p class=\"soft\">{}</p>\n", escape(&what))
    }

    /// How it was measured.
    fn facts(&self) -> String {
        let mut facts: Vec<(&str, String)> = Vec::new();
        let host = &self.host;
        facts.push(("Device", host.line()));
        let codecs: BTreeSet<&str> =
            self.files().flat_map(|point| &point.facts.codecs).map(String::as_str).collect();
        facts.push(("Codecs", codecs.into_iter().collect::<Vec<_>>().join(", ")));
        let quality = &self.quality;
        facts.push(("Text", format!("{} (BLAKE3 {:.16}…)", quality.text, quality.text_blake3)));
        facts.push((
            "Quality",
            format!(
                "protocol {}, {} windows of {} tokens, cache {}",
                quality.protocol, quality.windows, quality.ctx, quality.kv
            ),
        ));
        if let Some(speed) = &self.speed {
            let threads: Vec<String> = speed.threads.iter().map(usize::to_string).collect();
            facts.push((
                "Speed",
                format!(
                    "{} threads, prompt of {} tokens, {} generated, cache {}, {}; medians of {} \
                     of fresh processes, all files in turn",
                    threads.join(" and "),
                    speed.prompt,
                    speed.r#gen,
                    speed.kv,
                    speed.isa,
                    speed.in_rounds()
                ),
            ));
        }
        facts.push(("Date", date(self.unix_time_s)));
        let mut out = String::from("<dl>\n");
        for (name, value) in facts {
            let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
        }
        out.push_str("</dl>\n");
        out
    }

    fn peers_section(&self) -> String {
        let cells = self.peer_cells(false);
        if cells.rows.is_empty() {
            return String::new();
        }
        let mut out = String::from("<h2>Other programs</h2>\n");
        if let Some(note) = self.peers.as_ref().and_then(|peers| peers.note.as_ref()) {
            let _ = writeln!(out, "<p class=\"soft\">{}</p>", escape(note));
        }
        out.push_str(&table(&cells));
        out
    }
}

fn figure(chart: &Chart) -> String {
    let mut out = format!(
        "<figure id=\"{}\">\n<h2>{}</h2>\n<ul class=\"legend\">\n",
        chart.id,
        escape(&chart.title)
    );
    for series in &chart.series {
        let marker = series.style.marker(9.0, 6.0);
        let _ = writeln!(
            out,
            "<li><svg class=\"{}\" viewBox=\"0 0 18 12\" aria-hidden=\"true\">\
             <line class=\"front\" x1=\"0\" y1=\"6\" x2=\"18\" y2=\"6\"/>{marker}</svg>{}</li>",
            series.style.class(),
            escape(&series.name)
        );
    }
    out.push_str("</ul>\n");
    for size in SIZES {
        out.push_str(&draw(chart, size));
    }
    let notes: Vec<String> = chart.notes.iter().map(|note| escape(note)).collect();
    let _ = writeln!(
        out,
        "<figcaption>Lines connect what nothing else of the same kind beats. {}</figcaption>\n</figure>",
        notes.join(" ")
    );
    out
}

fn table(cells: &Cells) -> String {
    let mut out = String::from("<div class=\"scroll\" tabindex=\"0\">\n<table>\n<thead><tr>");
    for cell in &cells.header {
        let _ = write!(out, "<th>{}</th>", escape(cell));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &cells.rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{}</td>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pareto::testing::{check_markup, report};

    #[test]
    fn the_page_is_well_formed_and_loads_nothing() {
        let page = report().html();
        // Its style sheet is the only text that is not markup.
        let (head, rest) = page.split_once("<style>").expect("a style sheet");
        let (style, body) = rest.split_once("</style>").expect("its end");
        check_markup(&format!("{head}{body}"));
        assert!(!style.contains('<') && !style.contains("url(") && !style.contains("@import"));
        for loads in ["src=", "href=", "<script", "<link", "<img", "<iframe"] {
            assert!(!page.contains(loads), "{loads}");
        }
        assert!(page.contains("width=device-width"));
    }

    #[test]
    fn what_users_typed_is_escaped() {
        let mut report = report();
        report.models[0] = "<script>alert(1)</script>".into();
        report.quality.text = "a\"b\u{7}.txt".into();
        let page = report.html();
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        assert!(page.contains("a&quot;b .txt"));
        assert!(page.contains("40MB &amp; &lt;tuned&gt;"));
    }

    #[test]
    fn all_figures_of_the_table_are_in_the_page() {
        let report = report();
        let page = report.html();
        for cells in [report.cells(), report.peer_cells(false)] {
            for cell in cells.rows.iter().flatten() {
                assert!(page.contains(&format!("<td>{}</td>", escape(cell))), "{cell}");
            }
        }
        assert_eq!(page.matches("<figure ").count(), 4);
        assert_eq!(page.matches("<svg class=\"narrow\"").count(), 4);
    }

    #[test]
    fn peers_of_another_machine_are_not_in_the_plots_of_speed() {
        let page = report().html();
        let figure = |id: &str| {
            let rest = page.split(&format!("<figure id=\"{id}\">")).nth(1).expect("a figure");
            rest.split("</figure>").next().expect("its end").to_owned()
        };
        let speed = figure("kld-speed");
        assert!(speed.contains("Q4_K_M, 1 thread"), "the same machine's is there");
        assert!(!speed.contains("Q8_0") && speed.contains("another machine (elsewhere)"));
        assert!(figure("kld-bytes").contains("Q8_0"));
    }

    #[test]
    fn a_report_without_speed_and_peers_has_two_plots() {
        let mut report = report();
        report.speed = None;
        report.peers = None;
        report.points.iter_mut().for_each(|point| point.speed.clear());
        let page = report.html();
        assert_eq!(page.matches("<figure ").count(), 2);
        assert!(!page.contains("Other programs") && !page.contains("<dt>Speed"));
    }
}
