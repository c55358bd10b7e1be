//! `hwbench`: speed of every kernel beside the machine's ceilings.

use anyhow::Result;
use gristmill_eval::{HwBenchConfig, HwBenchReport, Subject, hwbench};
use gristmill_runtime::Isa;

use super::Session;
use crate::args::HwbenchArgs;
use crate::document::Section;
use crate::error::{Outcome, Usage, WithHint};
use crate::knobs;
use crate::progress::TerminalProgress;
use crate::render::{self, Render};

pub(super) fn run(session: Session, args: &HwbenchArgs) -> Result<Outcome> {
    let mut config =
        HwBenchConfig { quick: args.quick, check: args.assert, ..HwBenchConfig::default() };
    if !args.isa.is_empty() {
        config.isas = args.isa.clone();
    } else if let Some(isa) = session.isa {
        config.isas = vec![isa];
    }
    config.families = args.family.clone();
    config.subjects = Subject::all().filter(|s| args.of.contains(&s.name())).collect();
    if !config.measures_something() {
        let error = Usage("--of: no kernel of these families works on these".into());
        return Err(error).hint("leave out --family or --of to see what there is");
    }
    check_isas(&config)?;
    if !args.threads.is_empty() {
        config.threads = args.threads.iter().map(|&threads| threads as usize).collect();
    } else if let Some(threads) = knobs::threads()? {
        config.threads = vec![threads];
    }
    // A page that cannot be updated should be known before minutes of measuring.
    let page = args.update.as_deref().map(|path| Section::open(path, "hwbench")).transpose()?;

    let progress = TerminalProgress::new();
    let report = hwbench(&config, &progress)?;
    drop(progress);
    if let Some(page) = page {
        page.update(&report.markdown())?;
    }
    if args.markdown {
        render::print(&report.markdown())?;
    } else {
        render::emit(&report, session.json)?;
    }
    Ok(if report.slow_choices.is_empty() { Outcome::Done } else { Outcome::CheckFailed })
}

/// Refuses classes that the CPU lacks, and a check that would compare nothing.
fn check_isas(config: &HwBenchConfig) -> Result<()> {
    let names = |isas: &[Isa]| isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    let available: Vec<Isa> = Isa::available().collect();
    if let Some(isa) = config.isas.iter().find(|isa| !available.contains(isa)) {
        let error = Usage(format!("--isa: this CPU has no {}", isa.name()));
        return Err(error).hint(format!("it has {}", names(&available)));
    }
    let chosen = Isa::detect();
    let compares = config.isas.contains(&chosen) && config.isas.iter().any(|&isa| isa != chosen);
    if config.check && !compares && available.len() > 1 {
        let error = Usage(format!(
            "--assert compares {} with other instruction sets, and only {} is measured",
            chosen.name(),
            names(&config.isas)
        ));
        return Err(error).hint("leave out --isa and GRISTMILL_ISA");
    }
    Ok(())
}

impl Render for HwBenchReport {
    fn text(&self) -> String {
        Self::text(self)
    }
}
