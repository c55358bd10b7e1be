//! What the process tells its caller: exit codes, and how errors are printed.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use gristmill_convert::ConvertError;
use gristmill_eval::EvalError;
use gristmill_quantize::QuantizeError;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const CHECK_FAILED: u8 = 3;
const INTERRUPTED: u8 = 130;

/// How a verb ended when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As asked.
    Done,
    /// A requested check did not hold: damage was found, or a limit was exceeded.
    CheckFailed,
    /// The user stopped it, and what there was has been printed.
    Interrupted,
}

/// A request that cannot be meant: exit code 2, like an unknown flag.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

/// The user asked to stop before there was a result.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl Error for Interrupted {}

/// An error together with what to do about it.
#[derive(Debug)]
struct Hinted {
    error: anyhow::Error,
    hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Hinted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// Adds what to do next to an error.
pub(crate) trait WithHint<T> {
    /// Adds a hint.
    fn hint(self, hint: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithHint<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> Result<T> {
        self.map_err(|error| Hinted { error: error.into(), hint: hint.into() }.into())
    }
}

/// Prints what went wrong and says with which code the process ends.
pub(crate) fn report(result: Result<Outcome>) -> ExitCode {
    let code = match result {
        Ok(Outcome::Done) => return ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => CHECK_FAILED,
        Ok(Outcome::Interrupted) => INTERRUPTED,
        // The reader of the output has seen enough: `gristmill inspect FILE | head`.
        Err(error) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
        Err(error) if is_interruption(&error) => {
            print("interrupted", None);
            INTERRUPTED
        }
        Err(error) => {
            print(&format!("error: {}", chain(&error)), hint(&error));
            if contains::<Usage>(&error, |_| true) { USAGE } else { FAILURE }
        }
    };
    ExitCode::from(code)
}

/// Nothing can be done when even this cannot be written.
fn print(message: &str, hint: Option<&str>) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "{message}");
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

/// The messages from the outside in. A message that the one before it quotes is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let message = cause.to_string();
        if last.contains(&message) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&message);
        last = message;
    }
    text
}

fn hint(error: &anyhow::Error) -> Option<&str> {
    error.chain().find_map(|e| e.downcast_ref::<Hinted>()).map(|hinted| hinted.hint.as_str())
}

/// Whether an error of type `T` for which `test` holds is anywhere in the chain.
fn contains<T: Error + Send + Sync + 'static>(
    error: &anyhow::Error,
    test: impl Fn(&T) -> bool,
) -> bool {
    error.chain().any(|cause| {
        let inner = cause.downcast_ref::<Hinted>().and_then(|h| h.error.downcast_ref::<T>());
        cause.downcast_ref::<T>().or(inner).is_some_and(&test)
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    contains::<io::Error>(error, |e| e.kind() == ErrorKind::BrokenPipe)
        || contains::<serde_json::Error>(error, |e| {
            e.io_error_kind() == Some(ErrorKind::BrokenPipe)
        })
}

fn is_interruption(error: &anyhow::Error) -> bool {
    contains::<Interrupted>(error, |_| true)
        || contains::<ConvertError>(error, |e| matches!(e, ConvertError::Cancelled))
        || contains::<QuantizeError>(error, |e| matches!(e, QuantizeError::Cancelled))
        || contains::<EvalError>(error, |e| matches!(e, EvalError::Cancelled))
}
