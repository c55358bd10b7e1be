//! `demo`: the one command that everyone tries first.

use crate::support::{run, scratch, str};

#[test]
fn the_story_is_told_and_kept() {
    let directory = scratch();
    let out = directory.path().join("demo");
    let document = run(&["demo", "--out", str(&out), "--json"]).expect(0).json();
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["checkpoint", "bf16", "q8", "q4", "q4 gptq", "q3", "q3 gptq"]
    );
    let figure = |row: usize, path: &[&str]| {
        let value = path.iter().fold(&rows[row], |value, key| &value[key]);
        value.as_f64().unwrap_or_else(|| panic!("{path:?} is {value}"))
    };
    let (bf16, q8, q4, q4_gptq, q3, q3_gptq) = (1, 2, 3, 4, 5, 6);
    // Packing what is bf16 as bf16 loses nothing; 8 bits cost less than 4.
    assert_eq!(figure(bf16, &["kld", "max"]), 0.0);
    assert_eq!(figure(bf16, &["ppl", "value"]), figure(0, &["ppl", "value"]));
    assert!(figure(q8, &["kld", "mean"]) * 10.0 < figure(q4, &["kld", "mean"]));
    assert!(figure(q4, &["kld", "mean"]) < 0.05);
    // Error feedback costs no bytes and pays.
    for (plain, fed) in [(q4, q4_gptq), (q3, q3_gptq)] {
        assert!(figure(fed, &["kld", "mean"]) < 0.8 * figure(plain, &["kld", "mean"]));
    }
    assert!(figure(q8, &["file_bytes"]) < figure(bf16, &["file_bytes"]));
    assert!(figure(q4, &["file_bytes"]) < figure(q8, &["file_bytes"]));
    for row in 0..rows.len() {
        assert!(figure(row, &["decode_tok_s"]) > 0.0 && figure(row, &["prefill_tok_s"]) > 0.0);
    }
    assert!(document["text"].as_str().unwrap().len() > 50);

    let kept = std::fs::read_to_string(out.join("report.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&kept).unwrap(), document);
    run(&["verify", str(&out.join("tiny-shakespeare-q4.grist"))]).expect(0);
    run(&["inspect", str(&out.join("tiny-shakespeare"))]).expect(0);
}
