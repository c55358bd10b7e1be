//! Speed in rounds: in each all files take turns, each in a fresh process, so that a change of the
//! machine's speed meets them all.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use gristmill_eval::{BenchReport, Host, Interleaved};
use serde::{Deserialize, Serialize};

use super::pace::{Kind, Pace};
use super::state::{Directory, read, tool, write};
use super::stop_if_asked;
use crate::bench::{self, list};
use crate::progress::TerminalProgress;
use crate::render::SCHEMA_VERSION;

const STATE: &str = "speed.json";

/// What all speeds depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpeedKey {
    pub(super) threads: Vec<usize>,
    pub(super) prompt: usize,
    pub(super) r#gen: usize,
    pub(super) kv: String,
    /// Instruction set, where the environment lowers it.
    pub(super) isa: Option<String>,
    cpu: Option<String>,
    cores: usize,
    tool: String,
}

impl SpeedKey {
    pub(super) fn new(
        threads: Vec<usize>,
        (prompt, r#gen): (usize, usize),
        kv: &str,
        isa: Option<&str>,
        host: &Host,
    ) -> Self {
        Self {
            threads,
            prompt,
            r#gen,
            kv: kv.into(),
            isa: isa.map(Into::into),
            cpu: host.cpu.clone(),
            cores: host.cores,
            tool: tool(host),
        }
    }

    /// The arguments of one process, as users type them.
    fn arguments(&self) -> Vec<String> {
        let threads = list(self.threads.iter().copied());
        let (prompt, r#gen) = (self.prompt.to_string(), self.r#gen.to_string());
        let words = [
            ["--threads", &threads],
            ["--prompt", &prompt],
            ["--gen", &r#gen],
            ["--kv", &self.kv],
            ["--repeat", "1"],
        ];
        words.as_flattened().iter().map(ToString::to_string).collect()
    }
}

/// A file that takes part.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    /// Its name in the state.
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) fingerprint: String,
}

/// Rounds that were run.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpeedState {
    schema_version: u32,
    key: Option<SpeedKey>,
    rounds: Vec<Round>,
}

/// One round: who takes part, by fingerprint, and who has had a turn.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Round {
    files: BTreeMap<String, String>,
    runs: BTreeMap<String, BenchReport>,
}

impl Round {
    fn of(runners: &[Runner]) -> Self {
        let files = runners.iter().map(|r| (r.id.clone(), r.fingerprint.clone())).collect();
        Self { files, runs: BTreeMap::new() }
    }

    /// Whether all of these took turns in it. A file that came later would be compared with what others
    /// reached at another time.
    fn covers(&self, runners: &[Runner]) -> bool {
        runners.iter().all(|r| self.files.get(&r.id) == Some(&r.fingerprint))
    }
}

/// The rounds of a directory.
#[derive(Debug)]
pub(super) struct Rounds<'a> {
    directory: &'a Directory,
    state: SpeedState,
}

impl<'a> Rounds<'a> {
    /// Those that hold under these settings for these files, and as many more as are asked for.
    pub(super) fn open(
        directory: &'a Directory,
        key: &SpeedKey,
        runners: &[Runner],
        count: usize,
    ) -> Result<Self> {
        let state: Option<SpeedState> = read(&directory.file(STATE))?;
        let fits =
            |s: &SpeedState| s.schema_version == SCHEMA_VERSION && s.key.as_ref() == Some(key);
        let mut state = state.filter(fits).unwrap_or_else(|| SpeedState {
            schema_version: SCHEMA_VERSION,
            key: Some(key.clone()),
            rounds: Vec::new(),
        });
        state.rounds.retain(|round| round.covers(runners));
        while state.rounds.len() < count {
            state.rounds.push(Round::of(runners));
        }
        Ok(Self { directory, state })
    }

    /// The runs that are still to be made.
    pub(super) fn missing(&self, runners: &[Runner]) -> usize {
        let missing =
            |round: &Round| runners.iter().filter(|r| !round.runs.contains_key(&r.id)).count();
        self.state.rounds.iter().map(missing).sum()
    }

    /// Makes them. Each is kept as soon as it is there.
    pub(super) fn run(
        &mut self,
        key: &SpeedKey,
        runners: &[Runner],
        pace: &mut Pace,
        progress: &TerminalProgress,
    ) -> Result<()> {
        let count = self.state.rounds.len();
        let arguments = key.arguments();
        for index in 0..count {
            for i in bench::order(runners.len(), index) {
                let runner = &runners[i];
                if self.state.rounds[index].runs.contains_key(&runner.id) {
                    continue;
                }
                stop_if_asked()?;
                let what = format!("{}, round {} of {count}", runner.id, index + 1);
                let report = pace.step(Kind::Speed, &what, progress, |progress| {
                    progress.begin("speed", 1, "runs");
                    let path = runner.path.to_string_lossy();
                    bench::run(&path, &arguments, index == 0, progress)
                })?;
                self.state.rounds[index].runs.insert(runner.id.clone(), report);
                write(&self.directory.file(STATE), &self.state).context("cannot keep a speed")?;
            }
        }
        Ok(())
    }

    /// What disturbed the runs of these files, so that their speeds are not comparable with others.
    pub(super) fn disturbances(&self, runners: &[Runner]) -> Vec<String> {
        let files = runners.iter().map(|runner| {
            let reports = self.of(&runner.id).into_iter().cloned().collect();
            (runner.id.clone(), reports)
        });
        Interleaved::of(files.collect()).disturbances
    }

    /// The reports of a file, by round.
    pub(super) fn of(&self, id: &str) -> Vec<&BenchReport> {
        self.state.rounds.iter().filter_map(|round| round.runs.get(id)).collect()
    }

    /// How many rounds there are.
    pub(super) fn count(&self) -> usize {
        self.state.rounds.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(id: &str, fingerprint: &str) -> Runner {
        Runner { id: id.into(), path: id.into(), fingerprint: fingerprint.into() }
    }

    #[test]
    fn rounds_hold_for_the_files_that_took_part() {
        let directory = tempfile::tempdir().unwrap();
        let directory = Directory::open(directory.path()).unwrap();
        let host = Host::detect();
        let key = SpeedKey::new(vec![1], (8, 4), "f16", None, &host);
        let (a, b) = (runner("a", "1"), runner("b", "2"));
        let both = [a.clone(), b.clone()];
        let rounds = Rounds::open(&directory, &key, &both, 3).unwrap();
        assert_eq!((rounds.count(), rounds.missing(&both)), (3, 6));
        write(&directory.file(STATE), &rounds.state).unwrap();

        let count = |key: &SpeedKey, runners: &[Runner], asked: usize| {
            Rounds::open(&directory, key, runners, asked).unwrap().count()
        };
        // More rounds are added, fewer files need no other rounds.
        assert_eq!(count(&key, &both, 5), 5);
        assert_eq!(count(&key, &both, 1), 3);
        assert_eq!(count(&key, &both[..1], 1), 3);
        // A file that is new or made anew takes turns with the others.
        assert_eq!(count(&key, &[a.clone(), runner("c", "3")], 1), 1);
        assert_eq!(count(&key, &[a, runner("b", "4")], 1), 1);
        // Other settings.
        let other = SpeedKey::new(vec![2], (8, 4), "f16", None, &host);
        assert_eq!(count(&other, &both, 1), 1);
    }
}
