//! The rate that lasts: prompts and answers without a pause, for as long as it takes a machine to get warm.

mod evidence;
mod throttle;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gristmill_formats::Progress;
use gristmill_runtime::text::{Sampler, SamplerConfig};
use gristmill_runtime::{Engine, EngineConfig, Isa, KvType, Model};
use serde::{Deserialize, Serialize};

pub use evidence::Phase;
pub use throttle::{RateAt, Steadiness, ThrottleRule};

use crate::bench::random_tokens;
use crate::energy::{EnergyMeter, EnergyReport, EnergyUse, EnergyWindow};
use crate::error::{EvalError, Result};
use crate::table::{number, percent};
use evidence::{Readings, causes};

/// Tokens generated before anything is timed.
const WARM_UP_TOKENS: usize = 8;

/// A run of minutes.
#[derive(Debug, Clone, PartialEq)]
pub struct SustainedConfig {
    /// Its length.
    pub seconds: f64,
    /// Threads.
    pub threads: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens generated after the first, for each prompt.
    pub r#gen: usize,
    /// Share of the burst's rate below which it counts as throttled.
    pub throttled_below: f64,
    /// Element type of the key/value cache.
    pub kv: KvType,
    /// Instruction-set class; `None` for the CPU's best.
    pub isa: Option<Isa>,
}

/// What a run of minutes showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sustained {
    /// Its length.
    pub seconds: f64,
    /// Threads.
    pub threads: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens generated after the first, for each prompt.
    pub r#gen: usize,
    /// Prompts that were answered.
    pub prompts: usize,
    /// Tokens that were decoded.
    pub tokens: usize,
    /// When it began, in seconds since 1970.
    pub started_unix_s: f64,
    /// What counts as throttled.
    pub rule: ThrottleRule,
    /// Burst, sustained rate and throttle point; null for a run that is too short to have them.
    #[serde(flatten)]
    pub steadiness: Option<Steadiness>,
    /// `sustained_tok_s` over `burst_tok_s`.
    pub sustained_over_burst: Option<f64>,
    /// The throttle point in words.
    pub throttle: String,
    /// Why there is no sustained rate.
    pub reason: Option<String>,
    /// What explains the throttling, as far as counters show.
    pub causes: Vec<String>,
    /// The machine during the burst.
    pub burst: Phase,
    /// The machine after the throttle point, or in the last quarter when there is none.
    pub after: Phase,
    /// Energy of a decoded token, prompts not counted; null without a counter.
    pub joules_per_token: Option<f64>,
    /// Less the machine's power at rest.
    pub net_joules_per_token: Option<f64>,
    /// Where energy was read.
    pub energy: EnergyReport,
    /// Whether the energy of the prompts is in that of the tokens: a battery is too slow to tell them
    /// apart.
    pub energy_includes_prompts: bool,
    /// The rate over time. There are holes where prompts were processed.
    pub trace: Vec<TracePoint>,
}

/// A point of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TracePoint {
    /// Middle of the time it stands for, in seconds from the start.
    pub t_s: f64,
    /// Tokens decoded per second of decoding.
    pub decode_tok_s: f64,
    /// Clock of the fastest core.
    pub mhz: Option<f64>,
    /// Temperature of the hottest zone.
    pub celsius: Option<f64>,
    /// Periods since the start in which the quota of the control group held the process back.
    pub cgroup_throttled_periods: Option<u64>,
}

