//! `pareto`: recipes compared by size, quality and speed.

mod pace;
mod recipes;
mod speed;
mod state;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use gristmill_eval::{
    Host, ParetoComparison, ParetoPoint, ParetoQuality, ParetoReport, ParetoSpeed, Peers,
    QualityConfig, QualityReport, TextTokens, compare_pareto, quality, unix_time_s,
};
use gristmill_formats::Progress;
use gristmill_quantize::{Calibration, QuantizeError, Recipe};
use gristmill_runtime::{KvType, Model, default_threads};

use super::Session;
use super::bench::usual_prompt;
use super::quantize::{calibration, pack, recipe_for};
use crate::args::ParetoArgs;
use crate::document::{self, Section};
use crate::error::{Interrupted, Outcome, Usage, WithHint};
use crate::measure::{self, Setup};
use crate::progress::TerminalProgress;
use crate::render::{self, Render, SCHEMA_VERSION};
use crate::source::{Kind as SourceKind, Source};
use crate::{interrupt, knobs};
use pace::{Kind, Pace};
use recipes::{How, NamedRecipe, check_names};
use speed::{Rounds, Runner, SpeedKey};
use state::{Directory, Made, MakeKey, Measured, PointState, QualityKey, forget_work, tool};

const JSON: &str = "pareto.json";
const PAGE: &str = "pareto.html";

pub(super) fn run(session: Session, args: &ParetoArgs) -> Result<Outcome> {
    if let [first, second] = args.compare.as_slice() {
        return compare(session, first, second);
    }
    // What cannot be written or read should be known before hours of measuring.
    let section = args.update.as_deref().map(|path| Section::open(path, "pareto")).transpose()?;
    let peers = args.peers.as_deref().map(read_peers).transpose()?;
    let out = args.out.as_deref().context("--out is required")?;
    let directory = if args.report_only { None } else { Some(Directory::open(out)?) };
    let mut report = match &directory {
        Some(directory) => measure_all(session, args, directory)?,
        None => read_report(&out.join(JSON))?,
    };
    if peers.is_some() {
        report.peers = peers;
    }
    document::replace(&out.join(JSON), &render::json_text(&report)?)?;
    document::replace(&out.join(PAGE), &report.html())?;
    if let Some(section) = section {
        section.update(&report.markdown())?;
    }
    render::emit(&report, session.json)?;
    if !session.json {
        render::note(format_args!(
            "wrote {} and {}",
            out.join(PAGE).display(),
            out.join(JSON).display()
        ));
    }
    Ok(Outcome::Done)
}

impl Render for ParetoReport {
    fn text(&self) -> String {
        Self::text(self)
    }
}

impl Render for ParetoComparison {
    fn text(&self) -> String {
        Self::text(self)
    }
}

fn compare(session: Session, first: &Path, second: &Path) -> Result<Outcome> {
    let comparison = compare_pareto(&read_report(first)?, &read_report(second)?);
    render::emit(&comparison, session.json)?;
    Ok(if comparison.agrees() { Outcome::Done } else { Outcome::CheckFailed })
}

fn read_report(path: &Path) -> Result<ParetoReport> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {shown}"))
        .hint("`gristmill pareto MODEL --out DIR --text FILE` writes it")?;
    serde_json::from_str(&text)
        .with_context(|| format!("{shown}: not a report of `gristmill pareto`"))
}

fn read_peers(path: &Path) -> Result<Peers> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    Peers::parse(&text)
        .with_context(|| shown.to_string())
        .hint("EVAL.md says what a file of peers holds")
}

/// A model and its tokens of the text.
struct Subject {
    name: String,
    source: Source,
    model: Arc<Model>,
    tokens: TextTokens,
    config: QualityConfig,
}

/// A file of a model.
struct Point<'a> {
    subject: &'a Subject,
    recipe: &'a NamedRecipe,
    path: PathBuf,
    state: PointState,
    /// How to make it; `None` if it was there.
    make: Option<(Recipe, MakeKey)>,
}

/// What all steps have in common.
struct Bench<'a> {
    session: Session,
    directory: &'a Directory,
    host: Host,
    threads: Option<usize>,
    kv: KvType,
    /// Windows that were asked for; the text may have fewer.
    windows: usize,
    progress: TerminalProgress,
}

/// Speeds that were measured.
struct Speeds<'a> {
    key: SpeedKey,
    rounds: Rounds<'a>,
    /// Why they are not comparable with others, if so.
    disturbances: Vec<String>,
}

