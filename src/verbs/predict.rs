//! `predict`: speed and memory before anything is run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use gristmill_convert::spec_from_config;
use gristmill_eval::{Device, EvalError, ModelShape, PredictConfig, Prediction, predict};
use gristmill_quantize::{Metadata, Plan, Recipe, plan, plan_source};
use gristmill_runtime::available_memory_bytes;
use serde::Serialize;

use super::Session;
use super::bench::usual_prompt;
use crate::args::PredictArgs;
use crate::error::{Outcome, Usage, WithHint};
use crate::progress::TerminalProgress;
use crate::render::{self, Render, SCHEMA_VERSION, Table};
use crate::source::Source;
use crate::{knobs, machine};

/// Largest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

pub(super) fn run(session: Session, args: &PredictArgs) -> Result<Outcome> {
    let Some(model) = &args.model else {
        render::emit(&Devices::known(), session.json)?;
        return Ok(Outcome::Done);
    };
    let shape = shape(model, args)?;
    let device = args.device.as_deref().map(Device::find).transpose().map_err(wrong)?;
    let config = config(args, &shape, device.as_ref())?;
    let needs = config.needs(&shape);
    let machine = match &device {
        Some(device) => device.machine(&needs),
        None => {
            let progress = TerminalProgress::new();
            machine::probed(&needs, args.reprobe, &progress)?
        }
    };
    let prediction = predict(&shape, &machine, &config).map_err(wrong)?;
    render::emit(&prediction, session.json)?;
    let fits = prediction.memory.fits != Some(false);
    Ok(if fits { Outcome::Done } else { Outcome::CheckFailed })
}

/// What cannot be meant is wrong usage.
fn wrong(error: EvalError) -> anyhow::Error {
    match error {
        EvalError::Config(message) => Usage(message).into(),
        other => other.into(),
    }
}

fn config(
    args: &PredictArgs,
    shape: &ModelShape,
    device: Option<&Device>,
) -> Result<PredictConfig> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match (device, &args.threads[..]) {
        (Some(device), []) => vec![device.threads],
        (Some(device), [one]) if *one as usize == device.threads => vec![device.threads],
        (Some(device), _) => {
            let (id, threads) = (&device.id, device.threads);
            return Err(Usage(format!("{id} is known with {threads} threads only")))
                .hint("leave --threads out");
        }
        (None, []) => match knobs::threads()? {
            Some(threads) => vec![threads],
            None if all > 1 => vec![1, all],
            None => vec![1],
        },
        (None, some) => some.iter().map(|&n| n as usize).collect(),
    };
    let limit = shape.spec().max_context as usize;
    let usual = || usual_prompt(limit, args.r#gen.saturating_add(args.depth));
    Ok(PredictConfig {
        threads,
        prompt: args.prompt.unwrap_or_else(usual),
        r#gen: args.r#gen,
        depth: args.depth,
        context: args.ctx,
        kv: args.kv,
        residency: args.residency,
        available_bytes: match device {
            Some(device) => Some(device.usable_bytes()),
            None => available_memory_bytes(),
        },
    })
}

/// The model, at the codecs asked for or as it is.
fn shape(model: &str, args: &PredictArgs) -> Result<ModelShape> {
    let recipe = match args.bits {
        None if args.codecs.is_empty() => None,
        bits => {
            let mut recipe = Recipe::for_bits(bits.unwrap_or(4)).map_err(super::quantize::usage)?;
            for text in &args.codecs {
                recipe = recipe.with_override(text).map_err(super::quantize::usage)?;
            }
            Some(recipe)
        }
    };
    if let Some(config) = lone_config(model) {
        // A description has no weights of its own to be taken as they are.
        let bytes = fs::metadata(&config)?.len();
        if bytes > MAX_CONFIG_BYTES {
            anyhow::bail!("{}: {bytes} bytes are no config.json", config.display());
        }
        let json =
            fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
        let spec = spec_from_config(&json).with_context(|| config.display().to_string())?;
        let recipe = recipe
            .context("a description alone has no codecs")
            .hint("say which with --bits, e.g. --bits 4")?;
        let plan = plan(&spec, &recipe).map_err(super::quantize::usage)?;
        return planned(&plan, &spec);
    }
    let source = Source::open(model)?.model_source();
    match recipe {
        None => Ok(ModelShape::of(&*source)?),
        Some(recipe) => {
            let plan = plan_source(&*source, &recipe, &Metadata::default())
                .map_err(super::quantize::usage)?;
            planned(&plan, source.spec())
        }
    }
}

fn planned(plan: &Plan, spec: &gristmill_formats::model::ModelSpec) -> Result<ModelShape> {
    Ok(ModelShape::new(spec, plan.file_bytes, |name| {
        let tensor = plan.tensors.iter().find(|t| t.name == name);
        let tensor =
            tensor.ok_or_else(|| EvalError::Config(format!("the plan lacks tensor `{name}`")))?;
        Ok((tensor.codec, tensor.bytes))
    })?)
}

/// A `config.json` by itself, or a directory with nothing but that.
fn lone_config(model: &str) -> Option<std::path::PathBuf> {
    let path = Path::new(model);
    if path.extension().is_some_and(|ending| ending == "json") && path.is_file() {
        return Some(path.into());
    }
    let config = path.join("config.json");
    let has_weights = fs::read_dir(path)
        .ok()?
        .flatten()
        .any(|entry| entry.path().extension().is_some_and(|ending| ending == "safetensors"));
    (config.is_file() && !has_weights).then_some(config)
}

impl Render for Prediction {
    fn text(&self) -> String {
        self.table()
    }
}

/// The table of devices.
#[derive(Debug, Serialize)]
struct Devices {
    schema_version: u32,
    devices: Vec<Device>,
}

impl Devices {
    fn known() -> Self {
        Self { schema_version: SCHEMA_VERSION, devices: Device::all() }
    }
}

impl Render for Devices {
    fn text(&self) -> String {
        let mut table = Table::new(["device", "threads", "GB/s", "int8 GMAC/s", "usable", "name"]);
        for d in &self.devices {
            let read = match d.read_gb_s {
                Some(read) => format!("{read:.1} measured"),
                None => format!("{:.1} specified", d.specified_gb_s),
            };
            table.row([
                d.id.clone(),
                d.threads.to_string(),
                read,
                format!("{:.0}", d.int8_gmac_s),
                format!("{:.1} GB", d.usable_gb),
                d.name.clone(),
            ]);
        }
        let mut text = table.text();
        text.push_str("\ngive a MODEL to predict for, and --device NAME for one of these; --json has the sources\n");
        text
    }
}
