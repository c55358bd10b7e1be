//! `pareto`: many recipes in one report, finished steps that stay, and what makes them be done again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Said, checkpoint, gristmill, packed, run, scratch, str};

const QUICK: [&str; 4] = ["--windows", "2", "--ctx", "128"];
const TWO_RECIPES: [&str; 4] = ["--recipe", "wide=--bits 8", "--recipe", "--bits 3"];
const SPEED: [&str; 6] = ["--threads", "1", "--prompt", "16", "--gen", "4"];

/// A run into a directory, without those settings that most tests share.
fn pareto(out: &Path, more: &[&str]) -> Said {
    let (model, text) = (checkpoint(), checkpoint().join("heldout.txt"));
    let words = ["pareto", str(&model), "--out", str(out), "--text", str(&text)];
    run(&[words.as_slice(), &QUICK, more].concat())
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Results that are kept below a directory: packed files by when they were made, the rest by content.
fn kept(out: &Path) -> BTreeMap<String, String> {
    let model = fs::read_dir(out.join("tiny-shakespeare")).into_iter().flatten();
    let mut kept = BTreeMap::new();
    for path in model.map(|entry| entry.unwrap().path()).chain([out.join("speed.json")]) {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() {
            continue;
        }
        let what = if path.extension().is_some_and(|extension| extension == "grist") {
            format!("{:?}", meta.modified().unwrap())
        } else {
            fs::read_to_string(&path).unwrap()
        };
        kept.insert(path.file_name().unwrap().to_string_lossy().into_owned(), what);
    }
    kept
}

#[test]
fn a_report_has_everything_and_is_not_measured_twice() {
    let directory = scratch();
    let out = directory.path().join("out");
    let words = [TWO_RECIPES.as_slice(), &SPEED, &["--rounds", "2"]].concat();
    let said = pareto(&out, &words).expect(0);
    let report = json(&out.join("pareto.json"));
    let points = report["points"].as_array().unwrap();
    let names: Vec<&str> = points.iter().map(|point| point["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny-shakespeare", "wide", "3 bits"]);
    assert!(points[0]["kld"].is_null() && points[0]["is_reference"] == true);
    let kld = |point: &Value| point["kld"]["mean"].as_f64().unwrap();
    assert!(kld(&points[1]) < kld(&points[2]));
    for point in points {
        let speed = &point["speed"][0];
        assert_eq!(speed["threads"], 1);
        assert_eq!(speed["decode_tok_s"]["by_run"].as_array().unwrap().len(), 2);
        assert!(speed["prefill_tok_s"]["median"].as_f64().unwrap() > 0.0);
        assert!(point["memory"]["anonymous_peak_bytes"].as_u64().unwrap() > 0);
    }
    assert_eq!(report["quality"]["text"], "heldout.txt");
    assert_eq!(points[1]["recipe"], "rtn q8 vectors=f32");

    // The table, the page and the report say the same.
    let page = fs::read_to_string(out.join("pareto.html")).unwrap();
    let bytes = points[1]["file_bytes"].as_u64().unwrap();
    let grouped = format!("{},{:03},{:03}", bytes / 1_000_000, bytes / 1000 % 1000, bytes % 1000);
    for text in [&said.stdout, &page] {
        assert!(text.contains(&grouped), "no {grouped} in {text}");
    }
    assert!(said.stdout.contains("| 3 bits "), "{}", said.stdout);
    // The files are as good as any.
    run(&["verify", str(&out.join("tiny-shakespeare/3-bits.grist"))]).expect(0);

    let before = kept(&out);
    assert_eq!(before.len(), 5, "{:?}", before.keys());
    let again = pareto(&out, &[words.as_slice(), &["--json"]].concat()).expect(0).json();
    assert_eq!(kept(&out), before, "nothing was done again");
    assert_eq!(again["points"], report["points"]);

    // More rounds are added to those that there are.
    let words = [TWO_RECIPES.as_slice(), &SPEED, &["--rounds", "3"]].concat();
    pareto(&out, &words).expect(0);
    let mut after = kept(&out);
    let (first, second) = (&before["speed.json"], after.insert("speed.json".into(), String::new()));
    let rounds = |text: &str| -> Vec<Value> {
        let state: Value = serde_json::from_str(text).unwrap();
        state["rounds"].as_array().unwrap().clone()
    };
    let (first, second) = (rounds(first), rounds(&second.unwrap()));
    assert_eq!((first.len(), second.len()), (2, 3));
    assert_eq!(first, second[..2]);
    let others = |mut kept: BTreeMap<String, String>| {
        kept.remove("speed.json");
        kept
    };
    assert_eq!(others(after), others(before));
}

#[test]
fn what_changed_is_done_again_and_nothing_else() {
    let directory = scratch();
    let out = directory.path().join("out");
    let changed = |more: &[&str]| {
        let before = kept(&out);
        pareto(&out, &[more, &["--no-bench"]].concat()).expect(0);
        let after = kept(&out);
        let differs = |name: &&String| before.get(*name) != after.get(*name);
        after.keys().filter(differs).cloned().collect::<Vec<_>>()
    };
    assert_eq!(changed(&TWO_RECIPES), ["3-bits.grist", "3-bits.json", "wide.grist", "wide.json"]);
    assert_eq!(changed(&TWO_RECIPES), [""; 0]);
    // Another protocol: the files stay.
    let protocol = [TWO_RECIPES.as_slice(), &["--protocol", "window"]].concat();
    assert_eq!(changed(&protocol), ["3-bits.json", "wide.json"]);
    // Another recipe under a name that is known.
    let recipe = ["--protocol", "window", "--recipe", "wide=--bits 6", "--recipe", "--bits 3"];
    assert_eq!(changed(&recipe), ["wide.grist", "wide.json"]);
    // A file that is not what was made.
    fs::copy(packed(), out.join("tiny-shakespeare/wide.grist")).unwrap();
    let quality = || json(&out.join("tiny-shakespeare/wide.json"))["quality"].clone();
    let before = quality();
    assert_eq!(changed(&recipe), ["wide.grist", "wide.json"]);
    assert_eq!(quality(), before, "the same file came out, and its quality was known");
    // A state that a crash of the system damaged.
    fs::write(out.join("tiny-shakespeare/3-bits.json"), "{").unwrap();
    assert_eq!(changed(&recipe), ["3-bits.grist", "3-bits.json"]);
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_where_it_was() {
    goes_on_after("-KILL", None);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    goes_on_after("-INT", Some(130));
}

/// Stops a run that has finished one file and is calibrating for another, and starts it again.
#[cfg(unix)]
fn goes_on_after(signal: &str, code: Option<i32>) {
    let directory = scratch();
    let out = directory.path().join("out");
    let (model, text) = (checkpoint(), checkpoint().join("heldout.txt"));
    let recipes =
        ["--recipe", "first=--bits 8", "--recipe", "second=--bits 4 --method gptq --tune 2"];
    let words = ["pareto", str(&model), "--out", str(&out), "--text", str(&text), "--no-bench"];
    let words = [words.as_slice(), &QUICK, &recipes].concat();
    let mut command = gristmill(&words);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Calibration is under way when its work directory is there.
    let work = out.join("tiny-shakespeare/second.grist.work");
    let deadline = Instant::now() + Duration::from_secs(300);
    while !work.join("identity").exists() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it ended early");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
    assert_eq!(child.wait().unwrap().code(), code);
    assert!(!out.join("pareto.json").exists());
    let first =
        |kept: BTreeMap<String, String>| [kept["first.grist"].clone(), kept["first.json"].clone()];
    let before = first(kept(&out));

    run(&words).expect(0);
    assert_eq!(first(kept(&out)), before, "the finished file was left alone");
    assert!(!work.exists());
    assert_eq!(json(&out.join("pareto.json"))["points"].as_array().unwrap().len(), 3);
}

#[test]
fn work_of_another_recipe_does_not_stand_in_the_way() {
    let directory = scratch();
    let out = directory.path().join("out");
    let work = out.join("tiny-shakespeare/a.grist.work");
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("identity"), "of another model").unwrap();
    pareto(&out, &["--no-bench", "--recipe", "a=--bits 3 --method gptq"]).expect(0);
    assert!(!work.exists());
}

#[test]
fn files_that_are_there_are_taken_and_models_have_names() {
    let directory = scratch();
    let out = directory.path().join("out");
    let (text, recipes) = (checkpoint().join("heldout.txt"), directory.path().join("recipes.json"));
    let entry = serde_json::json!([{"name": "given", "file": packed()}, {"args": ["--bits", "2"]}]);
    fs::write(&recipes, entry.to_string()).unwrap();
    let model = format!("Small={}", str(&checkpoint()));
    let words =
        ["pareto", &model, "--out", str(&out), "--text", str(&text), "--no-bench", "--json"];
    let more = ["--recipes", str(&recipes)];
    let report = run(&[words.as_slice(), &QUICK, &more].concat()).expect(0).json();
    assert_eq!(report["models"][0], "Small");
    assert_eq!(report["points"][1]["name"], "given");
    assert_eq!(report["points"][1]["file_bytes"], fs::metadata(packed()).unwrap().len());
    assert!(report["points"][1]["quantize_seconds"].is_null() && report["speed"].is_null());
    assert_eq!(report["points"][2]["name"], "2 bits");
    let names: Vec<PathBuf> =
        fs::read_dir(out.join("small")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!names.iter().any(|path| path.ends_with("given.grist")), "{names:?}");
}

#[test]
fn reports_are_written_anew_compared_and_put_into_documents() {
    let directory = scratch();
    let out = directory.path().join("out");
    let words = ["--no-bench", "--recipe", "--bits 4"];
    pareto(&out, &words).expect(0);
    let report = out.join("pareto.json");
    let other = directory.path().join("other.json");
    fs::copy(&report, &other).unwrap();

    let page = directory.path().join("page.md");
    fs::write(&page, "a\n<!-- pareto:begin -->\nold\n<!-- pareto:end -->\nb\n").unwrap();
    let peers = directory.path().join("peers.json");
    fs::write(
        &peers,
        r#"{"peers": [{"program": "peer", "type": "Q", "bytes": 5000000, "kld": 0.5}]}"#,
    )
    .unwrap();
    let words = ["pareto", "--out", str(&out), "--report-only"];
    let more = ["--peers", str(&peers), "--update", str(&page)];
    let said = run(&[words.as_slice(), &more].concat()).expect(0);
    let document = fs::read_to_string(&page).unwrap();
    assert!(document.starts_with("a\n<!-- pareto:begin -->\nPPL and KLD"), "{document}");
    assert!(document.ends_with("|\n<!-- pareto:end -->\nb\n"), "{document}");
    assert!(document.contains("| 4 bits ") && document.contains("| peer Q "), "{document}");
    assert_eq!(
        said.stdout.trim(),
        document.split("-->\n").nth(1).unwrap().split("\n<!--").next().unwrap()
    );
    assert!(fs::read_to_string(out.join("pareto.html")).unwrap().contains("peer"));

    run(&["pareto", "--compare", str(&report), str(&other)]).expect(0);
    let mut moved = json(&other);
    moved["points"][1]["kld"]["ci95"] = serde_json::json!([7.0, 8.0]);
    fs::write(&other, moved.to_string()).unwrap();
    let said = run(&["pareto", "--compare", str(&report), str(&other)]).expect(3);
    assert!(
        said.stdout.contains("NO |") && said.stdout.contains("check FAILED"),
        "{}",
        said.stdout
    );
}

#[test]
fn what_is_wrong_is_said_before_anything_is_measured() {
    let directory = scratch();
    let out = directory.path().join("out");
    let fails = |code: i32, more: &[&str], expected: &[&str]| {
        let said = pareto(&out, more).expect(code);
        for word in expected {
            assert!(said.stderr.contains(word), "no `{word}` in {}", said.stderr);
        }
        assert!(!out.join("tiny-shakespeare").exists(), "something was made");
    };
    fails(2, &["--recipe", "tiny=--bits x"], &["recipe `tiny`", "'x'", "hint: "]);
    fails(2, &["--recipe", "--bits 7"], &["recipe `7 bits`", "6 (q6)"]);
    fails(2, &["--recipe", "--bits 4 --codec nope=q8"], &["recipe `4 bits nope=q8`", "nope"]);
    fails(2, &["--recipe", "a=--bits 4", "--recipe", "A=--bits 3"], &["`a` and `A`"]);
    fails(1, &["--recipe", "a=file=missing.grist"], &["recipe `a`", "missing.grist"]);
    fails(
        1,
        &["--calib", "missing.txt", "--recipe", "--bpw 5"],
        &["recipe `5 bpw`", "missing.txt"],
    );
    let peers = directory.path().join("peers.json");
    fs::write(&peers, r#"{"peers": [{"program": "p", "type": "t", "bytes": "many"}]}"#).unwrap();
    fails(1, &["--peers", str(&peers)], &["peers.json", "peers[0].bytes", "EVAL.md"]);
    fails(1, &["--update", str(&peers)], &["pareto:begin", "hint: "]);

    // A place that cannot be written to.
    let said = pareto(&peers.join("out"), &["--recipe", "--bits 4"]).expect(1);
    assert!(
        said.stderr.contains("cannot create") && said.stderr.contains("out"),
        "{}",
        said.stderr
    );
    let said = run(&["pareto", "--out", str(&out), "--report-only"]).expect(1);
    assert!(
        said.stderr.contains("pareto.json") && said.stderr.contains("hint: "),
        "{}",
        said.stderr
    );
}
