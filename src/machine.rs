//! What is known of this machine, kept between runs: probing takes seconds.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use gristmill_eval::{Host, Machine, MachineOrigin, Needs};
use gristmill_formats::Progress;

use crate::{document, knobs, render};

const FILE: &str = "machine.json";

/// What was probed before, if it was on this machine and with these kernels.
pub(crate) fn recall() -> Option<Machine> {
    let text = fs::read_to_string(path()?).ok()?;
    let machine: Machine = serde_json::from_str(&text).ok()?;
    (machine.schema_version == gristmill_eval::SCHEMA_VERSION && is_this(&machine))
        .then_some(machine)
}

/// This machine with everything that is needed: probed where it is not known yet, or anew.
pub(crate) fn probed(needs: &Needs, anew: bool, progress: &dyn Progress) -> Result<Machine> {
    let known = if anew { None } else { recall() };
    let mut machine = known.unwrap_or_else(Machine::this);
    let scratch = tempfile::tempdir().context("no directory for probing")?;
    if machine.probe(needs, scratch.path(), progress)? {
        keep(&machine);
    }
    Ok(machine)
}

/// A cache that cannot be written costs time, nothing else.
fn keep(machine: &Machine) {
    let Some(path) = path() else { return };
    let write = || -> Result<()> {
        let dir = path.parent().context("a file has a directory")?;
        fs::create_dir_all(dir)?;
        document::replace(&path, &render::json_text(machine)?)
    };
    if let Err(error) = write() {
        render::note(format_args!(
            "note: cannot keep what was probed in {}: {error}",
            path.display()
        ));
    }
}

fn path() -> Option<PathBuf> {
    Some(knobs::cache()?.join(FILE))
}

/// Whether figures are of this machine and this build.
fn is_this(machine: &Machine) -> bool {
    let MachineOrigin::Probed { host, .. } = &machine.origin else { return false };
    let now = Host::detect();
    let key = |h: &Host| {
        let (isa, version, commit) = (h.isa_detected.clone(), h.version.clone(), h.commit.clone());
        (h.cpu.clone(), h.cores, isa, h.memory_bytes, version, commit)
    };
    key(host) == key(&now)
}
