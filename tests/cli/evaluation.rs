//! `eval`: questions, depth and path, earlier reports, and the figures that packed files carry.

use std::fs;
use std::path::{Path, PathBuf};

use gristmill_formats::container::{PackedFile, QualityReport, rewrite_header};
use serde_json::{Value, json};

use crate::support::{checkpoint, packed, run, scratch, str};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/choices").join(name)
}

fn heldout() -> PathBuf {
    checkpoint().join("heldout.txt")
}

/// Log-likelihoods of each question's answers.
fn scores(document: &Value) -> Vec<Vec<f64>> {
    let questions = document["per_question"].as_array().unwrap().iter();
    let numbers = |ll: &Value| ll.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    questions.map(|question| numbers(&question["ll"])).collect()
}

#[test]
fn answers_have_the_likelihoods_that_transformers_finds() {
    let (model, questions) = (checkpoint(), fixture("questions.jsonl"));
    let words = ["eval", str(&model), "--choices", str(&questions), "--kv", "f32", "--json"];
    let ours = run(&words).expect(0).json();
    let golden: Value = serde_json::from_slice(&fs::read(fixture("golden.json")).unwrap()).unwrap();
    let (found, expected) = (scores(&ours), scores(&golden));
    assert_eq!(found.len(), 14);
    for (line, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-3, "question {line}: {found:?} {expected:?}");
        }
        let picks = |document: &Value| {
            let picks = document["per_question"][line]["picks"].as_array().unwrap().clone();
            picks[..2].to_vec()
        };
        assert_eq!(picks(&ours), picks(&golden));
    }
    for name in ["acc", "acc_norm"] {
        for member in ["value", "stderr"] {
            let [a, b] = [&ours, &golden].map(|d| d[name][member].as_f64().unwrap());
            assert!((a - b).abs() < 1e-12, "{name}.{member}: {a} {b}");
        }
        assert_eq!(ours[name]["ci95"].as_array().unwrap().len(), 2);
    }
    assert_eq!((&ours["questions"], &ours["truncated"]), (&json!(14), &json!(0)));
    for field in ["file_bytes", "bits_per_weight", "fingerprint", "host", "isa", "choices_blake3"] {
        assert!(!ours[field].is_null(), "{field}");
    }
}

#[test]
fn going_back_to_the_context_changes_no_answer() {
    let directory = scratch();
    let path = directory.path().join("reversed.jsonl");
    let lines = fs::read_to_string(fixture("questions.jsonl")).unwrap();
    let reversed: String = lines
        .lines()
        .map(|line| {
            let mut question: Value = serde_json::from_str(line).unwrap();
            question["choices"].as_array_mut().unwrap().reverse();
            question["gold"] = json!(0);
            format!("{question}\n")
        })
        .collect();
    fs::write(&path, reversed).unwrap();
    // The first answer follows the context itself, the others a rewound one.
    for kv in ["f16", "int8", "int4"] {
        let ask = |path: &Path| {
            let words = ["eval", str(packed()), "--choices", str(path), "--kv", kv, "--json"];
            scores(&run(&words).expect(0).json())
        };
        let mut turned = ask(&path);
        turned.iter_mut().for_each(|ll| ll.reverse());
        assert_eq!(turned, ask(&fixture("questions.jsonl")), "{kv}");
    }
}

#[test]
fn answers_are_compared_with_a_reference() {
    let questions = fixture("questions.jsonl");
    let model = checkpoint();
    let words = ["eval", str(packed()), "--choices", str(&questions), "--reference"];
    let document = run(&[words.as_slice(), &[str(&model), "--json"]].concat()).expect(0).json();
    let (own, reference) =
        (&document["acc_norm"]["value"], &document["reference"]["acc_norm"]["value"]);
    let difference = &document["agreement"]["acc_norm_difference"];
    let [own, reference, found] =
        [own, reference, &difference["value"]].map(|x| x.as_f64().unwrap());
    assert!((own - reference - found).abs() < 1e-12);
    assert_eq!(difference["ci95"].as_array().unwrap().len(), 2);
    assert!(document["reference"]["file_bytes"].as_u64() > document["file_bytes"].as_u64());
    let said = run(&[words.as_slice(), &[str(packed())]].concat()).expect(0);
    assert!(
        said.stdout.contains("| same answer, by acc_norm      | 100.00 % |"),
        "{}",
        said.stdout
    );
}

