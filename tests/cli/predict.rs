//! `predict`: on this machine, and for devices of the table.

use std::fs;

use serde_json::Value;

use crate::support::{checkpoint, gristmill, packed, run, scratch, str};

#[test]
fn devices_are_listed_and_predicted_for() {
    let devices = run(&["predict", "--json"]).expect(0).json();
    let devices = devices["devices"].as_array().unwrap();
    assert!(devices.iter().all(|d| !d["sources"].as_array().unwrap().is_empty()));

    let words = ["predict", str(packed()), "--device", "pi5", "--json"];
    let found = run(&words).expect(0).json();
    let row = &found["rows"][0];
    assert!(row["decode_tok_s"]["low"].as_f64() < row["decode_tok_s"]["mid"].as_f64());
    assert_eq!(found["origin"]["kind"], "table");
    assert_eq!(row["threads"], 2);

    let unknown = run(&["predict", str(packed()), "--device", "abacus"]).expect(2);
    assert!(unknown.stderr.contains("pi5"), "{}", unknown.stderr);
    let threads = run(&["predict", str(packed()), "--device", "pi5", "--threads", "3"]).expect(2);
    assert!(threads.stderr.contains("2 threads only"), "{}", threads.stderr);
}

#[test]
fn a_description_alone_is_predicted_with_a_codec() {
    let directory = scratch();
    let config = directory.path().join("config.json");
    fs::copy(checkpoint().join("config.json"), &config).unwrap();
    fn words(model: &str) -> [&str; 5] {
        ["predict", model, "--device", "pi5", "--json"]
    }
    let none = run(&words(str(&config))).expect(1);
    assert!(none.stderr.contains("--bits"), "{}", none.stderr);

    let bytes = |bits: &str, model: &str| {
        let words = [&words(model)[..], &["--bits", bits]].concat();
        let row: Value = run(&words).expect(0).json()["rows"][0].clone();
        row["bytes_per_token"].as_u64().unwrap()
    };
    let alone = bytes("4", str(&config));
    assert!(bytes("2", str(&config)) < alone);
    // The same as for the checkpoint at that codec, by its description's file or directory.
    assert_eq!(bytes("4", str(directory.path())), alone);
    assert_eq!(bytes("4", str(&checkpoint())), alone);

    fs::write(&config, "{").unwrap();
    let broken = [&words(str(&config))[..], &["--bits", "4"]].concat();
    assert!(run(&broken).expect(1).stderr.contains("config.json"));
}

#[test]
fn what_does_not_fit_is_said_with_what_would() {
    let directory = scratch();
    let config = directory.path().join("config.json");
    let text = fs::read_to_string(checkpoint().join("config.json")).unwrap();
    let mut spec: Value = serde_json::from_str(&text).unwrap();
    spec["max_position_embeddings"] = 1_000_000.into();
    fs::write(&config, spec.to_string()).unwrap();
    let words = ["predict", str(&config), "--bits", "4", "--device", "pi-zero-2w"];
    let found = run(&[&words[..], &["--ctx", "1000000"]].concat()).expect(3);
    assert!(found.stdout.contains("does NOT fit") && found.stdout.contains("--kv int4"));
}

#[test]
fn this_machine_is_probed_once_and_benchmarks_are_scored() {
    let directory = scratch();
    let run = |words: &[&str]| {
        let mut command = gristmill(words);
        command.env("GRISTMILL_CACHE", directory.path());
        crate::support::Said::from(command.output().expect("the program starts"))
    };
    let bench = ["bench", str(packed()), "--threads", "1", "--prompt", "32", "--gen", "8"];
    let bench = [&bench[..], &["--repeat", "1", "--json"]].concat();
    let unknown = run(&bench).expect(0).json();
    assert!(unknown["prediction"].is_null());

    let words = ["predict", str(packed()), "--threads", "1", "--prompt", "32", "--gen", "8"];
    let first = run(&[&words[..], &["--json"]].concat()).expect(0).json();
    assert!(first["rows"][0]["decode_tok_s"]["mid"].as_f64().unwrap() > 0.0);
    let machine = directory.path().join("machine.json");
    let kept = fs::read_to_string(&machine).unwrap();
    let second = run(&[&words[..], &["--json"]].concat()).expect(0).json();
    assert_eq!(first["rows"], second["rows"]);
    assert_eq!(fs::read_to_string(&machine).unwrap(), kept);

    let scored = run(&bench).expect(0).json();
    let error = &scored["prediction"][0];
    let predicted = error["predicted_decode_tok_s"].as_f64().unwrap();
    let measured = scored["rows"][0]["decode_tok_s"].as_f64().unwrap();
    assert!((error["decode_error"].as_f64().unwrap() - (predicted / measured - 1.0)).abs() < 1e-9);

    // What is not ours is not believed.
    fs::write(&machine, "{}").unwrap();
    assert!(run(&bench).expect(0).json()["prediction"].is_null());
}
