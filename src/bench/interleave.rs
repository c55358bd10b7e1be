//! Files measured in turns, every time in a fresh process, so that a change of the machine's speed meets
//! them all alike.

use anyhow::{Context, Result};
use gristmill_eval::{BenchReport, Interleaved};
use gristmill_formats::Progress;

use super::child;
use crate::error::Interrupted;

const KV: &str = "--kv";
const KV_AUTO: &str = "auto";

/// Runs `bench MODEL ARGUMENTS --json` for each model in each of some rounds, forward and backward in
/// alternation, and puts the reports together. `arguments` are words as users type them, without models;
/// a fresh process has no cold start to measure unless they ask for one (`--cold`).
///
/// A cache chosen by measurement (`--kv auto`) is chosen in the first round alone.
///
/// # Errors
/// When a process fails, with what it said, or the user cancels.
pub(crate) fn interleave(
    models: &[String],
    arguments: &[String],
    rounds: usize,
    progress: &dyn Progress,
) -> Result<Interleaved> {
    let mut files: Vec<(String, Vec<BenchReport>)> =
        models.iter().map(|model| (model.clone(), Vec::with_capacity(rounds))).collect();
    progress.begin("runs", (models.len() * rounds) as u64, "runs");
    for round in 0..rounds {
        for index in order(models.len(), round) {
            if progress.cancelled() {
                return Err(Interrupted.into());
            }
            let (model, reports) = &mut files[index];
            let chosen = reports.first().map(|report| report.kv.as_str());
            let report = run(model, &with_kv(arguments, chosen), round == 0, progress)?;
            reports.push(report);
            progress.advance(1);
        }
    }
    Ok(Interleaved::of(files))
}

/// Every other round goes backwards.
pub(crate) fn order(count: usize, round: usize) -> Vec<usize> {
    if round.is_multiple_of(2) { (0..count).collect() } else { (0..count).rev().collect() }
}

/// The arguments with a choice in place of `auto`, once there is one.
fn with_kv(arguments: &[String], chosen: Option<&str>) -> Vec<String> {
    let mut arguments = arguments.to_vec();
    if let Some(chosen) = chosen
        && let Some(at) = arguments.windows(2).position(|pair| pair == [KV, KV_AUTO])
    {
        arguments[at + 1] = chosen.into();
    }
    arguments
}

/// Runs `bench MODEL ARGUMENTS --json` in a fresh process. What the `first` of a file says beside its
/// report is passed on.
///
/// # Errors
/// When it fails, with what it said.
pub(crate) fn run(
    model: &str,
    arguments: &[String],
    first: bool,
    progress: &dyn Progress,
) -> Result<BenchReport> {
    let mut words = vec!["bench".to_owned()];
    words.extend_from_slice(arguments);
    if !arguments.iter().any(|word| word == "--cold") {
        words.extend(["--cold".into(), "0".into()]);
    }
    words.extend(["--json".into(), "--".into(), model.into()]);
    let output = child::run(&words, model)?;
    if first {
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            progress.note(&format!("{model}: {}", line.strip_prefix("note: ").unwrap_or(line)));
        }
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{model}: the report of its process cannot be read"))
}

/// The words that a list of numbers is given as.
pub(crate) fn list(numbers: impl IntoIterator<Item = usize>) -> String {
    let words: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_alternate() {
        assert_eq!(order(3, 0), [0, 1, 2]);
        assert_eq!(order(3, 1), [2, 1, 0]);
    }

    #[test]
    fn a_choice_is_made_once() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let auto = words("--gen 8 --kv auto");
        assert_eq!(with_kv(&auto, None), auto);
        assert_eq!(with_kv(&auto, Some("int8")), words("--gen 8 --kv int8"));
        assert_eq!(with_kv(&words("--kv f16"), Some("int8")), words("--kv f16"));
    }
}