#[test]
fn questions_that_cannot_be_asked_are_named_by_line() {
    let directory = scratch();
    let path = directory.path().join("q.jsonl");
    let good = r#"{"query":"ROMEO:","choices":["But soft!","a"],"gold":0}"#;
    let ask = |text: &str| {
        fs::write(&path, text).unwrap();
        run(&["eval", str(packed()), "--choices", str(&path), "--json"])
    };
    let said = ask(&format!("{good}\n{{\"query\": \"q\", ]\n")).expect(1);
    assert!(said.stderr.contains("q.jsonl: line 2: not JSON at byte 16"), "{}", said.stderr);
    assert!(said.stderr.contains("hint: one JSON object a line"), "{}", said.stderr);
    let long = json!({"query": "", "choices": ["a", "sweet ".repeat(600)], "gold": 0});
    let said = ask(&format!("{good}\n\n{long}\n")).expect(1);
    assert!(said.stderr.contains("line 3: answer 1 has"), "{}", said.stderr);
    ask("").expect(1);

    // A context that is too long loses its beginning, with an answer as long as it may be left whole.
    let query = "But, soft! what light through yonder window breaks? ".repeat(80);
    let long = json!({"query": query, "choices": ["It is the east, and Juliet is the sun.", "No"], "gold": 0});
    let document = ask(&format!("{good}\n{long}\n")).expect(0).json();
    assert_eq!((&document["truncated"], &document["questions"]), (&json!(1), &json!(2)));
    // Both answers see the end of the same context: the same as when just that much is asked.
    assert!(scores(&document)[1].iter().all(|ll| ll.is_finite() && *ll < 0.0));

    for words in [["--windows", "2"], ["--text", "t"], ["--max-ppl", "3"]] {
        run(&[["eval", "m", "--choices", "q"].as_slice(), &words].concat()).expect(2);
    }
}

#[test]
fn depth_and_path_are_in_the_report() {
    let text = heldout();
    let words = ["eval", str(packed()), "--text", str(&text), "--ctx", "64", "--windows", "3"];
    let evaluate = |rest: &[&str]| run(&[words.as_slice(), rest].concat());
    let deep = ["--depth", "100", "--kv", "int4"];
    let prefill = evaluate(&[deep.as_slice(), &["--json"]].concat()).expect(0).json();
    assert_eq!((&prefill["depth"], &prefill["first_window"]), (&json!(100), &json!(2)));
    assert_eq!(prefill["by_position"][0]["from"], 132);
    let decode = evaluate(&[deep.as_slice(), &["--path", "decode", "--json"]].concat());
    let decode = decode.expect(0).json();
    assert_eq!((&prefill["path"], &decode["path"]), (&json!("prefill"), &json!("decode")));
    assert_eq!(prefill["per_window"], decode["per_window"], "the same bits");
    let shown = evaluate(&["--depth", "100", "--path", "decode"]).expect(0).stdout;
    assert!(shown.contains("3 windows of 64 after 100 tokens, token by token"), "{shown}");
    let said = evaluate(&["--depth", "512"]).expect(2);
    assert!(said.stderr.contains("the model's context is 512"), "{}", said.stderr);
    let said = evaluate(&["--depth", "500"]).expect(1);
    assert!(said.stderr.contains("512"), "{}", said.stderr);
}

#[test]
fn an_earlier_report_is_a_partner_for_pairs() {
    let directory = scratch();
    let (text, model) = (heldout(), checkpoint());
    let earlier = directory.path().join("earlier.json");
    let words =
        ["--text", str(&text), "--ctx", "64", "--windows", "12", "--reference", str(&model)];
    let evaluate = |model: &Path, rest: &[&str]| {
        run(&[["eval", str(model)].as_slice(), &words, rest].concat())
    };
    let said = evaluate(packed(), &["--json"]).expect(0);
    fs::write(&earlier, &said.stdout).unwrap();
    let times = said.json()["ppl_ratio"]["times_tighter"].as_f64().unwrap();
    assert!(times > 5.0, "pairs make the interval {times} times tighter");
    // The checkpoint against itself is better than its rounding.
    let against = ["--against", str(&earlier)];
    let document = evaluate(&model, &[against.as_slice(), &["--json"]].concat()).expect(0).json();
    let comparison = &document["against"];
    assert_eq!(comparison["kld"]["verdict"], "better");
    let [value, other] = [&comparison["kld"]["value"], &said.json()["kld"]["mean"]];
    assert!((value.as_f64().unwrap() + other.as_f64().unwrap()).abs() < 1e-12);
    assert_eq!(comparison["fingerprint"], said.json()["fingerprint"]);
    let shown = evaluate(packed(), &against).expect(0).stdout;
    assert!(shown.contains("not distinguishable"), "{shown}");

    let other = ["eval", str(packed()), "--text", str(&text), "--ctx", "64", "--windows", "11"];
    let said = run(&[other.as_slice(), &against].concat()).expect(1);
    assert!(said.stderr.contains("is of --windows 12: "), "{}", said.stderr);
    fs::write(&earlier, "{}").unwrap();
    let said = evaluate(packed(), &against).expect(1);
    assert!(said.stderr.contains("earlier.json: not a report"), "{}", said.stderr);
}

