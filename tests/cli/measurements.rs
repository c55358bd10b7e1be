//! `eval`, `bench` and `hwbench`: fields that scripts depend on, and limits as exit codes.

use std::fs;

use gristmill_runtime::Isa;
use serde_json::Value;

use crate::support::{checkpoint, packed, run, scratch, str};

/// The value at `a.b.c`.
#[track_caller]
fn number(document: &Value, path: &str) -> f64 {
    let value = path.split('.').fold(document, |value, key| &value[key]);
    value.as_f64().unwrap_or_else(|| panic!("{path} is {value}"))
}

#[test]
fn eval_has_its_fields_and_keeps_to_limits() {
    let text = checkpoint().join("heldout.txt");
    let words = ["eval", str(packed()), "--text", str(&text), "--windows", "3", "--ctx", "128"];
    let alone = run(&[words.as_slice(), &["--json"]].concat()).expect(0).json();
    assert!(number(&alone, "ppl.value") > 1.0 && number(&alone, "ppl.stderr") > 0.0);
    assert!(alone["kld"].is_null());
    assert_eq!(alone["windows"], 3);
    assert_eq!(alone["protocol"], "chunk");

    let model = checkpoint();
    let words = [words.as_slice(), &["--reference", str(&model)]].concat();
    let limits = ["--max-ppl", "1000", "--max-kld", "10", "--json"];
    let document = run(&[words.as_slice(), &limits].concat()).expect(0).json();
    for field in ["kld.mean", "kld.p999", "same_top1", "file_bytes", "bits_per_weight", "ppl.value"]
    {
        assert!(number(&document, field) > 0.0, "{field}");
    }
    assert_eq!(document["kld"]["ci95"].as_array().unwrap().len(), 2);
    assert_eq!(document["checks"].as_array().unwrap().len(), 2);
    assert_eq!(number(&document, "ppl.value"), number(&alone, "ppl.value"));

    let failed =
        run(&[words.as_slice(), &["--max-kld", "1e-9", "--json"]].concat()).expect(3).json();
    assert_eq!(failed["checks"][0]["passed"], false);
    let failed = run(&[words.as_slice(), &["--max-ppl", "1"]].concat()).expect(3);
    assert!(failed.stdout.contains("FAILED"), "{}", failed.stdout);
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let text = checkpoint().join("heldout.txt");
    let document = run(&[
        "eval",
        str(packed()),
        "--text",
        str(&text),
        "--windows",
        "2",
        "--protocol",
        "window",
        "--reference",
        str(packed()),
        "--max-kld",
        "0",
        "--json",
    ])
    .expect(0)
    .json();
    assert_eq!(number(&document, "kld.max"), 0.0);
    assert_eq!(number(&document, "same_top1"), 1.0);
    // The protocol's window of 2048 is cut to what the model takes.
    assert_eq!(document["ctx"], 512);
}

#[test]
fn texts_are_read_as_they_are() {
    let directory = scratch();
    let heldout = fs::read_to_string(checkpoint().join("heldout.txt")).unwrap();
    let path = directory.path().join("text.txt");
    let tokens = |text: &str| {
        fs::write(&path, text).unwrap();
        let words = ["eval", str(packed()), "--text", str(&path), "--windows", "1", "--json"];
        number(&run(&words).expect(0).json(), "text_tokens")
    };
    let unix = &heldout[..8000];
    assert!(tokens(&unix.replace('\n', "\r\n")) > tokens(unix));

    fs::write(&path, b"caf\xe9").unwrap();
    let said = run(&["eval", str(packed()), "--text", str(&path)]).expect(1);
    assert!(said.stderr.contains("not UTF-8 at byte 3"), "{}", said.stderr);
    fs::write(&path, "too short").unwrap();
    let said = run(&["eval", str(packed()), "--text", str(&path)]).expect(1);
    assert!(said.stderr.contains("--ctx"), "{}", said.stderr);
}

#[test]
fn bench_has_its_fields() {
    let words = ["--threads", "1,2", "--prompt", "32", "--gen", "8", "--repeat", "1", "--json"];
    let document = run(&[["bench", str(packed())].as_slice(), &words].concat()).expect(0).json();
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| &row["threads"]).collect::<Vec<_>>(), [1, 2]);
    for row in rows {
        for field in [
            "decode_tok_s",
            "prefill_tok_s",
            "ttft_ms.p50",
            "tpot_ms.p50",
            "tpot_ms.p95",
            "bytes_per_token",
            "achieved_gb_s",
            "bandwidth_gb_s",
            "share_of_bandwidth",
        ] {
            assert!(number(row, field) > 0.0, "{field}");
        }
    }
    for field in ["load_ms", "memory.anonymous_peak_bytes", "memory.file_peak_bytes"] {
        assert!(number(&document, field) > 0.0, "{field}");
    }
    assert!(document["isa"].is_string());
    assert_eq!(document["kernels"][0]["codec"], "q4");
}

