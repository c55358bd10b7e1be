//! The command line of gristmill: arguments in, results on standard output, everything else on standard
//! error. Nothing but this program prints, reads the environment or exits.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod document;
mod embedded;
mod error;
mod generate;
mod interrupt;
mod knobs;
mod kv;
mod machine;
mod measure;
mod progress;
mod render;
mod source;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match args::Cli::try_parse() {
        Ok(cli) => error::report(verbs::run(cli)),
        Err(error) => {
            // Help on a closed pipe is no failure.
            let _ = error.print();
            ExitCode::from(error.exit_code() as u8)
        }
    }
}
