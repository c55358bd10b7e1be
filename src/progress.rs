//! Progress of long jobs: a bar on a terminal, nothing elsewhere.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use gristmill_formats::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{interrupt, render};

/// Draws a bar on standard error when that is a terminal, and passes Ctrl-C on.
#[derive(Debug)]
pub(crate) struct TerminalProgress {
    /// Of the stage that runs. Another one for each, so that no frame mixes two of them.
    bar: RwLock<ProgressBar>,
}

impl TerminalProgress {
    pub(crate) fn new() -> Self {
        Self { bar: RwLock::new(ProgressBar::hidden()) }
    }

    fn bar(&self) -> RwLockReadGuard<'_, ProgressBar> {
        self.bar.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for TerminalProgress {
    fn begin(&self, stage: &str, total: u64, unit: &str) {
        let count = match unit {
            "bytes" => "{bytes}/{total_bytes} ({bytes_per_sec})".to_owned(),
            // A unit is a word of ours, but braces in it would be read as a template.
            _ => format!("{{human_pos}}/{{human_len}} {}", unit.replace(['{', '}'], "")),
        };
        let template = format!("{{msg}} [{{bar:30}}] {count} ETA {{eta}}");
        let style = ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        self.bar().finish_and_clear();
        // Hidden by indicatif when standard error is not a terminal.
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
            .with_style(style)
            .with_message(stage.to_owned());
        *self.bar.write().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    fn advance(&self, units: u64) {
        self.bar().inc(units);
    }

    fn note(&self, message: &str) {
        self.bar().suspend(|| render::note(format_args!("note: {message}")));
    }

    fn cancelled(&self) -> bool {
        interrupt::requested()
    }
}

impl Drop for TerminalProgress {
    fn drop(&mut self) {
        self.bar().finish_and_clear();
    }
}
