//! Energy, from counters of the machine and from nothing else: where there is none, there is no figure.
//!
//! Sources by trust: the processor's own counters (RAPL, through powercap), meters that the kernel shows
//! under hwmon, a battery that discharges.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Between two readings of a meter of power, which are integrated.
const POWER_PERIOD: Duration = Duration::from_millis(50);
/// How long the machine is watched doing nothing.
const IDLE: Duration = Duration::from_secs(1);
/// A battery tells its charge in steps of up to a minute: shorter windows would measure the step.
const MIN_BATTERY_WINDOW: Duration = Duration::from_secs(300);
/// Names of hwmon devices that measure the processor or the whole board. Those of graphics cards and disks
/// have the same files and count something else.
const HWMON_DEVICES: [&str; 9] = [
    "amd_energy",
    "ina219",
    "ina226",
    "ina238",
    "ina260",
    "ina3221",
    "macsmc_hwmon",
    "power_meter",
    "rpi_pmic",
];

/// Where energy was read, or why it was not; with the power of doing nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EnergyReport {
    /// The counters that were read.
    pub source: Option<String>,
    /// Power of the machine at rest, measured before the work.
    pub idle_watts: Option<f64>,
    /// Why there is no figure.
    pub reason: Option<String>,
}

/// A counter of energy.
#[derive(Debug)]
pub struct EnergyMeter {
    source: Source,
    name: String,
}

#[derive(Debug, Clone)]
enum Source {
    /// Counters in µJ; those of powercap wrap.
    Counters(Vec<Counter>),
    /// Power in µW.
    Power(Vec<PathBuf>),
    /// Directory of a battery.
    Battery(PathBuf),
}

#[derive(Debug, Clone)]
struct Counter {
    file: PathBuf,
    /// Value after which it is 0 again.
    wraps_at_uj: Option<u64>,
}

impl EnergyMeter {
    /// Looks for a source below `sys`, which is `/sys` but in tests.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn open(sys: &Path) -> Result<Self, String> {
        let mut reasons = Vec::new();
        for find in [powercap, hwmon, battery] {
            match find(sys) {
                Ok(meter) => return Ok(meter),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }

    /// What is read.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether windows of this length mean anything.
    pub(crate) fn suits(&self, window: Duration) -> bool {
        !matches!(self.source, Source::Battery(_)) || window >= MIN_BATTERY_WINDOW
    }

    /// Begins a window.
    pub fn begin(&self) -> EnergyWindow {
        let state = match &self.source {
            Source::Counters(counters) => {
                State::Counters(counters.iter().map(|c| (c.clone(), read_u64(&c.file))).collect())
            }
            Source::Power(files) => State::Power(PowerSampler::start(files.clone())),
            Source::Battery(dir) => State::Battery(dir.clone(), battery_joules(dir)),
        };
        EnergyWindow { start: Instant::now(), state }
    }

    /// Power of the machine while this process sleeps; a battery is too slow to tell.
    pub(crate) fn idle_watts(&self) -> Option<f64> {
        if !self.suits(IDLE) {
            return None;
        }
        let window = self.begin();
        std::thread::sleep(IDLE);
        let measured = window.end();
        measured.joules.map(|joules| joules / measured.seconds)
    }
}

/// A time over which energy is measured.
#[derive(Debug)]
pub struct EnergyWindow {
    start: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Counters(Vec<(Counter, Option<u64>)>),
    Power(PowerSampler),
    Battery(PathBuf, Option<f64>),
}

/// What a window took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Energy; `None` when the source could not be read.
    pub joules: Option<f64>,
    /// Duration.
    pub seconds: f64,
}

impl EnergyWindow {
    /// Ends the window.
    pub fn end(self) -> Measured {
        let joules = match self.state {
            State::Counters(counters) => {
                let used = counters.into_iter().map(|(counter, before)| {
                    counted(before?, read_u64(&counter.file)?, counter.wraps_at_uj)
                });
                used.sum::<Option<u64>>().map(|uj| uj as f64 / 1e6)
            }
            State::Power(sampler) => sampler.stop(),
            State::Battery(dir, before) => {
                let used = before.zip(battery_joules(&dir)).map(|(before, after)| before - after);
                used.filter(|&joules| joules > 0.0)
            }
        };
        Measured { joules, seconds: self.start.elapsed().as_secs_f64() }
    }
}

