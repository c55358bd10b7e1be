//! `quantize` and `inspect`.

use std::fs;

use serde_json::Value;

use crate::support::{checkpoint, gristmill, packed, run, scratch, str};

#[test]
fn the_file_does_not_depend_on_the_threads() {
    let directory = scratch();
    let files = ["1", "2", "3"].map(|threads| {
        let path = directory.path().join(format!("{threads}.grist"));
        let model = checkpoint();
        run(&["quantize", str(&model), "-o", str(&path), "--threads", threads]).expect(0);
        fs::read(path).unwrap()
    });
    assert_eq!(files[0], files[1]);
    assert_eq!(files[0], files[2]);
    assert_eq!(files[0], fs::read(packed()).unwrap());
}

#[test]
fn the_report_says_what_was_made() {
    let directory = scratch();
    let (output, report) = (directory.path().join("m.grist"), directory.path().join("r.json"));
    let said = run(&[
        "quantize",
        str(&checkpoint()),
        "-o",
        str(&output),
        "--bits",
        "8",
        "--codec",
        "^embed$=bf16",
        "--codec",
        "mlp.*(up|down)$=q4",
        "--report",
        str(&report),
        "--json",
    ])
    .expect(0);
    let made = said.json();
    let written: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(made, written);
    assert_eq!(made["schema_version"], 1);
    assert_eq!(made["file_bytes"], fs::metadata(&output).unwrap().len());
    let bits = made["file_bytes"].as_f64().unwrap() * 8.0 / made["parameters"].as_f64().unwrap();
    assert_eq!(made["bits_per_weight"].as_f64().unwrap(), bits);
    assert!(made["quality"].is_null());
    let codec = |name: &str| {
        let tensors = made["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap()["codec"].clone()
    };
    assert_eq!(codec("embed"), "bf16");
    assert_eq!(codec("layers.2.attn.k"), "q8");
    assert_eq!(codec("layers.2.mlp.up"), "q4");
    assert_eq!(codec("final_norm"), "f32");
}

#[test]
fn a_dry_run_is_right_about_the_size_and_writes_nothing() {
    let directory = scratch();
    let output = directory.path().join("m.grist");
    let model = checkpoint();
    let said = run(&["quantize", str(&model), "-o", str(&output), "--dry-run", "--json"]).expect(0);
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    let planned = said.json()["file_bytes"].as_f64().unwrap();
    let real = fs::metadata(packed()).unwrap().len() as f64;
    assert!((planned / real - 1.0).abs() < 0.01, "{planned} {real}");
}

#[test]
fn measured_figures_are_in_the_file() {
    let directory = scratch();
    let (output, report) = (directory.path().join("m.grist"), directory.path().join("r.json"));
    let text = directory.path().join("text.txt");
    let heldout = fs::read_to_string(checkpoint().join("heldout.txt")).unwrap();
    fs::write(&text, &heldout[..12_000]).unwrap();
    let said = run(&[
        "quantize",
        str(&checkpoint()),
        "-o",
        str(&output),
        "--measure",
        str(&text),
        "--report",
        str(&report),
        "--json",
    ])
    .expect(0);
    let made = said.json();
    let written: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(made, written);
    let inspected = run(&["inspect", str(&output), "--json"]).expect(0).json();
    let (stored, measured) = (&inspected["quality"], &made["quality"]);
    assert_eq!(stored["ppl"], measured["ppl"]["value"]);
    assert_eq!(stored["ppl_reference"], measured["reference"]["ppl"]["value"]);
    assert_eq!(stored["kld_mean"], measured["kld"]["mean"]);
    assert_eq!(stored["same_top1"], measured["same_top1"]);
    assert_eq!(stored["text_blake3"], measured["text_blake3"]);
    assert!(stored["kld_mean"].as_f64().unwrap() > 0.0);
    assert!(stored["protocol"].as_str().unwrap().starts_with("chunk 512 x "));
    // All figures are those of the file as it is now, not as it was when it was measured.
    let bytes = fs::metadata(&output).unwrap().len();
    for document in [&inspected, &made, &made["quality"]] {
        assert_eq!(document["file_bytes"], bytes);
        assert_eq!(document["bits_per_weight"], inspected["bits_per_weight"]);
    }
    assert_eq!(made["quality"]["fingerprint"], inspected["fingerprint"]);
    let exact = inspected["bits_per_weight"].as_f64().unwrap();
    assert!((stored["bits_per_weight"].as_f64().unwrap() - exact).abs() < 1e-4);
    run(&["verify", str(&output)]).expect(0);
}

#[test]
fn a_packed_file_can_be_packed_again() {
    let directory = scratch();
    let (wide, narrow) = (directory.path().join("wide.grist"), directory.path().join("q4.grist"));
    run(&["quantize", str(&checkpoint()), "-o", str(&wide), "--bits", "16"]).expect(0);
    run(&["quantize", str(&wide), "-o", str(&narrow)]).expect(0);
    let ids = |model: &str| {
        let said =
            run(&["run", model, "-p", "JULIET:", "-n", "24", "--temp", "0", "--json"]).expect(0);
        said.json()["ids"].clone()
    };
    assert_eq!(ids(str(&narrow)), ids(str(packed())));
}

#[test]
fn a_bad_request_leaves_nothing_behind() {
    let directory = scratch();
    let model = checkpoint();
    let output = directory.path().join("m.grist");
    let missing = directory.path().join("missing/m.grist");
    let quantize = |rest: &[&str]| run(&[&["quantize", str(&model)], rest].concat());
    let said = quantize(&["-o", str(&missing)]).expect(1);
    assert!(said.stderr.contains("does not exist"), "{}", said.stderr);
    assert!(quantize(&["-o", str(directory.path())]).expect(2).stderr.contains("is a directory"));
    assert!(quantize(&["-o", str(&output), "--bits", "7"]).expect(2).stderr.contains("6 (q6)"));
    assert!(
        quantize(&["-o", str(&output), "--codec", "nope=q8"]).expect(2).stderr.contains("nope")
    );
    quantize(&["-o", str(&output), "--codec", "norm=q4"]).expect(2);
    quantize(&["-o", str(&output), "--measure", str(&missing)]).expect(1);
    let own = model.join("model.safetensors");
    assert!(quantize(&["-o", str(&own)]).expect(2).stderr.contains("part of the source"));
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none(), "something was left");
}

