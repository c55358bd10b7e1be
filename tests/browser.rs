//! The page of `pareto` as a browser shows it: on a phone and on a desk, by day and by night. Needs
//! chromium: `cargo test --test browser -- --ignored`, as `.ci/run` does.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Names that the browser has; `GRISTMILL_BROWSER` comes first.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// Far more than it takes; a browser that hangs must not hang the tests.
const TIMEOUT: Duration = Duration::from_secs(300);
const PHONE: u32 = 360;
const DESK: u32 = 1280;
/// High enough for all plots.
const HEIGHT: u32 = 4000;

/// Looks at a page in a frame and writes what it finds behind it. The browser's own window is never narrower
/// than 500 pixels where a page is to be read and not drawn.
const PROBE: &str = r#"<!DOCTYPE html><html><body style="margin: 0"><iframe id="page" style="border: 0"
  width="WIDTH" height="HEIGHT" srcdoc="PAGE"></iframe><script>
addEventListener("load", () => {
  const view = document.getElementById("page").contentWindow;
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const shown = e => e.getClientRects().length > 0;
  const all = q => [...view.document.querySelectorAll(q)].filter(shown);
  const found = {
    inner: view.innerWidth,
    scroll: view.document.documentElement.scrollWidth,
    loaded: view.performance.getEntriesByType("resource").map(r => r.name),
    tables: all(".scroll").map(e => [e.scrollWidth, e.clientWidth]),
    charts: all("figure > svg").map(svg => ({
      box: box(svg),
      figure: svg.parentElement.id,
      texts: [...svg.querySelectorAll("text")].map(e => [e.textContent, ...box(e)]),
      labels: [...svg.querySelectorAll("text.label")].map(e => [e.textContent, ...box(e)]),
    })),
  };
  const pre = document.createElement("pre");
  pre.id = "found";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script></body></html>"#;

fn browser() -> PathBuf {
    if let Some(named) = std::env::var_os("GRISTMILL_BROWSER") {
        return named.into();
    }
    let runs = |name: &&str| {
        let mut version = Command::new(name);
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    };
    let found = BROWSERS.iter().find(|name| runs(name));
    found.unwrap_or_else(|| {
        panic!(
            "no browser: none of {} runs; `apt-get install chromium`, or name one in GRISTMILL_BROWSER",
            BROWSERS.join(", ")
        )
    })
    .into()
}

/// Runs the browser on a page; returns what it printed. It may say nothing of scripts or of the network.
fn browse(directory: &Path, page: &Path, width: u32, dark: bool, arguments: &[&str]) -> String {
    let profile = tempfile::tempdir_in(directory).unwrap();
    let (out, err) = (profile.path().join("out"), profile.path().join("err"));
    let mut command = Command::new(browser());
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-extensions", "--disable-background-networking"])
        .args(["--force-device-scale-factor=1", "--enable-logging=stderr"])
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},{HEIGHT}"))
        .args(arguments)
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap());
    let mut child = command.spawn().expect("the browser starts");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > TIMEOUT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the browser did not end: {}", fs::read_to_string(&err).unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = fs::read_to_string(&err).unwrap();
    assert!(status.success(), "{status}: {said}");
    let console: Vec<&str> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "the page complains: {console:?}");
    fs::read_to_string(&out).unwrap()
}

