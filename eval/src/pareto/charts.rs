//! Which figures are drawn against which.

use std::collections::BTreeSet;

use super::axis::Scale;
use super::front::{Better, front};
use super::peers::Peer;
use super::report::{ParetoPoint, ParetoReport};
use super::table::three;
use crate::table::number;

/// Points on two axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    /// What the chart is called in the page.
    pub(super) id: &'static str,
    pub(super) title: String,
    pub(super) x_title: String,
    pub(super) y_title: &'static str,
    pub(super) y_scale: Scale,
    pub(super) series: Vec<Series>,
    /// Horizontal lines with a name: what the model itself has.
    pub(super) guides: Vec<Guide>,
    /// What else a reader must know.
    pub(super) notes: Vec<String>,
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    /// Index of the colour and the marker.
    pub(super) style: Style,
    pub(super) marks: Vec<Mark>,
    /// Indices of the marks on the front, which a line connects; empty for no line.
    pub(super) front: Vec<usize>,
}

/// A colour and a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// One of ours.
    Own(usize),
    /// Another program's.
    Peer(usize),
}

/// Colours of ours and of peers; more series than these take them again.
pub(super) const OWN_STYLES: usize = 4;
pub(super) const PEER_STYLES: usize = 3;

/// A point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) x_ci: Option<[f64; 2]>,
    pub(super) y_ci: Option<[f64; 2]>,
    pub(super) label: String,
    /// All of it in words.
    pub(super) title: String,
}

/// A horizontal line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Guide {
    pub(super) y: f64,
    pub(super) label: String,
}

/// What stands on the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Kld,
    Ppl,
}

impl Loss {
    fn title(self) -> &'static str {
        match self {
            Self::Kld => "KL divergence, nats per token (log)",
            Self::Ppl => "perplexity (log)",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kld => "KL divergence",
            Self::Ppl => "Perplexity",
        }
    }

    /// The value and its interval.
    fn of(self, point: &ParetoPoint) -> Option<(f64, Option<[f64; 2]>)> {
        match self {
            Self::Kld => point.kld.map(|kld| (kld.mean, kld.ci95)),
            Self::Ppl => Some((point.ppl.value, point.paired_ppl_ci95())),
        }
    }

    fn of_peer(self, peer: &Peer) -> Option<(f64, Option<[f64; 2]>)> {
        match self {
            Self::Kld => Some((peer.kld?, peer.kld_ci)),
            Self::Ppl => Some((peer.ppl?, None)),
        }
    }
}

/// All charts of a report.
pub(super) fn charts(report: &ParetoReport) -> Vec<Chart> {
    let mut charts = vec![
        against_bytes(report, Loss::Kld, "kld-bytes"),
        against_bytes(report, Loss::Ppl, "ppl-bytes"),
    ];
    if report.files().any(|point| !point.speed.is_empty()) {
        charts.push(against_speed(report, Loss::Kld, "kld-speed"));
        charts.push(against_speed(report, Loss::Ppl, "ppl-speed"));
    }
    charts
}

fn against_bytes(report: &ParetoReport, loss: Loss, id: &'static str) -> Chart {
    let own = report.models.iter().enumerate().map(|(i, model)| {
        let points = report.files().filter(|point| point.model == *model);
        let marks = points.filter_map(|point| {
            let (y, y_ci) = loss.of(point)?;
            let x = point.facts.file_bytes as f64 / 1e6;
            Some(mark(point, (x, None), (y, y_ci)))
        });
        let name = if report.models.len() > 1 {
            format!("gristmill, {model}")
        } else {
            "gristmill".into()
        };
        series(name, Style::Own(i), marks.collect(), Better::Lower)
    });
    let peers = by_program(report).enumerate().map(|(i, (program, peers))| {
        let marks = peers.filter_map(|peer| {
            let (y, y_ci) = loss.of_peer(peer)?;
            Some(peer_mark(peer, peer.bytes as f64 / 1e6, (y, y_ci), ""))
        });
        series(program.into(), Style::Peer(i), marks.collect(), Better::Lower)
    });
    Chart {
        id,
        title: format!("{} by size", loss.name()),
        x_title: "bytes of the file, MB".into(),
        y_title: loss.title(),
        y_scale: Scale::Log,
        series: own.chain(peers).filter(|series| !series.marks.is_empty()).collect(),
        guides: guides(report, loss),
        notes: notes(loss),
    }
}