#[test]
fn inspect_tells_the_whole_file() {
    let inspected = run(&["inspect", str(packed()), "--tensors", "--json"]).expect(0).json();
    assert_eq!(inspected["schema_version"], 1);
    assert_eq!(inspected["kind"], "grist");
    assert_eq!(inspected["model"]["architecture"], "llama");
    assert_eq!(inspected["licence"], "cc0-1.0");
    assert_eq!(inspected["provenance"]["source"], "tiny-shakespeare");
    assert_eq!(inspected["chat_template"], false);
    assert_eq!(inspected["tokenizer"], true);
    let bytes = fs::metadata(packed()).unwrap().len();
    assert_eq!(inspected["file_bytes"], bytes);
    let sum = |list: &Value| -> u64 {
        list.as_array().unwrap().iter().map(|item| item["bytes"].as_u64().unwrap()).sum()
    };
    assert_eq!(sum(&inspected["parts"]), bytes);
    assert_eq!(sum(&inspected["tensors"]), sum(&inspected["codecs"]));
    let text = run(&["inspect", str(packed())]).expect(0).stdout;
    for word in ["llama", "cc0-1.0", "rtn q4", "bits per weight", "tokenizer"] {
        assert!(text.contains(word), "no {word} in\n{text}");
    }
    let of_checkpoint = run(&["inspect", str(&checkpoint()), "--json"]).expect(0).json();
    assert_eq!(of_checkpoint["kind"], "checkpoint");
    assert_eq!(of_checkpoint["parameters"], inspected["parameters"]);
}

#[test]
fn a_closed_pipe_is_no_failure() {
    for arguments in [
        ["inspect", str(packed()), "--tensors"].as_slice(),
        &["run", str(packed()), "-p", "ROMEO:", "-n", "400", "--raw"],
        &["--help"],
    ] {
        let mut command = gristmill(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let said: crate::support::Said = command.stdout(writer).output().unwrap().into();
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}