/// The page of a recorded report with peers beside it.
fn page(directory: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::copy(root.join("tests/fixtures/pareto.json"), directory.join("pareto.json")).unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_gristmill"))
        .args(["pareto", "--report-only", "--out"])
        .arg(directory)
        .arg("--peers")
        .arg(root.join("benches/peers-smollm2.json"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    directory.join("pareto.html")
}

/// What the probe finds in a page of some width.
fn probe(directory: &Path, page: &Path, width: u32) -> Value {
    let text = fs::read_to_string(page).unwrap();
    let text = text.replace('&', "&amp;").replace('"', "&quot;");
    let frame = PROBE.replace("WIDTH", &width.to_string()).replace("HEIGHT", &HEIGHT.to_string());
    let path = directory.join("probe.html");
    fs::write(&path, frame.replace("PAGE", &text)).unwrap();
    let dom = browse(directory, &path, DESK, false, &["--dump-dom"]);
    let found = dom.split("<pre id=\"found\">").nth(1).expect("the probe ran");
    let found = found.split("</pre>").next().unwrap();
    let found = found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&found).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

/// What a phone shows must fit its width, and its text must be as large as it was drawn for.
#[test]
#[ignore = "needs chromium"]
fn the_page_fits_its_screen_and_loads_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let page = page(directory.path());
    for width in [PHONE, DESK] {
        let found = probe(directory.path(), &page, width);
        assert_eq!(found["inner"], width, "the window has another width");
        assert_eq!(found["scroll"], width, "the page is wider than its window");
        assert_eq!(found["loaded"].as_array().unwrap().len(), 0, "{}", found["loaded"]);
        let tables = found["tables"].as_array().unwrap();
        assert_eq!(tables.len(), 2);
        assert!(tables.iter().all(|table| table[1].as_f64().unwrap() <= f64::from(width)));
        let charts = found["charts"].as_array().unwrap();
        let names: Vec<&str> = charts.iter().map(|c| c["figure"].as_str().unwrap()).collect();
        assert_eq!(names, ["kld-bytes", "ppl-bytes", "kld-speed", "ppl-speed"]);
        for chart in charts {
            check_texts(chart, width);
        }
    }
}

/// Text is large enough, within its drawing, and names of points do not lie on each other.
fn check_texts(chart: &Value, width: u32) {
    let name = format!("{} at {width}", chart["figure"]);
    let outer = numbers(&chart["box"]);
    let texts = chart["texts"].as_array().unwrap();
    assert!(texts.len() > 15, "{name}: only {} texts", texts.len());
    for text in texts {
        let inner = numbers(text);
        assert!(inner[3] - inner[1] >= 10.0, "{name}: {text} is too small to read");
        let within = inner[0] >= outer[0] - 1.0
            && inner[1] >= outer[1] - 1.0
            && inner[2] <= outer[2] + 1.0
            && inner[3] <= outer[3] + 1.0;
        assert!(within, "{name}: {text} leaves {outer:?}");
    }
    let labels: Vec<(String, Vec<f64>)> = chart["labels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|label| (label[0].to_string(), numbers(label)))
        .collect();
    assert!(labels.len() >= 8, "{name}: only {} points are named", labels.len());
    for (i, (text, a)) in labels.iter().enumerate() {
        for (other, b) in &labels[..i] {
            // The boxes of lines are higher than letters.
            let apart = |low: usize, slack: f64| {
                a[low + 2] - slack <= b[low] || b[low + 2] - slack <= a[low]
            };
            assert!(apart(0, 1.0) || apart(1, 4.0), "{name}: {text} lies on {other}");
        }
    }
}

/// Pixels of a screenshot.
struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<[u8; 3]>,
}

fn screenshot(directory: &Path, page: &Path, width: u32, dark: bool) -> Picture {
    let path = directory.join(format!("{width}-{dark}.png"));
    browse(directory, page, width, dark, &[&format!("--screenshot={}", path.display())]);
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(&path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    let step = info.color_type.samples();
    assert!(step >= 3 && info.bit_depth == png::BitDepth::Eight, "{info:?}");
    let rgb = bytes[..info.buffer_size()].chunks_exact(step).map(|p| [p[0], p[1], p[2]]).collect();
    Picture { width: info.width as usize, height: info.height as usize, rgb }
}

/// How often each colour is in a part of a picture.
fn colours(picture: &Picture, part: &[f64]) -> HashMap<[u8; 3], usize> {
    let [left, top, right, bottom] = [part[0], part[1], part[2], part[3]].map(|v| v as usize);
    assert!(right <= picture.width && bottom <= picture.height, "{part:?} is not in the picture");
    let mut counts = HashMap::new();
    for y in top..bottom {
        for colour in &picture.rgb[y * picture.width + left..y * picture.width + right] {
            *counts.entry(*colour).or_default() += 1;
        }
    }
    counts
}

/// The values of a variable of the style sheet: by day and by night.
fn variable(page: &str, name: &str) -> [[u8; 3]; 2] {
    let values: Vec<[u8; 3]> = page
        .match_indices(&format!("--{name}: #"))
        .map(|(at, found)| {
            let digits = &page[at + found.len()..][..6];
            let channel = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).unwrap();
            [channel(0), channel(2), channel(4)]
        })
        .collect();
    values.try_into().expect("one value for each scheme")
}

#[test]
#[ignore = "needs chromium"]
fn points_are_seen_by_day_and_by_night() {
    let directory = tempfile::tempdir().unwrap();
    let page = page(directory.path());
    let text = fs::read_to_string(&page).unwrap();
    for width in [PHONE, DESK] {
        let charts = probe(directory.path(), &page, width)["charts"].clone();
        let charts = charts.as_array().unwrap();
        for (scheme, dark) in [false, true].into_iter().enumerate() {
            let picture = screenshot(directory.path(), &page, width, dark);
            assert_eq!((picture.width, picture.height), (width as usize, HEIGHT as usize));
            let of = |name: &str| variable(&text, name)[scheme];
            // The corner is the page's own ground.
            assert_eq!(picture.rgb[0], of("back"), "{width}, dark {dark}");
            for chart in charts {
                let figure = format!("{}, {width}, dark {dark}", chart["figure"].as_str().unwrap());
                let counts = colours(&picture, &numbers(&chart["box"]));
                let count = |name: &str| counts.get(&of(name)).copied().unwrap_or(0);
                let total: usize = counts.values().sum();
                assert!(count("panel") * 2 > total, "{figure}: the plot has no ground");
                assert!(count("panel") < total * 98 / 100, "{figure}: the plot is empty");
                assert!(count("line") > 100, "{figure}: no lines of a grid");
                let expected: &[&str] =
                    if figure.contains("bytes") { &["o0", "p0", "p1"] } else { &["o0", "o1"] };
                for series in expected {
                    // A mark covers some fifty pixels, most of them in its very colour.
                    let seen = count(series);
                    assert!(seen > 150, "{figure}: {seen} pixels of {series}");
                }
            }
        }
    }
}