/// Does all steps that are not done yet.
fn measure_all(session: Session, args: &ParetoArgs, directory: &Directory) -> Result<ParetoReport> {
    let recipes = recipes::recipes(args)?;
    let text_path = args.text.as_deref().context("--text is required")?;
    let text = measure::read_text(text_path)?;
    let subjects =
        args.models.iter().map(|m| subject(args, m, &text)).collect::<Result<Vec<_>>>()?;
    check_names("models", subjects.iter().map(|subject| subject.name.as_str()))?;

    let bench = Bench {
        session,
        directory,
        host: Host::detect(),
        threads: knobs::threads()?,
        kv: args.kv,
        windows: args.windows,
        progress: TerminalProgress::new(),
    };
    let mut texts = HashMap::new();
    let mut points = Vec::new();
    for subject in &subjects {
        for recipe in &recipes {
            let point = bench.point(subject, recipe, &mut texts);
            points.push(point.with_context(|| format!("recipe `{}`", recipe.name))?);
        }
    }

    let runs =
        if args.no_bench { 0 } else { (points.len() + subjects.len()) * args.rounds as usize };
    let steps = points.iter().flat_map(|point| bench.steps(point));
    let mut pace = Pace::new(steps.chain(std::iter::repeat_n(Kind::Speed, runs)));
    let mut done = Vec::new();
    for mut point in points {
        let name = point.recipe.name.clone();
        match bench.make(&mut point, &mut pace) {
            // Nobody asked for this size: small models have no files of the last rungs.
            Err(error) if recipes::is_ladder(args) && is_too_small(&error) => {
                bench.progress.note(&format!("{name} is left out: {error}"));
                continue;
            }
            made => made.with_context(|| format!("recipe `{name}`"))?,
        }
        bench.measure(&mut point, &mut pace).with_context(|| format!("recipe `{name}`"))?;
        done.push(point);
    }
    let points = done;
    let rounds = match args.no_bench {
        true => None,
        false => Some(bench.speeds(args, &subjects, &points, &mut pace)?),
    };
    bench.report(text_path, &subjects, &points, rounds)
}

/// Finds a model: `[NAME=]MODEL`.
fn subject(args: &ParetoArgs, text: &str, content: &str) -> Result<Subject> {
    let (name, model) = match text.split_once('=') {
        // A path may have the sign, too.
        Some((name, model)) if !Path::new(text).exists() => (Some(name.trim()), model.trim()),
        _ => (None, text),
    };
    if name == Some("") {
        return Err(Usage(format!("model `{text}`: its name is empty")).into());
    }
    let source = Source::open(model)?;
    let name = name.map_or_else(|| usual_name(model, &source), str::to_owned);
    let tokens = measure::tokenize(&source.tokenizer()?, content)?;
    let model = source.load()?;
    let mut config = QualityConfig::new(args.protocol);
    config.windows = Some(args.windows);
    config = match args.ctx {
        Some(ctx) => QualityConfig { ctx, ..config },
        None => measure::config_for(&model, config),
    };
    Ok(Subject { name, source, model, tokens, config })
}

/// The last part of what a user calls a model, without what the hub and files add.
fn usual_name(model: &str, source: &Source) -> String {
    let hub = !Path::new(model).exists();
    let path = if hub { Path::new(model.split('@').next().unwrap_or(model)) } else { &source.path };
    // `.` and the like have no name of their own.
    let path = if hub { path.into() } else { path.canonicalize().unwrap_or_else(|_| path.into()) };
    let packed = matches!(source.kind, SourceKind::Packed(_)) && !hub;
    let name = if packed { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned())
}

