//! The program as its users meet it: every test runs the real binary.

#![forbid(unsafe_code)]

mod bench;
mod chat;
mod demo;
mod evaluation;
mod interruption;
mod measurements;
mod models;
mod packing;
mod pareto;
mod predict;
mod support;
mod texts;
mod verification;

/// Help texts and messages, word for word. `TRYCMD=overwrite cargo test --test cli words` renews them.
#[test]
fn words() {
    trycmd::TestCases::new()
        .default_bin_name("gristmill")
        .env("COLUMNS", "100")
        .env("HF_HUB_CACHE", "no-such-cache")
        .env("GRISTMILL_THREADS", "")
        .env("GRISTMILL_ISA", "")
        .env("GRISTMILL_CACHE", "no-such-cache")
        .case("tests/cli/cases/*.trycmd");
}
