//! Measuring the kernels: everything once, whatever the figures.

use std::collections::BTreeMap;

use gristmill_eval::{EvalError, Family, HwBenchConfig, Operation, hwbench};
use gristmill_formats::codec::CodecId;
use gristmill_formats::{Progress, Silent};
use gristmill_runtime::{Isa, KvType};
use serde_json::Value;

fn quick() -> HwBenchConfig {
    HwBenchConfig { threads: vec![1], quick: true, ..HwBenchConfig::default() }
}

/// How often each family measures each of its subjects on one class in a quick run.
fn expected() -> BTreeMap<(String, String), usize> {
    let codecs = CodecId::ALL.map(CodecId::name);
    let mut expected = BTreeMap::new();
    let mut expect = |family: &str, subject: &str, times| {
        expected.insert((family.to_owned(), subject.to_owned()), times);
    };
    for codec in codecs {
        expect("gemv", codec, 2);
        expect("small-m", codec, 3);
        expect("gemm", codec, 1);
    }
    KvType::ALL.iter().for_each(|kv| expect("attention", kv.name(), 2));
    Operation::ALL.iter().for_each(|operation| expect("elementwise", operation.name(), 1));
    expected
}

#[test]
fn every_kernel_is_measured_once_on_every_class() {
    let report = hwbench(&quick(), &Silent).unwrap();
    let document = serde_json::to_value(&report).unwrap();
    let rows = document["rows"].as_array().unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    for isa in Isa::available() {
        let of_class: Vec<_> = rows.iter().filter(|row| text(row, "isa") == isa.name()).collect();
        let mut found = BTreeMap::new();
        let mut keys = Vec::new();
        for row in &of_class {
            *found.entry((text(row, "family"), text(row, "subject"))).or_insert(0) += 1;
            let key = ["family", "subject", "tokens", "depth", "from", "threads"];
            keys.push(key.map(|field| row[field].to_string()));
            assert_eq!(row["chosen"], isa == Isa::detect(), "{row}");
        }
        assert_eq!(found, expected(), "{}", isa.name());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), of_class.len(), "each once");
    }
    assert_eq!(rows.len(), Isa::available().count() * expected().values().sum::<usize>());
    assert_eq!(document["chosen"], Isa::detect().name());
}

#[test]
fn rows_say_what_bounds_them() {
    let config = HwBenchConfig { isas: vec![Isa::detect()], ..quick() };
    let report = hwbench(&config, &Silent).unwrap();
    for row in &report.rows {
        assert!(row.rate.is_finite() && row.rate > 0.0, "{row:?}");
        assert_eq!(row.rate_by_repeat.len(), report.repeat);
        let bounded = !matches!(row.case.family, Family::SmallM | Family::Elementwise);
        assert_eq!(row.share.is_some(), bounded, "{row:?}");
        assert_eq!(row.cost.is_some(), row.case.family == Family::SmallM, "{row:?}");
        if let (Some(share), Some(ceiling)) = (row.share, row.ceiling) {
            assert!((share * ceiling / row.rate - 1.0).abs() < 1e-9, "{row:?}");
        }
    }
    assert_eq!(report.ceilings.len(), 4, "two of reading, two of multiplying");

    let document = serde_json::to_value(&report).unwrap();
    assert_eq!(document["schema_version"], gristmill_eval::SCHEMA_VERSION);
    assert_eq!(document["host"]["isa_detected"], Isa::detect().name());
    assert_eq!(document["rows"][0]["unit"], "GB/s");
    assert!(document["slow_choices"].as_array().unwrap().is_empty());

    let markdown = report.markdown();
    for subject in CodecId::ALL.map(CodecId::name).into_iter().chain(KvType::ALL.map(KvType::name))
    {
        assert!(markdown.contains(&format!("| {subject}, ")), "{subject} in {markdown}");
    }
    assert!(markdown.contains(&format!("{}*, 1 thread", Isa::detect().name())), "{markdown}");
    assert!(report.text().starts_with(&markdown));
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    for (threads, isas) in
        [(vec![], None), (vec![0], None), (vec![1 << 40], None), (vec![1], Some(vec![]))]
    {
        let isas = isas.unwrap_or_else(|| quick().isas);
        let error = hwbench(&HwBenchConfig { threads, isas, ..quick() }, &Silent).unwrap_err();
        assert!(matches!(error, EvalError::Config(_)), "{error}");
    }
}

#[test]
fn it_can_be_stopped() {
    struct Stop;
    impl Progress for Stop {
        fn begin(&self, _: &str, _: u64, _: &str) {}
        fn advance(&self, _: u64) {}
        fn note(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    assert!(matches!(hwbench(&quick(), &Stop), Err(EvalError::Cancelled)));
}
