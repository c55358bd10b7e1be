//! Ctrl-C: asks once, insists the second time.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// Nothing is running that could see a request, so the process may end at once.
static IDLE: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C from here on.
pub(crate) fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        let again = REQUESTED.swap(true, Ordering::SeqCst);
        if again || IDLE.load(Ordering::SeqCst) {
            #[expect(clippy::exit, reason = "whoever asks twice does not want to wait")]
            std::process::exit(130);
        }
    })
    .context("cannot catch Ctrl-C")
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Forgets the request: what it was meant for has stopped.
pub(crate) fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// Runs `wait`, during which Ctrl-C ends the process at once: it waits for input and cannot look.
pub(crate) fn while_idle<T>(wait: impl FnOnce() -> T) -> T {
    IDLE.store(true, Ordering::SeqCst);
    let result = wait();
    IDLE.store(false, Ordering::SeqCst);
    result
}
