//! What tests of this part share.

use super::peers::Peers;
use super::report::{
    ParetoPoint, ParetoQuality, ParetoReport, ParetoSpeed, PointMemory, PointSpeed,
};
use crate::host::Host;
use crate::model_facts::ModelFacts;
use crate::quality::{Divergence, Estimate, Protocol, Ratio};
use crate::spread::Spread;

/// Checks that every element is closed in order and that what is special is escaped: the page is to be
/// XML as well as HTML.
#[track_caller]
pub(super) fn check_markup(markup: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = markup.strip_prefix("<!DOCTYPE html>").unwrap_or(markup);
    while let Some(start) = rest.find('<') {
        check_text(&rest[..start]);
        let end = rest[start..].find('>').expect("a tag ends") + start;
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<'), "`<` within <{tag}>");
        assert_eq!(tag.matches('"').count() % 2, 0, "a quote is open in <{tag}>");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().expect("a name"));
        }
        rest = &rest[end + 1..];
    }
    check_text(rest);
    assert!(open.is_empty(), "not closed: {open:?}");
}

#[track_caller]
fn check_text(text: &str) {
    for piece in text.split('&').skip(1) {
        let known = ["amp;", "lt;", "gt;", "quot;"].iter().any(|name| piece.starts_with(name));
        assert!(known, "&{piece:.20} is not escaped");
    }
}

fn spread(median: f64) -> Spread {
    Spread { median, ci95: Some([median * 0.97, median * 1.02]), by_run: vec![median] }
}

fn point(name: &str, megabytes: f64, ppl: f64, kld: f64, tok_s: f64) -> ParetoPoint {
    let is_reference = kld == 0.0;
    let ci = |value: f64| Some([value * 0.93, value * 1.07]);
    let speed = |threads: usize| PointSpeed {
        threads,
        decode_tok_s: spread(tok_s * threads as f64 * 0.9),
        prefill_tok_s: spread(1200.0 * threads as f64),
    };
    ParetoPoint {
        model: "Model-135M".into(),
        name: name.into(),
        is_reference,
        recipe: (!is_reference).then(|| format!("gptq {name} vectors=f32")),
        facts: ModelFacts {
            architecture: "llama".into(),
            parameters: 134_515_008,
            fingerprint: format!("digest-of-{name}"),
            codecs: vec!["q4".into(), "q6".into()],
            file_bytes: (megabytes * 1e6) as u64,
            bits_per_weight: megabytes * 8.0 / 134.515,
        },
        quantize_seconds: (!is_reference).then_some(220.0),
        tokens: 10_200,
        ppl: Estimate { value: ppl, stderr: ppl * 0.03, ci95: ci(ppl) },
        ppl_ratio: (!is_reference).then(|| {
            let value = ppl / 23.482;
            let ci95 = Some([value * 0.995, value * 1.005]);
            Ratio { value, ci95, unpaired_ci95: ci(value), times_tighter: Some(14.0) }
        }),
        kld: (!is_reference).then(|| Divergence {
            mean: kld,
            ci95: ci(kld),
            median: kld * 0.5,
            p90: kld * 2.0,
            p99: kld * 6.0,
            p999: kld * 15.0,
            max: kld * 40.0,
        }),
        same_top1: (!is_reference).then(|| 1.0 - kld.sqrt() * 0.5),
        same_top1_ci95: None,
        speed: vec![speed(1), speed(2)],
        memory: Some(PointMemory {
            anonymous_peak_bytes: Some(25 << 20),
            file_peak_bytes: Some((megabytes * 1e6) as u64),
        }),
    }
}

/// A report as a real run makes it, with ten files and two programs beside them.
pub(super) fn report() -> ParetoReport {
    let points = vec![
        point("Model-135M", 272.58, 23.482, 0.0, 70.0),
        point("8 bits", 139.51, 23.505, 0.00018, 126.0),
        point("120MB", 120.0, 23.509, 0.0014, 150.0),
        point("105.4MB", 105.39, 23.587, 0.0032, 178.0),
        point("95MB", 94.99, 23.708, 0.0088, 204.0),
        point("84MB", 83.99, 23.947, 0.0226, 231.0),
        point("76MB", 75.99, 24.570, 0.0416, 255.0),
        point("64MB", 63.99, 27.008, 0.1267, 300.0),
        point("50MB", 49.98, 37.430, 0.438, 360.0),
        point("40MB & <tuned>", 39.99, 61.369, 0.907, 398.0),
        point("4 bits", 72.29, 29.787, 0.228, 267.0),
    ];
    let peers = r#"{"model": "Model", "note": "Figures of <others>.", "peers": [
        {"program": "llama.cpp", "type": "Q8_0", "bytes": 144811136, "ppl": 23.541, "kld": 0.0026,
         "kld_ci": [0.0025, 0.0027], "kld_p999": 0.024, "same_top1": 0.964,
         "speed": [{"threads": 1, "decode_tok_s": 127, "prefill_tok_s": 385, "device": "elsewhere"}]},
        {"program": "llama.cpp", "type": "Q4_K_M", "bytes": 105454208, "ppl": 24.363, "kld": 0.0365,
         "speed": [{"threads": 1, "decode_tok_s": 58, "device": "Test CPU"}]},
        {"program": "llama.cpp", "type": "Q4_0", "bytes": 91892864, "ppl": 27.501, "kld": 0.1693},
        {"program": "ik_llama.cpp", "type": "IQ4_KS", "bytes": 91796096, "ppl": 24.924, "kld": 0.067},
        {"program": "ik_llama.cpp", "type": "IQ2_K", "bytes": 85091456, "ppl": 32.329, "kld": 0.3137}]}"#;
    ParetoReport {
        schema_version: crate::SCHEMA_VERSION,
        models: vec!["Model-135M".into()],
        quality: ParetoQuality {
            text: "wiki.test.raw".into(),
            text_blake3: "ab".repeat(32),
            protocol: Protocol::Chunk,
            ctx: 512,
            windows: 40,
            kv: "f16".into(),
        },
        speed: Some(ParetoSpeed {
            threads: vec![1, 2],
            prompt: 512,
            r#gen: 128,
            kv: "f16".into(),
            rounds: 3,
            isa: "avx512-vnni".into(),
        }),
        points,
        peers: Some(Peers::parse(peers).expect("valid")),
        warnings: vec!["the machine was \"busy\"".into()],
        unix_time_s: 1_795_292_035,
        host: Host {
            cpu: Some("Test CPU".into()),
            cores: 2,
            os: "linux 6.1".into(),
            version: "0.1.0".into(),
            commit: None,
            ..Host::detect()
        },
    }
}
