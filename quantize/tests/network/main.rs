//! The network that calibration looks through: against the runtime, finite differences, an autograd,
//! and statistics.

mod autograd;
mod differences;
mod engine;
mod fold;
mod head;
mod models;
#[path = "../pass/source.rs"]
#[allow(dead_code, reason = "shared with the tests of whole passes, which use the rest")]
mod source;