fn against_speed(report: &ParetoReport, loss: Loss, id: &'static str) -> Chart {
    let several = report.models.len() > 1;
    let lanes = report
        .models
        .iter()
        .flat_map(|model| report.threads().iter().map(move |&threads| (model, threads)));
    let own = lanes.enumerate().map(|(i, (model, threads))| {
        let points = report.files().filter(|point| point.model == *model);
        let marks = points.filter_map(|point| {
            let (y, y_ci) = loss.of(point)?;
            let speed = &point.speed_with(threads)?.decode_tok_s;
            Some(mark(point, (speed.median, speed.ci95), (y, y_ci)))
        });
        let model = if several { format!(" {model},") } else { String::new() };
        let name = format!("gristmill,{model} {}", in_threads(threads));
        series(name, Style::Own(i), marks.collect(), Better::Higher)
    });
    let cpu = report.host.cpu.as_deref();
    let peers = by_program(report).enumerate().map(|(i, (program, peers))| {
        let marks = peers.flat_map(|peer| {
            let here = peer.speed.iter().filter(|speed| speed.is_of(cpu));
            here.filter_map(|speed| {
                let threads = in_threads(speed.threads);
                Some(peer_mark(peer, speed.decode_tok_s?, loss.of_peer(peer)?, &threads))
            })
        });
        series(program.into(), Style::Peer(i), marks.collect(), Better::Higher)
    });
    let mut notes = notes(loss);
    let elsewhere: BTreeSet<&str> = report
        .peers
        .iter()
        .flat_map(|peers| &peers.peers)
        .flat_map(|peer| &peer.speed)
        .filter(|speed| !speed.is_of(cpu))
        .map(|speed| speed.device.as_str())
        .collect();
    if !elsewhere.is_empty() {
        let devices: Vec<&str> = elsewhere.into_iter().collect();
        notes.push(format!(
            "Speeds of other programs that were measured on another machine ({}) are in the table \
             below and not here, because speeds of two machines cannot be compared.",
            devices.join("; ")
        ));
    }
    Chart {
        id,
        title: format!("{} by speed", loss.name()),
        x_title: "tokens per second, decoding".into(),
        y_title: loss.title(),
        y_scale: Scale::Log,
        series: own.chain(peers).filter(|series| !series.marks.is_empty()).collect(),
        guides: guides(report, loss),
        notes,
    }
}

fn notes(loss: Loss) -> Vec<String> {
    let bars = match loss {
        Loss::Kld => "Bars are 95 % intervals; many are smaller than the marks.",
        Loss::Ppl => {
            "Bars are 95 % intervals of the difference from the model on the same windows."
        }
    };
    vec![bars.into()]
}

fn guides(report: &ParetoReport, loss: Loss) -> Vec<Guide> {
    if loss == Loss::Kld {
        return Vec::new();
    }
    let guide = |point: &ParetoPoint| Guide {
        y: point.ppl.value,
        label: format!("{} {}", point.name, number(point.ppl.value)),
    };
    report.references().map(guide).collect()
}

/// `1 thread`, `2 threads`.
pub(super) fn in_threads(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

/// The programs in the order in which they come, each with its peers.
fn by_program(report: &ParetoReport) -> impl Iterator<Item = (&str, impl Iterator<Item = &Peer>)> {
    let peers = report.peers.as_ref().map_or(&[][..], |peers| &peers.peers);
    let mut programs: Vec<&str> = Vec::new();
    for peer in peers {
        if !programs.contains(&peer.program.as_str()) {
            programs.push(&peer.program);
        }
    }
    programs
        .into_iter()
        .map(move |program| (program, peers.iter().filter(move |peer| peer.program == program)))
}

fn series(name: String, style: Style, marks: Vec<Mark>, better: Better) -> Series {
    let places: Vec<(f64, f64)> = marks.iter().map(|mark| (mark.x, mark.y)).collect();
    let front = front(&places, better);
    Series { name, style, marks, front }
}

type Value = (f64, Option<[f64; 2]>);

fn mark(point: &ParetoPoint, (x, x_ci): Value, (y, y_ci): Value) -> Mark {
    let mut title = format!(
        "{}: {} bytes, {:.2} bits per weight, PPL {}",
        point.name,
        point.facts.file_bytes,
        point.facts.bits_per_weight,
        number(point.ppl.value)
    );
    if let Some(kld) = point.kld {
        title.push_str(&format!(", KLD {}", three(kld.mean)));
    }
    for speed in &point.speed {
        let rate = three(speed.decode_tok_s.median);
        title.push_str(&format!(", {rate} tok/s with {}", in_threads(speed.threads)));
    }
    Mark { x, y, x_ci, y_ci, label: point.name.clone(), title }
}

fn peer_mark(peer: &Peer, x: f64, (y, y_ci): Value, suffix: &str) -> Mark {
    let mut title = format!("{}: {} bytes", peer.name(), peer.bytes);
    if let Some(ppl) = peer.ppl {
        title.push_str(&format!(", PPL {}", number(ppl)));
    }
    if let Some(kld) = peer.kld {
        title.push_str(&format!(", KLD {}", three(kld)));
    }
    let label =
        if suffix.is_empty() { peer.r#type.clone() } else { format!("{}, {suffix}", peer.r#type) };
    Mark { x, y, x_ci: None, y_ci, label, title }
}