impl Bench<'_> {
    /// What is known of a file, and what it takes to make it.
    fn point<'a>(
        &self,
        subject: &'a Subject,
        recipe: &'a NamedRecipe,
        texts: &mut HashMap<(String, Option<PathBuf>, usize), Calibration>,
    ) -> Result<Point<'a>> {
        let state = self.directory.point(&subject.name, &recipe.name)?;
        let (path, make) = match &recipe.how {
            How::Take(path) => {
                // Found out now, not when its turn comes.
                Source::open_path(path)?;
                (path.clone(), None)
            }
            How::Make(rounding) => {
                let mut full = recipe_for(rounding, &subject.source)?;
                if full.method.is_calibrated() {
                    let (path, tokens) = (rounding.calib.clone(), rounding.calib_tokens);
                    let key = (subject.name.clone(), path, tokens);
                    let known = match texts.get(&key) {
                        Some(known) => known.clone(),
                        None => calibration(&subject.source, rounding.calib.as_deref(), tokens)?,
                    };
                    texts.insert(key, known.clone());
                    full.calibration = Some(known);
                }
                let key = MakeKey {
                    source: subject.model.source().fingerprint(),
                    recipe: full.to_string(),
                    tool: tool(&self.host),
                };
                (self.directory.packed(&subject.name, &recipe.name), Some((full, key)))
            }
        };
        Ok(Point { subject, recipe, path, state, make })
    }

    /// Whether a file is what its recipe makes.
    fn is_made(point: &Point) -> bool {
        let Some((_, key)) = &point.make else { return true };
        let Some(made) = &point.state.made else { return false };
        made.key == *key && fingerprint(&point.path).is_ok_and(|found| found == made.fingerprint)
    }

    /// The key of a file's quality.
    fn quality_key(&self, point: &Point, file: String) -> QualityKey {
        let subject = point.subject;
        QualityKey {
            file,
            reference: subject.model.source().fingerprint(),
            text_blake3: subject.tokens.text_blake3.clone(),
            protocol: subject.config.protocol,
            ctx: subject.config.ctx,
            windows: self.windows,
            kv: self.kv.name().into(),
            tool: tool(&self.host),
        }
    }

    fn is_measured(&self, point: &Point) -> bool {
        let (Some(measured), Ok(file)) = (&point.state.quality, fingerprint(&point.path)) else {
            return false;
        };
        measured.key == self.quality_key(point, file)
    }

    /// The steps that a point is still to go through, before its speed.
    fn steps(&self, point: &Point) -> Vec<Kind> {
        let mut steps = Vec::new();
        if !Self::is_made(point) {
            steps.push(rounding_kind(point));
        }
        if !Self::is_made(point) || !self.is_measured(point) {
            steps.push(Kind::Quality);
        }
        steps
    }

    fn keep(&self, point: &Point) -> Result<()> {
        self.directory.keep(&point.subject.name, &point.recipe.name, &point.state)
    }

    /// Makes the file, if it is not there.
    fn make(&self, point: &mut Point, pace: &mut Pace) -> Result<()> {
        stop_if_asked()?;
        let Some((recipe, key)) = &point.make else { return Ok(()) };
        if Self::is_made(point) {
            return Ok(());
        }
        let (mut recipe, key) = (recipe.clone(), key.clone());
        if point.state.making.as_ref() != Some(&key) {
            forget_work(&point.path)?;
        }
        point.state.making = Some(key.clone());
        self.keep(point)?;
        recipe.resume = true;
        let packed =
            pace.step(rounding_kind(point), &point.recipe.name, &self.progress, |progress| {
                pack(&point.subject.source, &recipe, &point.path, self.threads, progress)
            })?;
        point.state.making = None;
        point.state.made = Some(Made {
            key,
            fingerprint: fingerprint(&point.path)?,
            seconds: packed.report.seconds,
        });
        self.keep(point)
    }

    /// Measures its quality, if that is not known.
    fn measure(&self, point: &mut Point, pace: &mut Pace) -> Result<()> {
        stop_if_asked()?;
        if self.is_measured(point) {
            return Ok(());
        }
        let key = self.quality_key(point, fingerprint(&point.path)?);
        let report = pace.step(Kind::Quality, &point.recipe.name, &self.progress, |progress| {
            self.quality(point, progress)
        })?;
        point.state.quality = Some(Measured { key, report });
        self.keep(point)
    }

    fn quality(&self, point: &Point, progress: &dyn Progress) -> Result<QualityReport> {
        let Subject { model, tokens, config, .. } = point.subject;
        let setup = Setup { threads: self.threads, isa: self.session.isa, context: config.ctx };
        let mut student = setup.engine(&Source::open_path(&point.path)?.load()?, self.kv)?;
        let mut reference = setup.engine(model, measure::reference_kv(self.kv))?;
        Ok(quality(&mut student, Some(&mut reference), tokens, config, progress)?)
    }

    /// Measures speeds, in as many rounds as are still missing.
    fn speeds(
        &self,
        args: &ParetoArgs,
        subjects: &[Subject],
        points: &[Point],
        pace: &mut Pace,
    ) -> Result<Speeds<'_>> {
        let threads = match (args.threads.as_slice(), self.threads) {
            ([], threads) => vec![threads.unwrap_or_else(default_threads)],
            (given, _) => given.iter().map(|&threads| threads as usize).collect(),
        };
        let limit = subjects.iter().map(|s| s.model.spec().max_context as usize).min();
        let usual = || usual_prompt(limit.unwrap_or(usize::MAX), args.r#gen);
        let prompt = args.prompt.unwrap_or_else(usual);
        let isa = self.session.isa.map(|isa| isa.name());
        let key = SpeedKey::new(threads, (prompt, args.r#gen), self.kv.name(), isa, &self.host);
        let mut runners = Vec::new();
        for subject in subjects {
            runners.push(Runner {
                id: subject.name.clone(),
                path: subject.source.path.clone(),
                fingerprint: subject.model.source().fingerprint(),
            });
            for point in points.iter().filter(|point| point.subject.name == subject.name) {
                let (path, fingerprint) = (point.path.clone(), fingerprint(&point.path)?);
                runners.push(Runner { id: runner_id(point), path, fingerprint });
            }
        }
        let mut rounds = Rounds::open(self.directory, &key, &runners, args.rounds as usize)?;
        pace.expect(Kind::Speed, rounds.missing(&runners));
        rounds.run(&key, &runners, pace, &self.progress)?;
        let disturbances = rounds.disturbances(&runners);
        Ok(Speeds { key, rounds, disturbances })
    }

    /// Puts the results together.
    fn report(
        &self,
        text: &Path,
        subjects: &[Subject],
        points: &[Point],
        speeds: Option<Speeds<'_>>,
    ) -> Result<ParetoReport> {
        let rounds = speeds.as_ref().map(|speeds| &speeds.rounds);
        let timed = |point: ParetoPoint, id: &str| match rounds {
            Some(rounds) => point.with_rounds(&rounds.of(id)),
            None => point,
        };
        let mut rows = Vec::new();
        for subject in subjects {
            let of_subject = points.iter().filter(|p| p.subject.name == subject.name);
            let measured = of_subject.filter_map(|p| Some((p, &p.state.quality.as_ref()?.report)));
            for (i, (point, quality)) in measured.enumerate() {
                if i == 0 {
                    let row = ParetoPoint::of_reference(&subject.name, quality);
                    rows.extend(row.map(|row| timed(row, &subject.name)));
                }
                let mut row = ParetoPoint::of_file(&subject.name, &point.recipe.name, quality);
                row.recipe = recipe_in(&point.path)?;
                row.quantize_seconds =
                    point.make.as_ref().and(point.state.made.as_ref()).map(|m| m.seconds);
                rows.push(timed(row, &runner_id(point)));
            }
        }
        let first = points.iter().find_map(|point| point.state.quality.as_ref());
        let first = &first.context("there is no file to report on")?.report;
        let name = text.file_name().unwrap_or(text.as_os_str());
        let runs: Vec<_> =
            rounds.iter().flat_map(|r| rows.iter().flat_map(|row| r.of(&row_id(row)))).collect();
        let speed = speeds.as_ref().map(|Speeds { key, rounds, .. }| ParetoSpeed {
            threads: key.threads.clone(),
            prompt: key.prompt,
            r#gen: key.r#gen,
            kv: key.kv.clone(),
            rounds: rounds.count(),
            isa: runs.first().map_or_else(String::new, |run| run.isa.clone()),
        });
        Ok(ParetoReport {
            schema_version: SCHEMA_VERSION,
            models: subjects.iter().map(|subject| subject.name.clone()).collect(),
            quality: ParetoQuality {
                text: name.to_string_lossy().into_owned(),
                text_blake3: first.text_blake3.clone(),
                protocol: first.protocol,
                ctx: first.ctx,
                windows: first.windows,
                kv: first.kv.clone(),
            },
            speed,
            points: rows,
            peers: None,
            warnings: speeds.map_or_else(Vec::new, |speeds| speeds.disturbances),
            unix_time_s: unix_time_s(),
            host: self.host.clone(),
        })
    }
}

/// How a point is called among the files that take turns.
fn runner_id(point: &Point) -> String {
    format!("{} / {}", point.subject.name, point.recipe.name)
}

fn row_id(row: &ParetoPoint) -> String {
    if row.is_reference { row.model.clone() } else { format!("{} / {}", row.model, row.name) }
}

fn rounding_kind(point: &Point) -> Kind {
    match &point.make {
        Some((recipe, _)) if recipe.method.is_calibrated() => Kind::RoundWithCalibration,
        _ => Kind::Round,
    }
}

/// Whether a file cannot be as small as its recipe says.
fn is_too_small(error: &anyhow::Error) -> bool {
    let too_small = |e: &QuantizeError| matches!(e, QuantizeError::SizeTooSmall { .. });
    error.chain().any(|cause| cause.downcast_ref().is_some_and(too_small))
}

fn stop_if_asked() -> Result<()> {
    if interrupt::requested() { Err(Interrupted.into()) } else { Ok(()) }
}

/// What identifies a packed file or a checkpoint.
fn fingerprint(path: &Path) -> Result<String> {
    Ok(Source::open_path(path)?.model_source().fingerprint())
}

/// How a file says that it was made.
fn recipe_in(path: &Path) -> Result<Option<String>> {
    let source = Source::open_path(path)?;
    Ok(match &source.kind {
        SourceKind::Packed(file) => Some(file.header().provenance.recipe.clone()),
        SourceKind::Checkpoint(_) => None,
    })
}