/// Answers prompts without a pause and watches the rate.
///
/// # Errors
/// When the model cannot be opened, the configuration does not fit it, or the user cancels.
pub fn sustained(
    open: &dyn Fn() -> Result<Arc<Model>, String>,
    config: &SustainedConfig,
    progress: &dyn Progress,
) -> Result<Sustained> {
    if !(config.seconds > 0.0 && config.prompt > 0 && config.r#gen > 0) {
        let what = "a sustained run needs seconds, a prompt and tokens to generate";
        return Err(EvalError::Config(what.into()));
    }
    let root = Path::new("/");
    let rule = ThrottleRule::for_seconds(config.seconds, config.throttled_below);
    let engine = Engine::new(
        open().map_err(EvalError::Open)?,
        &EngineConfig {
            threads: Some(config.threads),
            isa: config.isa,
            context: Some(config.prompt + config.r#gen.max(WARM_UP_TOKENS)),
            kv: config.kv,
            ..EngineConfig::default()
        },
    )?;
    let (meter, mut energy) = meter(root, config.seconds);
    energy.idle_watts = meter.as_ref().and_then(EnergyMeter::idle_watts);
    let mut run = Loop::new(engine, config, rule, root)?;
    run.answer(WARM_UP_TOKENS, None, progress)?;
    let started_unix_s =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    progress.begin("sustained run", config.seconds as u64, "seconds");
    progress.note(&format!("the sustained run of {} s begins", config.seconds));
    run.begin();
    // A battery's steps are longer than an answer.
    let whole = meter.as_ref().filter(|meter| !meter.suits(Duration::ZERO));
    let window = whole.map(EnergyMeter::begin);
    let parts = meter.as_ref().filter(|_| whole.is_none());
    while run.elapsed_s() < config.seconds {
        run.answer(config.r#gen, parts, progress)?;
    }
    if let Some(window) = window {
        run.energy.add(window.end(), run.tokens);
    }
    Ok(run.report(config, started_unix_s, energy, whole.is_some()))
}

/// The counter of energy, if it suits a run of this length.
fn meter(root: &Path, seconds: f64) -> (Option<EnergyMeter>, EnergyReport) {
    let mut report = EnergyReport::default();
    match EnergyMeter::open(&root.join("sys")) {
        Ok(meter) if meter.suits(Duration::from_secs_f64(seconds)) => {
            report.source = Some(meter.name().into());
            return (Some(meter), report);
        }
        Ok(meter) => {
            let source = meter.name();
            report.reason = Some(format!("{source} is too slow for a run of {seconds} s"));
        }
        Err(reason) => report.reason = Some(reason),
    }
    (None, report)
}

/// A point of the trace that is not long enough yet.
#[derive(Debug, Clone, Copy)]
struct Part {
    from: Instant,
    /// Time of decoding, prompts in between not counted.
    seconds: f64,
    tokens: usize,
}

/// The state of a run.
struct Loop<'a> {
    engine: Engine,
    sampler: Sampler,
    tokens_of_prompt: Vec<u32>,
    rule: ThrottleRule,
    root: &'a Path,
    length_s: f64,
    start: Instant,
    told_s: u64,
    prompts: usize,
    tokens: usize,
    energy: EnergyUse,
    /// The point of the trace that is being made.
    part: Option<Part>,
    trace: Vec<TracePoint>,
    /// One at the start and one at each point of the trace, with its time.
    readings: Vec<(f64, Readings)>,
}

impl<'a> Loop<'a> {
    fn new(
        engine: Engine,
        config: &SustainedConfig,
        rule: ThrottleRule,
        root: &'a Path,
    ) -> Result<Self> {
        let vocab_size = engine.model().spec().vocab_size;
        let sampler = Sampler::new(SamplerConfig::greedy(), vocab_size as usize)
            .map_err(|error| EvalError::Config(error.to_string()))?;
        Ok(Self {
            tokens_of_prompt: random_tokens(config.prompt, vocab_size),
            engine,
            sampler,
            rule,
            root,
            length_s: config.seconds,
            start: Instant::now(),
            told_s: 0,
            prompts: 0,
            tokens: 0,
            energy: EnergyUse::default(),
            part: None,
            trace: vec![],
            readings: vec![],
        })
    }

    /// The clock starts here, and what came before is forgotten.
    fn begin(&mut self) {
        (self.prompts, self.tokens, self.part) = (0, 0, None);
        self.trace.clear();
        self.readings = vec![(0.0, Readings::now(self.root))];
        self.start = Instant::now();
    }

    fn elapsed_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// One prompt and its answer, or as much of it as there is time for.
    fn answer(
        &mut self,
        count: usize,
        meter: Option<&EnergyMeter>,
        progress: &dyn Progress,
    ) -> Result<()> {
        if progress.cancelled() {
            return Err(EvalError::Cancelled);
        }
        self.engine.reset();
        let logits = self.engine.prefill_top(&self.tokens_of_prompt, self.sampler.reach())?;
        let mut token = self.sampler.sample(logits);
        self.prompts += 1;
        let window = meter.map(EnergyMeter::begin);
        let tokens_before = self.tokens;
        let mut before = Instant::now();
        for i in 1..=count {
            let logits = self.engine.decode_top(token, self.sampler.reach())?;
            token = self.sampler.sample(logits);
            self.tokens += 1;
            let now = Instant::now();
            let part = self.part.get_or_insert(Part { from: before, seconds: 0.0, tokens: 0 });
            part.seconds += (now - before).as_secs_f64();
            part.tokens += 1;
            before = now;
            // What is short at the end of an answer goes on in the next one.
            let least = self.rule.point_s() * if i == count { 0.5 } else { 1.0 };
            if (now - part.from).as_secs_f64() >= least {
                self.point(now);
                let seconds = self.elapsed_s();
                let whole = seconds.min(self.length_s) as u64;
                progress.advance(whole.saturating_sub(self.told_s));
                self.told_s = self.told_s.max(whole);
                if seconds >= self.length_s || progress.cancelled() {
                    break;
                }
                // Looking took time that is not the model's.
                before = Instant::now();
            }
        }
        if let Some(measured) = window.map(EnergyWindow::end) {
            self.energy.add(measured, self.tokens - tokens_before);
        }
        Ok(())
    }

    /// Ends a point of the trace.
    fn point(&mut self, to: Instant) {
        let Some(Part { from, seconds, tokens }) = self.part.take() else { return };
        let since_start = |at: Instant| (at - self.start).as_secs_f64();
        let t_s = f64::midpoint(since_start(from), since_start(to));
        let readings = Readings::now(self.root);
        let periods = readings.throttled_periods();
        let first = self.readings.first().and_then(|(_, first)| first.throttled_periods());
        self.trace.push(TracePoint {
            t_s,
            decode_tok_s: tokens as f64 / seconds,
            mhz: readings.mhz,
            celsius: readings.celsius,
            cgroup_throttled_periods: periods
                .zip(first)
                .map(|(now, then)| now.saturating_sub(then)),
        });
        self.readings.push((t_s, readings));
    }

    fn report(
        self,
        config: &SustainedConfig,
        started_unix_s: f64,
        energy: EnergyReport,
        energy_includes_prompts: bool,
    ) -> Sustained {
        let rates: Vec<RateAt> = self
            .trace
            .iter()
            .map(|point| RateAt { t_s: point.t_s, tok_s: point.decode_tok_s })
            .collect();
        let steadiness = Steadiness::of(&rates, &self.rule);
        let throttled_at_s = steadiness.and_then(|s| s.throttled_at_s);
        let seconds = self.elapsed_s();
        let phase = |from: f64, to: f64| {
            let within = self.readings.iter().filter(|(t, _)| *t >= from && *t <= to);
            Phase::of(&within.map(|(_, readings)| readings.clone()).collect::<Vec<_>>())
        };
        let burst = phase(0.0, self.rule.burst_s);
        let after = phase(throttled_at_s.unwrap_or(0.75 * seconds), seconds);
        let causes = match throttled_at_s {
            None => vec![],
            Some(_) => {
                let found = causes(&burst, &after);
                let none = || vec!["no counter of this system shows why".into()];
                if found.is_empty() { none() } else { found }
            }
        };
        let sustained_tok_s = steadiness.and_then(|s| s.sustained_tok_s);
        Sustained {
            seconds,
            threads: self.engine.threads(),
            prompt: config.prompt,
            r#gen: config.r#gen,
            prompts: self.prompts,
            tokens: self.tokens,
            started_unix_s,
            rule: self.rule,
            sustained_over_burst: steadiness.and_then(|s| Some(s.sustained_tok_s? / s.burst_tok_s)),
            throttle: match throttled_at_s {
                Some(at) => format!("throttled at {at:.1} s"),
                None => format!("not reached in {seconds:.0} s"),
            },
            reason: sustained_tok_s.is_none().then(|| why_not_steady(steadiness)),
            steadiness,
            causes,
            burst,
            after,
            joules_per_token: self.energy.joules_per_token(),
            net_joules_per_token: self.energy.net_joules_per_token(energy.idle_watts),
            energy,
            energy_includes_prompts,
            trace: self.trace,
        }
    }
}

fn why_not_steady(steadiness: Option<Steadiness>) -> String {
    match steadiness.and_then(|s| s.slope_ci95) {
        Some([low, high]) => format!(
            "the rate still changed in the last quarter, by {} to {} per minute: run it for longer",
            percent(low),
            percent(high)
        ),
        None => "the run was too short for a slope of its last quarter: run it for longer".into(),
    }
}

impl Sustained {
    /// Lines for people.
    pub(crate) fn lines(&self) -> String {
        let mut out = match &self.steadiness {
            Some(found) => {
                let sustained = match (found.sustained_tok_s, self.sustained_over_burst) {
                    (Some(rate), Some(ratio)) => {
                        format!("sustained {} tok/s, {ratio:.2} of it", number(rate))
                    }
                    _ => format!("last quarter {} tok/s", number(found.last_quarter_tok_s)),
                };
                format!(
                    "{:.0} s without a pause (prompt {}, {} generated): burst {} tok/s, {sustained}; throttling \
                     {}\n",
                    self.seconds,
                    self.prompt,
                    self.r#gen,
                    number(found.burst_tok_s),
                    self.throttle.trim_start_matches("throttled "),
                )
            }
            None => format!("{:.0} s without a pause\n", self.seconds),
        };
        for line in self
            .causes
            .iter()
            .map(|cause| format!("throttled: {cause}"))
            .chain(self.reason.iter().map(|reason| format!("no sustained rate: {reason}")))
        {
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}
