//! `bench` beyond one row: depths and prompts, times to first token, several files, comparisons.

use std::fs;

use serde_json::{Value, json};

use crate::support::{checkpoint, packed, run, scratch, str};

/// Few tokens, no cold starts.
const BRIEF: [&str; 7] = ["--gen", "8", "--repeat", "1", "--cold", "0", "--json"];

fn bench(words: &[&str]) -> Value {
    run(&[&["bench"], words].concat()).expect(0).json()
}

#[test]
fn every_depth_meets_every_prompt_and_output_is_the_same_each_time() {
    let deep = [str(packed()), "--threads", "1,2", "--depth", "0,64", "--prompt", "16"];
    let deep = bench(&[deep.as_slice(), &BRIEF].concat());
    let places = |document: &Value| -> Vec<[u64; 3]> {
        let place =
            |row: &Value| ["threads", "depth", "prompt"].map(|key| row[key].as_u64().unwrap());
        document["rows"].as_array().unwrap().iter().map(place).collect()
    };
    assert_eq!(places(&deep), [[1, 0, 16], [1, 64, 16], [2, 0, 16], [2, 64, 16]]);
    // The first row's place, as documents of one row had it.
    assert_eq!((&deep["depth"], &deep["prompt"]), (&json!(0), &json!(16)));
    let rows = deep["rows"].as_array().unwrap();
    for (one, two) in rows[..2].iter().zip(&rows[2..]) {
        assert_eq!(one["output_blake3"], two["output_blake3"], "threads change no token");
        assert_eq!(one["repeats_agree"], true);
        assert_eq!(one["tpot_ms"]["samples"], 8);
        assert_eq!(one["tpot_ms"]["too_few_for_p95"], true);
        assert!(one["tpot_ms"]["p99"].is_null());
    }
    let kv_bytes = |row: &Value| row["kv_bytes_per_token"].as_u64().unwrap();
    assert!(kv_bytes(&rows[1]) > kv_bytes(&rows[0]));

    let long = [str(packed()), "--threads", "1", "--prompt", "16,32"];
    let long = bench(&[long.as_slice(), &BRIEF].concat());
    assert_eq!(places(&long), [[1, 0, 16], [1, 0, 32]]);
    assert_eq!(long["output_blake3"], deep["output_blake3"], "another run, the same tokens");
    assert_ne!(long["rows"][0]["output_blake3"], long["rows"][1]["output_blake3"]);
}

#[test]
fn energy_is_measured_or_explained_and_the_host_described() {
    let document = bench(&[&[str(packed()), "--prompt", "16"], &BRIEF[..]].concat());
    let measured = document["rows"][0]["joules_per_token"].as_f64();
    assert_eq!(measured.is_some(), document["energy"]["reason"].is_null(), "{document}");
    let memory = &document["memory"];
    let bytes = |field: &str| memory[field].as_u64().unwrap();
    assert!(bytes("must_have_bytes") >= bytes("anonymous_peak_bytes"));
    assert!(bytes("mapped_bytes") <= bytes("file_peak_bytes"));
    assert!(memory["major_faults"].is_u64());
    assert!(document["host"]["compiler"].as_str().unwrap().starts_with("rustc "));
    assert!(document["host"]["load_average_after"].is_array());
    assert!(
        document["activity"]["others_cores"].is_number()
            || document["seconds"].as_f64() < Some(1.0)
    );
}

#[test]
fn times_to_first_token_are_split_cold_and_warm() {
    let words = [str(packed()), "--prompt", "32", "--gen", "4", "--repeat", "2", "--cold", "2"];
    let document = bench(&[words.as_slice(), &["--json"]].concat());
    let ttft = &document["ttft"];
    assert!((20..=32).contains(&ttft["prompt_tokens"].as_u64().unwrap()), "{ttft}");
    for kind in ["warm", "cold"] {
        for part in ["tokenize_ms", "prefill_ms", "sample_ms", "detokenize_ms"] {
            assert!(ttft[kind][part].as_f64().unwrap() > 0.0, "{kind}.{part}: {ttft}");
        }
        assert_eq!(ttft[kind]["ttft_ms"]["samples"], 2);
    }
    let cold = &ttft["cold"];
    let number = |part: &str| cold[part].as_f64().unwrap();
    let p95 = cold["ttft_ms"]["p95"].as_f64().unwrap();
    for part in ["process_ms", "load_ms", "tokenizer_ms", "engine_ms", "prefill_ms"] {
        assert!(number(part) > 0.0 && number(part) < p95, "{part}: {ttft}");
    }
    assert!(ttft["warm"]["process_ms"].is_null());
    // Where the file cannot be dropped from the cache, that is said.
    assert_eq!(ttft["uncached"].is_null(), !ttft["reasons"].as_array().unwrap().is_empty());

    let said =
        run(&["bench", str(packed()), "--prompt", "32", "--gen", "4", "--repeat", "1"]).expect(0);
    assert!(said.stdout.contains("| TTFT ms, "), "{}", said.stdout);
    let wide = said.stdout.lines().find(|line| line.chars().count() > 120);
    assert_eq!(wide, None);
}

