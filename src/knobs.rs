//! Every environment variable that is read, in one table. Flags come before them.

use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use gristmill_runtime::{EngineConfig, Isa};

use crate::error::{Usage, WithHint};

/// An environment variable.
#[derive(Debug)]
pub(crate) struct Knob {
    name: &'static str,
    does: &'static str,
}

const THREADS: Knob =
    Knob { name: "GRISTMILL_THREADS", does: "Threads when --threads is not given" };
const ISA: Knob = Knob {
    name: "GRISTMILL_ISA",
    does: "Use a smaller instruction set: scalar, avx2, avx512-vnni or avx512-vbmi",
};
const HUB_CACHE: Knob = Knob { name: "HF_HUB_CACHE", does: "Hub cache to find org/name in" };
const HF_HOME: Knob =
    Knob { name: "HF_HOME", does: "Its parent, the cache being in hub/ [~/.cache/huggingface]" };
const CACHE: Knob =
    Knob { name: "GRISTMILL_CACHE", does: "Where probed rates are kept [~/.cache/gristmill]" };
/// The variables, as the help lists them.
const ALL: [&Knob; 5] = [&THREADS, &ISA, &CACHE, &HUB_CACHE, &HF_HOME];

impl Knob {
    fn get(&self) -> Option<OsString> {
        env::var_os(self.name).filter(|value| !value.is_empty())
    }

    fn get_str(&self) -> Option<String> {
        self.get().map(|value| value.to_string_lossy().into_owned())
    }
}

/// The section of the help text.
pub(crate) fn help() -> String {
    let mut text = String::from("Environment:\n");
    for knob in ALL {
        let _ = writeln!(text, "  {:<19}{}", knob.name, knob.does);
    }
    text.truncate(text.trim_end().len());
    text
}

/// Threads to use when no flag says so.
pub(crate) fn threads() -> Result<Option<usize>> {
    let Some(value) = THREADS.get_str() else { return Ok(None) };
    let max = EngineConfig::MAX_THREADS;
    match value.parse::<usize>() {
        Ok(threads) if (1..=max).contains(&threads) => Ok(Some(threads)),
        _ => Err(Usage(format!("{} is `{value}`, expected 1..={max}", THREADS.name)).into()),
    }
}

/// Instruction set to use; `None` for the CPU's best.
pub(crate) fn isa() -> Result<Option<Isa>> {
    let Some(value) = ISA.get_str() else { return Ok(None) };
    let isa: Isa = value.parse().map_err(|e| Usage(format!("{}: {e}", ISA.name)))?;
    if isa.is_available() {
        return Ok(Some(isa));
    }
    let error = Usage(format!("{}: this CPU has no {}", ISA.name, isa.name()));
    Err(error).hint(format!("its best is {}; the variable can only lower it", Isa::detect().name()))
}

/// Directory of what can be found out again.
pub(crate) fn cache() -> Option<PathBuf> {
    match CACHE.get() {
        Some(cache) => Some(cache.into()),
        None => Some(user_cache()?.join("gristmill")),
    }
}

/// Where programs of this user keep such directories.
fn user_cache() -> Option<PathBuf> {
    match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => Some(cache.into()),
        None => Some(env::home_dir()?.join(".cache")),
    }
}

/// Directory of the hub cache, as the hub's own programs find it.
pub(crate) fn hub_cache() -> Option<PathBuf> {
    if let Some(cache) = HUB_CACHE.get() {
        return Some(cache.into());
    }
    let home = match HF_HOME.get() {
        Some(home) => PathBuf::from(home),
        None => user_cache()?.join("huggingface"),
    };
    Some(home.join("hub"))
}
