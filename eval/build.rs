//! Tells the program with what it was built: timings depend on it.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    if let Ok(output) = Command::new(rustc).arg("--version").output()
        && let Ok(version) = String::from_utf8(output.stdout)
    {
        println!("cargo:rustc-env=GRISTMILL_BUILT_BY={}", version.trim());
    }
    // Cargo separates the flags by a character that no flag has.
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().replace('\x1f', " ");
    let level = env::var("OPT_LEVEL").unwrap_or_default();
    println!(
        "cargo:rustc-env=GRISTMILL_BUILT_WITH={}",
        format!("-C opt-level={level} {flags}").trim()
    );
}
