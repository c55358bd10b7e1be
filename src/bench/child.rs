//! This program, once more.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::error::{Interrupted, WithHint};
use crate::interrupt;

/// Exit code of a child that Ctrl-C stopped: it reaches the whole process group.
const INTERRUPTED: i32 = 130;

/// A command that runs this very program, even if its file was replaced since: two builds must not be
/// mixed in one comparison.
pub(super) fn this_program() -> Result<Command> {
    let own = if cfg!(target_os = "linux") {
        "/proc/self/exe".into()
    } else {
        std::env::current_exe().context("cannot find this program's own file")?
    };
    Ok(Command::new(own))
}

/// Runs this program to its end; standard output and error are returned. `what` names it in errors.
pub(super) fn run(arguments: &[impl AsRef<OsStr>], what: &str) -> Result<Output> {
    let mut command = this_program()?;
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.output().with_context(|| format!("cannot start a process for {what}"))?;
    check(&output, what)?;
    Ok(output)
}

/// An error for a child that failed, in its own words.
pub(super) fn check(output: &Output, what: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    if interrupt::requested() || output.status.code() == Some(INTERRUPTED) {
        return Err(Interrupted.into());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // Notes come before the error.
    let said = said.rsplit_once("error: ").map_or(said.trim(), |(_, error)| error.trim());
    if said.is_empty() {
        bail!("the process for {what} ended with {}", output.status);
    }
    let error = |said: &str| match said.starts_with(what) {
        true => anyhow::anyhow!("{said}"),
        false => anyhow::anyhow!("{what}: {said}"),
    };
    match said.split_once("\nhint: ") {
        Some((said, hint)) => Err(error(said)).hint(hint),
        None => Err(error(said)),
    }
}
