//! `hwbench`: speed of every kernel beside the machine's ceilings.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gristmill_eval::{HwBenchConfig, HwBenchReport, hwbench};
use gristmill_runtime::Isa;

use super::Session;
use crate::args::HwbenchArgs;
use crate::error::{Outcome, Usage, WithHint};
use crate::knobs;
use crate::progress::TerminalProgress;
use crate::render::{self, Render};

const BEGIN: &str = "<!-- hwbench:begin -->";
const END: &str = "<!-- hwbench:end -->";

pub(super) fn run(session: Session, args: &HwbenchArgs) -> Result<Outcome> {
    let mut config =
        HwBenchConfig { quick: args.quick, check: args.assert, ..HwBenchConfig::default() };
    if !args.isa.is_empty() {
        config.isas = args.isa.clone();
    } else if let Some(isa) = session.isa {
        config.isas = vec![isa];
    }
    check_isas(&config)?;
    if !args.threads.is_empty() {
        config.threads = args.threads.iter().map(|&threads| threads as usize).collect();
    } else if let Some(threads) = knobs::threads()? {
        config.threads = vec![threads];
    }
    // A page that cannot be updated should be known before minutes of measuring.
    let page = args.update.as_deref().map(Page::open).transpose()?;

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

/// A document with a section for the tables.
#[derive(Debug)]
struct Page {
    /// What the name stands for, so that a link stays one.
    path: PathBuf,
    /// Up to the section, with the marker, and from its end.
    around: [String; 2],
}

impl Page {
    fn open(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot update {}", path.display());
        let path = fs::canonicalize(path).with_context(cannot)?;
        let text = fs::read_to_string(&path).with_context(cannot)?;
        let around = split(&text)
            .with_context(cannot)
            .hint(format!("put `{BEGIN}` and after it `{END}` where the tables are to stand"))?;
        Ok(Self { path, around: around.map(str::to_owned) })
    }

    /// Puts the section in; the old document stays until the new one is complete.
    fn update(&self, section: &str) -> Result<()> {
        let [before, after] = &self.around;
        let write = || -> std::io::Result<()> {
            let directory = self.path.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            write!(file, "{before}\n{section}{after}")?;
            file.as_file().set_permissions(fs::metadata(&self.path)?.permissions())?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot update {}", self.path.display()))
    }
}

/// What stands before the section, with its first marker, and after it, with its last.
fn split(text: &str) -> Result<[&str; 2]> {
    let once = |marker: &str| match text.matches(marker).count() {
        1 => Ok(text.find(marker).unwrap_or_default()),
        count => Err(anyhow::anyhow!("it has the marker `{marker}` {count} times, expected once")),
    };
    let (begin, end) = (once(BEGIN)? + BEGIN.len(), once(END)?);
    anyhow::ensure!(begin <= end, "the marker `{END}` stands before `{BEGIN}`");
    Ok([&text[..begin], &text[end..]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("page.md");
        fs::write(&path, format!("# a\n{BEGIN}\nold\nolder\n{END}\nb\n")).unwrap();
        let expected = format!("# a\n{BEGIN}\nnew\n{END}\nb\n");
        for _ in 0..2 {
            Page::open(&path).unwrap().update("new\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn markers_must_stand_once_and_in_order() {
        let error = |text: &str| split(text).unwrap_err().to_string();
        assert!(error("nothing").contains("0 times"));
        assert!(error(BEGIN).contains("hwbench:end"));
        assert!(error(&format!("{BEGIN}{END}{BEGIN}{END}")).contains("2 times"));
        assert!(error(&format!("{END}{BEGIN}")).contains("before"));
    }
}
