//! A throttle test: a sustained run whose CPU quota is lowered midway says so, and when.
//!
//! It is a program of its own because other tests beside it would slow the run down, too. Where control
//! groups can be written the quota is a real one; elsewhere the process is stopped and continued in turns,
//! which is the same thing to it.

#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

const RUN_S: u64 = 24;
/// When the quota is lowered, from the beginning of the run.
const LOWERED_AFTER: Duration = Duration::from_secs(10);
/// Of a core: a quarter of what the one thread of the run has when nothing disturbs it.
const QUOTA: Duration = Duration::from_millis(25);
const PERIOD: Duration = Duration::from_millis(100);
/// How far off the throttle point may be: a window's half on either side of the change, and the time that
/// lowering takes.
const TOLERANCE_S: f64 = 3.0;
/// A machine that others use may slow the run down by itself. It does not do so every time.
const ATTEMPTS: usize = 4;

#[test]
fn a_lowered_quota_is_detected_and_reported() {
    let mut failures = Vec::new();
    for _ in 0..ATTEMPTS {
        match attempt() {
            Ok(()) => return,
            Err(failure) => failures.push(failure),
        }
    }
    panic!("{}", failures.join("\n"));
}

fn attempt() -> Result<(), String> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/tiny-shakespeare");
    let mut child = Command::new(env!("CARGO_BIN_EXE_gristmill"))
        .arg("bench")
        .arg(model)
        .args(["--threads", "1", "--prompt", "16", "--gen", "64", "--repeat", "1", "--cold", "0"])
        .args(["--sustained", &RUN_S.to_string(), "--throttled-below", "0.5", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut brake = Brake::new(&child);
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("sustained run") {
        line.clear();
        assert!(said.read_line(&mut line).expect("UTF-8") > 0, "it ended before the run");
    }
    thread::sleep(LOWERED_AFTER);
    let lowered = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    brake.lower(&child);
    let mut stdout = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut stdout).expect("UTF-8");
    let mut stderr = String::new();
    said.read_to_string(&mut stderr).expect("UTF-8");
    assert!(child.wait().expect("it ends").success(), "{stderr}");
    brake.release();

    let document: Value = serde_json::from_str(&stdout).expect("one JSON document");
    let run = &document["sustained"];
    let number = |value: &Value| value.as_f64().ok_or_else(|| format!("{value} in {run}"));
    let expected = lowered - number(&run["started_unix_s"])?;
    let found = number(&run["throttled_at_s"])?;
    if (found - expected).abs() > TOLERANCE_S {
        return Err(format!("lowered at {expected:.1} s, found at {found:.1} s in {run}"));
    }
    // What follows cannot be a matter of noise.
    assert!(run["throttle"].as_str().is_some_and(|text| text.starts_with("throttled at")), "{run}");
    assert!(number(&run["after"]["own_cores"])? < number(&run["burst"]["own_cores"])?, "{run}");
    let causes = run["causes"].to_string();
    match brake {
        Brake::Quota(_) => assert!(causes.contains("CPU quota held the process back"), "{causes}"),
        Brake::Signals(_) => assert!(causes.contains("the process had"), "{causes}"),
    }
    Ok(())
}

/// What slows a process down.
enum Brake {
    /// The directory of a control group of its own.
    Quota(PathBuf),
    /// Stops it and lets it go on, once there is a thread that does so.
    Signals(Option<(Arc<AtomicBool>, JoinHandle<()>)>),
}

impl Brake {
    /// Puts the process where it can be slowed down; it is not yet.
    fn new(child: &Child) -> Self {
        for parent in ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"] {
            let dir = Path::new(parent).join(format!("gristmill-test-{}", child.id()));
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let has_quota =
                ["cpu.cfs_quota_us", "cpu.max"].iter().any(|file| dir.join(file).exists());
            if has_quota && fs::write(dir.join("cgroup.procs"), child.id().to_string()).is_ok() {
                return Self::Quota(dir);
            }
            let _ = fs::remove_dir(&dir);
        }
        Self::Signals(None)
    }

    fn lower(&mut self, child: &Child) {
        match self {
            Self::Quota(dir) => {
                let (quota, period) = (QUOTA.as_micros(), PERIOD.as_micros());
                if dir.join("cpu.max").exists() {
                    fs::write(dir.join("cpu.max"), format!("{quota} {period}")).expect("a quota");
                } else {
                    fs::write(dir.join("cpu.cfs_period_us"), period.to_string()).expect("a period");
                    fs::write(dir.join("cpu.cfs_quota_us"), quota.to_string()).expect("a quota");
                }
            }
            Self::Signals(thread) => {
                let stop = Arc::new(AtomicBool::new(false));
                let (stopped, process) = (Arc::clone(&stop), child.id().to_string());
                let send = move |signal: &str| {
                    let quiet = Stdio::null;
                    let mut kill = Command::new("kill");
                    kill.args([signal, &process]).stdout(quiet()).stderr(quiet());
                    kill.status().is_ok_and(|status| status.success())
                };
                let turns = move || {
                    // Until it has ended and there is nobody to send to.
                    while !stopped.load(Ordering::Relaxed) && send("-STOP") {
                        thread::sleep(PERIOD - QUOTA);
                        send("-CONT");
                        thread::sleep(QUOTA);
                    }
                };
                *thread = Some((stop, thread::spawn(turns)));
            }
        }
    }

    /// Leaves nothing behind, once the process has ended.
    fn release(&mut self) {
        match self {
            Self::Quota(dir) => {
                let _ = fs::remove_dir(dir);
            }
            Self::Signals(thread) => {
                if let Some((stop, thread)) = thread.take() {
                    stop.store(true, Ordering::Relaxed);
                    thread.join().expect("it only sends signals");
                }
            }
        }
    }
}