#[test]
fn bench_counts_what_a_two_stage_head_reads() {
    let bytes = |head: &str| {
        let words = ["--threads", "2", "--prompt", "16", "--gen", "16", "--repeat", "1", "--json"];
        let model = checkpoint();
        let words = [["bench", str(&model), "--head", head].as_slice(), &words].concat();
        let document = run(&words).expect(0).json();
        let row = document["rows"][0].clone();
        (number(&row, "weight_bytes_per_token"), row["fine_head_share"].as_f64(), document)
    };
    let (full, none, document) = bytes("full");
    assert!(none.is_none() && document["coarse_head_bytes"].is_null());
    let (staged, share, document) = bytes("two-stage");
    let share = share.expect("a share");
    assert!(share > 0.0 && share < 0.5, "{share}");
    // 6.25 bits a weight and a radius for each row, beside 16 bits.
    let coarse = number(&document, "coarse_head_bytes");
    let head = (full - staged + coarse) / (1.0 - share);
    assert!(coarse > 0.39 * head && coarse < 0.5 * head, "{coarse} of {head}");
    assert!(number(&document, "coarse_head_ms") > 0.0);
    let kernels = document["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|kernel| kernel["codec"] == "q6"), "{kernels:?}");
}

#[test]
fn the_usual_benchmark_fits_a_small_model() {
    let said = run(&["bench", str(packed()), "--gen", "4", "--repeat", "1"]).expect(0);
    assert!(said.stderr.contains("a prompt of 508"), "{}", said.stderr);
    let words = ["bench", str(packed()), "--gen", "4", "--prompt", "512"];
    assert!(run(&words).expect(1).stderr.contains("512"));
}

#[test]
fn hwbench_has_its_fields_and_updates_a_page() {
    let directory = scratch();
    let page = directory.path().join("page.md");
    fs::write(
        &page,
        "before\n<!-- hwbench:begin -->\nstale figures\n<!-- hwbench:end -->\nafter\n",
    )
    .unwrap();
    let words = ["hwbench", "--quick", "--isa", "scalar", "--threads", "1,1", "--json"];
    let said = run(&[words.as_slice(), &["--update", str(&page)]].concat()).expect(0);
    let document = said.json();
    assert_eq!(document["schema_version"], 1);
    assert_eq!(document["checked"], false);
    assert!(number(&document, "host.cores") >= 1.0);
    for row in document["rows"].as_array().unwrap() {
        assert_eq!((&row["isa"], &row["threads"]), (&"scalar".into(), &1.into()));
        assert!(number(row, "rate") > 0.0, "{row}");
        assert!(["GB/s", "GMAC/s"].contains(&row["unit"].as_str().unwrap()), "{row}");
    }
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("before\n<!-- hwbench:begin -->\n"), "{text}");
    assert!(text.ends_with("|\n<!-- hwbench:end -->\nafter\n"), "{text}");
    assert!(text.contains("| q4, memory") && !text.contains("stale figures"), "{text}");
}

#[test]
fn hwbench_measures_what_is_asked_for_alone() {
    let isa = Isa::detect().name();
    let words = ["hwbench", "--quick", "--isa", isa, "--threads", "1", "--json"];
    let asked = ["--family", "small-m,attention", "--of", "q3,f16,silu-mul"];
    let document = run(&[words.as_slice(), &asked].concat()).expect(0).json();
    let rows = document["rows"].as_array().unwrap();
    let names = |key: &str| {
        let names = rows.iter().map(|row| row[key].as_str().unwrap().to_string());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    // A few tokens are compared with one; f16 is a codec and a cache type.
    assert_eq!(names("family"), ["attention", "gemv", "small-m"]);
    assert_eq!(names("subject"), ["f16", "q3"]);
    for row in rows.iter().filter(|row| row["family"] == "small-m") {
        assert!(number(row, "cost") > 0.0, "{row}");
    }
    let nothing = ["--family", "gemm", "--of", "int8"];
    let said = run(&[words.as_slice(), &nothing].concat()).expect(2);
    assert!(said.stderr.contains("no kernel of these families"), "{}", said.stderr);
}

#[test]
fn hwbench_refuses_a_check_that_compares_nothing() {
    if Isa::available().count() > 1 {
        let said = run(&["hwbench", "--quick", "--assert", "--isa", "scalar"]).expect(2);
        assert!(said.stderr.contains(Isa::detect().name()), "{}", said.stderr);
        assert!(said.stderr.contains("hint: "), "{}", said.stderr);
    }
}

#[test]
fn a_cache_chosen_by_measurement_is_reported_with_its_figures() {
    let greedy =
        ["run", str(packed()), "-p", "ROMEO:", "-n", "4", "--temp", "0", "--raw", "--json"];
    let said = run(&[greedy.as_slice(), &["--kv", "auto"]].concat()).expect(0);
    let document = said.json();
    let choice = &document["kv_choice"];
    assert_eq!(document["kv"], choice["kv"]);
    let measured = choice["measured"].as_array().unwrap();
    assert_eq!(measured[0]["kv"], "int4");
    assert!(measured[0]["kld"].as_f64().unwrap() > 0.0);
    let chosen = document["kv"].as_str().unwrap();
    assert!(said.stderr.contains(&format!("KV {chosen}: divergence from f16")), "{}", said.stderr);
    let named = run(&[greedy.as_slice(), &["--kv", chosen]].concat()).expect(0).json();
    assert!(named["kv_choice"].is_null());
    assert_eq!(named["ids"], document["ids"], "the type is what it says");
}