#[test]
fn a_model_without_a_tokenizer_is_measured_from_tokens() {
    let directory = scratch();
    let model = directory.path().join("mute");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(checkpoint().join(name), model.join(name)).unwrap();
    }
    let words =
        [str(&model), "--prompt", "16", "--gen", "4", "--repeat", "1", "--cold", "1", "--json"];
    let document = bench(&words);
    let ttft = &document["ttft"];
    for kind in ["warm", "cold"] {
        assert!(ttft[kind]["tokenize_ms"].is_null() && ttft[kind]["detokenize_ms"].is_null());
        assert!(ttft[kind]["ttft_ms"]["p50"].as_f64().unwrap() > 0.0);
    }
    assert!(ttft["reasons"][0].as_str().unwrap().contains("no tokenizer"), "{ttft}");
}

#[test]
fn several_files_take_turns_and_are_compared_with_the_first() {
    let directory = scratch();
    let other = directory.path().join("q8.grist");
    run(&["quantize", str(&checkpoint()), "-o", str(&other), "--bits", "8"]).expect(0);
    let words = [str(packed()), str(&other), "--rounds", "2", "--prompt", "16", "--gen", "8"];
    let words = [words.as_slice(), &["--repeat", "1", "--threads", "1", "--json"]].concat();
    let document = bench(&words);
    let files = document["files"].as_array().unwrap();
    assert_eq!((files.len(), &document["rounds"]), (2, &json!(2)));
    let first = &files[0]["rows"][0];
    assert!(first["decode_ratio"].is_null() && first["decode_verdict"].is_null());
    for file in files {
        let reports = file["reports"].as_array().unwrap();
        assert_eq!(reports.len(), 2);
        assert_eq!(reports[0]["output_blake3"], reports[1]["output_blake3"]);
        assert_eq!(file["rows"][0]["decode_tok_s"]["by_run"].as_array().unwrap().len(), 2);
    }
    let second = &files[1]["rows"][0];
    assert_eq!(second["decode_ratio"]["by_run"].as_array().unwrap().len(), 2);
    assert!(second["decode_ratio"]["ci95"].is_null(), "two rounds have no interval");
    let quiet = document["comparable"].as_bool().unwrap();
    assert_eq!(quiet, document["disturbances"].as_array().unwrap().is_empty());
    let verdict = if quiet { "not_distinguishable" } else { "not_comparable" };
    assert_eq!(second["decode_verdict"], verdict);
    assert_eq!(files[1]["reports"][0]["codecs"], json!(["q8"]));

    let missing = directory.path().join("missing.grist");
    let said = run(&["bench", str(packed()), str(&missing), "--rounds", "1"]).expect(1);
    assert!(said.stderr.contains("missing.grist"), "{}", said.stderr);
}

#[test]
fn a_comparison_says_what_differs_and_can_fail() {
    let directory = scratch();
    let earlier = directory.path().join("earlier.json");
    let words = [str(packed()), "--prompt", "16", "--threads", "1"];
    let words = [&["bench"], words.as_slice(), &BRIEF[..]].concat();
    let mut document = run(&words).expect(0).json();
    let compare = |document: &Value, more: &[&str]| {
        fs::write(&earlier, document.to_string()).unwrap();
        run(&[words.as_slice(), &["--compare", str(&earlier)], more].concat())
    };
    let found = compare(&document, &[]).expect(0).json();
    let rows = found["comparison"]["rows"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| &row["figure"]).collect::<Vec<_>>(),
        ["decode_tok_s", "prefill_tok_s"]
    );
    assert!(rows[0]["ratio"].as_f64().unwrap() > 0.0);
    assert!(found["comparison"]["passed"].is_null());

    let said = compare(&document, &["--max-slowdown", "90"]);
    let passed = said.json()["comparison"]["passed"].as_bool().unwrap();
    let quiet = said.json()["comparison"]["reasons"].as_array().unwrap().is_empty();
    assert_eq!((passed, said.code), (quiet, Some(if quiet { 0 } else { 3 })));

    document["kv"] = json!("int8");
    let failed = compare(&document, &["--max-slowdown", "90"]).expect(3).json();
    assert_eq!(failed["comparison"]["rows"][0]["verdict"], "not_comparable");
    let reasons = failed["comparison"]["reasons"].to_string();
    assert!(reasons.contains("another type of cache: f16, earlier int8"), "{reasons}");

    let said = compare(&json!({"schema_version": 1}), &[]).expect(1);
    assert!(said.stderr.contains("earlier.json is no report of a benchmark"), "{}", said.stderr);
    run(&["bench", str(packed()), "--max-slowdown", "5"]).expect(2);
}