/// Energy of several windows together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EnergyUse {
    joules: f64,
    seconds: f64,
    tokens: usize,
    /// A window whose energy is unknown: the sum is then unknown, too.
    incomplete: bool,
}

impl EnergyUse {
    pub(crate) fn add(&mut self, measured: Measured, tokens: usize) {
        self.joules += measured.joules.unwrap_or(0.0);
        self.seconds += measured.seconds;
        self.tokens += tokens;
        self.incomplete |= measured.joules.is_none();
    }

    /// Everything that the machine took.
    pub(crate) fn joules_per_token(&self) -> Option<f64> {
        let known = !self.incomplete && self.tokens > 0;
        known.then(|| self.joules / self.tokens as f64)
    }

    /// Less what it would have taken doing nothing.
    pub(crate) fn net_joules_per_token(&self, idle_watts: Option<f64>) -> Option<f64> {
        let idle = idle_watts? * self.seconds / self.tokens.max(1) as f64;
        Some(self.joules_per_token()? - idle)
    }
}

fn read_u64(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn read_name(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

/// What a counter counted between two readings. One wrap is made good; windows are much shorter than two.
fn counted(before: u64, after: u64, wraps_at: Option<u64>) -> Option<u64> {
    if after >= before { Some(after - before) } else { (wraps_at? + after).checked_sub(before) }
}

/// Entries of a directory in the order of their names; none where there is no such directory.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// RAPL: the packages and, where it is counted apart, memory. Cores are within packages, and "psys"
/// contains both.
fn powercap(sys: &Path) -> Result<EnergyMeter, String> {
    let (mut counters, mut names) = (Vec::new(), Vec::new());
    let mut refused = false;
    for zone in entries(&sys.join("class/powercap")) {
        let Some(name) = read_name(&zone.join("name")) else { continue };
        if !(name.starts_with("package") || name == "dram") {
            continue;
        }
        // The same counters through memory-mapped registers would count twice.
        if zone.file_name().is_some_and(|f| f.to_string_lossy().contains("mmio")) {
            continue;
        }
        let file = zone.join("energy_uj");
        if read_u64(&file).is_none() {
            refused = true;
            continue;
        }
        counters.push(Counter { wraps_at_uj: read_u64(&zone.join("max_energy_range_uj")), file });
        names.push(name);
    }
    if refused {
        return Err("powercap: the counters are there, but only root may read energy_uj".into());
    }
    if counters.is_empty() {
        return Err("powercap: no counters (most virtual machines have none)".into());
    }
    let name = format!("powercap: {}", names.join(" + "));
    Ok(EnergyMeter { source: Source::Counters(counters), name })
}

/// Counters of energy if the device has them, else its power.
fn hwmon(sys: &Path) -> Result<EnergyMeter, String> {
    for device in entries(&sys.join("class/hwmon")) {
        let Some(name) = read_name(&device.join("name")) else { continue };
        if !HWMON_DEVICES.contains(&name.as_str()) {
            continue;
        }
        let readable = |kind: &str, suffixes: &[&str]| -> Vec<PathBuf> {
            let files = entries(&device).into_iter().filter(|path| {
                let file =
                    path.file_name().map_or_else(String::new, |f| f.to_string_lossy().into());
                let numbered = file.strip_prefix(kind).and_then(|rest| rest.split_once('_'));
                numbered.is_some_and(|(number, suffix)| {
                    number.parse::<u32>().is_ok() && suffixes.contains(&suffix)
                })
            });
            files.filter(|path| read_u64(path).is_some()).collect()
        };
        let energy = without_cores(readable("energy", &["input"]));
        if !energy.is_empty() {
            let name = format!("hwmon: {name}, {} counters", energy.len());
            let counters = energy.into_iter().map(|file| Counter { file, wraps_at_uj: None });
            return Ok(EnergyMeter { source: Source::Counters(counters.collect()), name });
        }
        let mut power = readable("power", &["input"]);
        if power.is_empty() {
            power = readable("power", &["average"]);
        }
        if !power.is_empty() {
            let period = POWER_PERIOD.as_millis();
            let name = format!("hwmon: {name}, power of {} rails every {period} ms", power.len());
            return Ok(EnergyMeter { source: Source::Power(power), name });
        }
    }
    Err("hwmon: no meter of the processor or the board".into())
}

/// Where a device labels counters of sockets and of cores, those of cores are within the sockets.
fn without_cores(files: Vec<PathBuf>) -> Vec<PathBuf> {
    let label = |file: &PathBuf| {
        let label = file.to_string_lossy().replace("_input", "_label");
        read_name(Path::new(&label)).unwrap_or_default()
    };
    let sockets: Vec<_> = files.iter().filter(|f| label(f).contains("socket")).cloned().collect();
    if sockets.is_empty() { files } else { sockets }
}

fn battery(sys: &Path) -> Result<EnergyMeter, String> {
    for dir in entries(&sys.join("class/power_supply")) {
        if read_name(&dir.join("type")).as_deref() != Some("Battery")
            || battery_joules(&dir).is_none()
        {
            continue;
        }
        if read_name(&dir.join("status")).as_deref() != Some("Discharging") {
            return Err("battery: it is not discharging, so its charge tells nothing".into());
        }
        let name = dir.file_name().map_or_else(String::new, |f| f.to_string_lossy().into());
        let name = format!("battery: {name}");
        return Ok(EnergyMeter { source: Source::Battery(dir), name });
    }
    Err("battery: none".into())
}

/// Energy in a battery: in µWh, or a charge in µAh at a voltage in µV.
fn battery_joules(dir: &Path) -> Option<f64> {
    const JOULES_PER_UWH: f64 = 3.6e-3;
    if let Some(uwh) = read_u64(&dir.join("energy_now")) {
        return Some(uwh as f64 * JOULES_PER_UWH);
    }
    let uah = read_u64(&dir.join("charge_now"))? as f64;
    let volts = read_u64(&dir.join("voltage_now"))? as f64 / 1e6;
    Some(uah * volts * JOULES_PER_UWH)
}

/// Integrates power in a thread of its own.
#[derive(Debug)]
struct PowerSampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<f64>>,
}

impl PowerSampler {
    fn start(files: Vec<PathBuf>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let watts = || {
                let uw = files.iter().map(|file| read_u64(file)).sum::<Option<u64>>()?;
                Some(uw as f64 / 1e6)
            };
            let (mut before, mut power) = (Instant::now(), watts()?);
            let mut joules = 0.0;
            loop {
                let last = stopped.load(Ordering::Acquire);
                if !last {
                    std::thread::park_timeout(POWER_PERIOD);
                }
                let (now, next) = (Instant::now(), watts()?);
                joules += (power + next) / 2.0 * (now - before).as_secs_f64();
                (before, power) = (now, next);
                if last {
                    return Some(joules);
                }
            }
        });
        Self { stop, thread }
    }

    fn stop(self) -> Option<f64> {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread.join().ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::write;

    #[test]
    fn without_counters_there_is_a_reason_for_each_source() {
        let sys = tempfile::tempdir().expect("a directory");
        let reason = EnergyMeter::open(sys.path()).expect_err("nothing is there");
        for source in ["powercap: ", "hwmon: ", "battery: "] {
            assert!(reason.contains(source), "{reason}");
        }
    }

    #[test]
    fn packages_and_memory_count_once_and_wraps_are_made_good() {
        let sys = tempfile::tempdir().expect("a directory");
        let zone = |zone: &str, name: &str, uj: u64| {
            write(sys.path(), &format!("class/powercap/{zone}/name"), name);
            write(sys.path(), &format!("class/powercap/{zone}/energy_uj"), &format!("{uj}\n"));
            write(sys.path(), &format!("class/powercap/{zone}/max_energy_range_uj"), "10000000\n");
        };
        zone("intel-rapl:0", "package-0\n", 9_000_000);
        zone("intel-rapl:0:0", "core\n", 4_000_000);
        zone("intel-rapl:0:1", "dram\n", 100_000);
        zone("intel-rapl:1", "psys\n", 5_000_000);
        zone("intel-rapl-mmio:0", "package-0\n", 9_000_000);
        let meter = EnergyMeter::open(sys.path()).expect("counters");
        assert_eq!(meter.name(), "powercap: package-0 + dram");
        assert!(meter.suits(Duration::from_millis(10)));
        let window = meter.begin();
        zone("intel-rapl:0", "package-0\n", 2_000_000);
        zone("intel-rapl:0:0", "core\n", 9_000_000);
        zone("intel-rapl:0:1", "dram\n", 600_000);
        assert_eq!(window.end().joules, Some(3.5));

        let window = meter.begin();
        fs::remove_file(sys.path().join("class/powercap/intel-rapl:0:1/energy_uj")).expect("there");
        let mut used = EnergyUse::default();
        used.add(window.end(), 4);
        assert_eq!(used.joules_per_token(), None, "half a sum is no sum");
        let reason = EnergyMeter::open(sys.path()).expect_err("a counter is not readable");
        assert!(reason.contains("only root"), "{reason}");
    }

    #[test]
    fn sockets_count_instead_of_their_cores_and_graphics_cards_never() {
        let sys = tempfile::tempdir().expect("a directory");
        write(sys.path(), "class/hwmon/hwmon0/name", "amdgpu\n");
        write(sys.path(), "class/hwmon/hwmon0/energy1_input", "1\n");
        assert!(EnergyMeter::open(sys.path()).is_err());
        write(sys.path(), "class/hwmon/hwmon1/name", "amd_energy\n");
        for (number, label, uj) in [(1, "Ecore000", 5), (2, "Esocket0", 1_000_000)] {
            write(sys.path(), &format!("class/hwmon/hwmon1/energy{number}_label"), label);
            let file = format!("class/hwmon/hwmon1/energy{number}_input");
            write(sys.path(), &file, &format!("{uj}\n"));
        }
        let meter = EnergyMeter::open(sys.path()).expect("a counter");
        assert_eq!(meter.name(), "hwmon: amd_energy, 1 counters");
        let window = meter.begin();
        write(sys.path(), "class/hwmon/hwmon1/energy2_input", "1500000\n");
        assert_eq!(window.end().joules, Some(0.5));
    }

    #[test]
    fn power_is_integrated() {
        let sys = tempfile::tempdir().expect("a directory");
        write(sys.path(), "class/hwmon/hwmon0/name", "ina3221\n");
        write(sys.path(), "class/hwmon/hwmon0/power1_input", "3000000\n");
        write(sys.path(), "class/hwmon/hwmon0/power2_input", "1000000\n");
        let meter = EnergyMeter::open(sys.path()).expect("a meter");
        let window = meter.begin();
        std::thread::sleep(Duration::from_millis(120));
        let measured = window.end();
        let watts = measured.joules.expect("measured") / measured.seconds;
        // The thread starts a little after the window.
        assert!(watts > 2.0 && watts <= 4.01, "{watts}");
    }

    #[test]
    fn a_battery_counts_only_while_it_discharges() {
        let sys = tempfile::tempdir().expect("a directory");
        write(sys.path(), "class/power_supply/AC/type", "Mains\n");
        write(sys.path(), "class/power_supply/BAT0/type", "Battery\n");
        write(sys.path(), "class/power_supply/BAT0/status", "Charging\n");
        write(sys.path(), "class/power_supply/BAT0/charge_now", "4000000\n");
        write(sys.path(), "class/power_supply/BAT0/voltage_now", "12000000\n");
        let reason = EnergyMeter::open(sys.path()).expect_err("it charges");
        assert!(reason.contains("not discharging"), "{reason}");
        write(sys.path(), "class/power_supply/BAT0/status", "Discharging\n");
        let meter = EnergyMeter::open(sys.path()).expect("it discharges");
        assert!(!meter.suits(Duration::from_secs(60)) && meter.suits(Duration::from_secs(600)));
        assert_eq!(meter.idle_watts(), None);
        let window = meter.begin();
        write(sys.path(), "class/power_supply/BAT0/charge_now", "3999000\n");
        let joules = window.end().joules.expect("read");
        assert!((joules - 43.2).abs() < 1e-6, "{joules}");
    }

    #[test]
    fn idle_power_is_subtracted_over_the_same_time() {
        let mut used = EnergyUse::default();
        used.add(Measured { joules: Some(30.0), seconds: 2.0 }, 10);
        used.add(Measured { joules: Some(10.0), seconds: 1.0 }, 10);
        assert_eq!(used.joules_per_token(), Some(2.0));
        assert_eq!(used.net_joules_per_token(Some(10.0)), Some(0.5));
        assert_eq!(used.net_joules_per_token(None), None);
        assert_eq!(EnergyUse::default().joules_per_token(), None);
    }
}