#[test]
fn figures_in_a_file_are_measured_again() {
    let directory = scratch();
    let (file, text) = (directory.path().join("m.grist"), directory.path().join("text.txt"));
    let whole = fs::read_to_string(heldout()).unwrap();
    fs::write(&text, &whole[..8000]).unwrap();
    let model = checkpoint();
    let words = ["quantize", str(&model), "-o", str(&file), "--measure", str(&text), "--json"];
    let made = run(&words).expect(0).json();
    let stored = run(&["inspect", str(&file), "--json"]).expect(0).json()["quality"].clone();
    assert_eq!(stored["ppl_ci95"], made["quality"]["ppl"]["ci95"]);
    assert_eq!(stored["kld_p999"], made["quality"]["kld"]["p999"]);
    assert_eq!(stored["reference"], made["quality"]["reference"]["fingerprint"]);
    let shown = run(&["inspect", str(&file)]).expect(0).stdout;
    for part in ["RMS Δp", "p99.9", "KV f16, by gristmill", "text BLAKE3"] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }

    let again = |rest: &[&str]| {
        run(&[["eval", str(&file), "--against-embedded"].as_slice(), rest].concat())
    };
    let document =
        again(&["--text", str(&text), "--reference", str(&model), "--json"]).expect(0).json();
    assert_eq!(document["drift"]["ppl"]["drift"], 0.0);
    assert_eq!(document["drift"]["kld"]["drift"], 0.0);
    assert_eq!(document["checks"].as_array().unwrap().len(), 2);

    // Another text, none where the measured one is not built in, another reference.
    let heldout = heldout();
    let said = again(&["--text", str(&heldout)]).expect(1);
    assert!(said.stderr.contains("not the text that the file was measured on"), "{}", said.stderr);
    let said = again(&[]).expect(1);
    assert!(said.stderr.contains(stored["text_blake3"].as_str().unwrap()), "{}", said.stderr);
    let said = again(&["--text", str(&text), "--reference", str(&file)]).expect(1);
    assert!(said.stderr.contains("another model"), "{}", said.stderr);
    again(&["--text", str(&text), "--kv", "int8"]).expect(2);
    run(&["eval", str(&model), "--against-embedded", "--text", str(&text)]).expect(1);
    let said = run(&["eval", str(packed()), "--against-embedded", "--text", str(&text)]).expect(1);
    assert!(said.stderr.contains("--measure"), "{}", said.stderr);

    // Files of before there were details say what they need.
    let change = |change: fn(&mut QualityReport)| {
        let mut header = PackedFile::open(&file).unwrap().header().clone();
        change(header.quality.as_mut().unwrap());
        rewrite_header(&file, &header).unwrap();
    };
    change(|q| {
        let kept = std::mem::take(q);
        *q = QualityReport {
            ppl_ci95: None,
            kld_p99: None,
            kld_p999: None,
            delta_p_rms: None,
            tokens: None,
            kv: None,
            reference: None,
            measured_by: None,
            ..kept
        };
    });
    let said = again(&["--text", str(&text)]).expect(0);
    assert!(said.stdout.contains("by an earlier version"), "{}", said.stdout);
    // Figures that are not those of the file.
    change(|q| q.ppl = q.ppl.map(|ppl| ppl * 1.001));
    let document = again(&["--text", str(&text), "--json"]).expect(3).json();
    assert_eq!(document["checks"][0]["name"], "ppl_drift");
    assert_eq!(document["checks"][0]["passed"], false);
    again(&["--text", str(&text), "--max-drift", "0.01"]).expect(0);
}
