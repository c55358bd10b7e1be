//! Reports for tests.

use super::report::BenchReport;

/// A report of one row with these decoding rates, one per repeat, on a quiet machine. It has the fields of
/// the first version, so it shows as well that documents of then are still read.
pub(super) fn report(decode_tok_s: &[f64]) -> BenchReport {
    let document = serde_json::json!({
        "schema_version": 1,
        "rows": [{
            "threads": 2,
            "decode_tok_s": crate::stats::median(decode_tok_s),
            "decode_tok_s_by_repeat": decode_tok_s,
            "prefill_tok_s": 100.0,
            "prefill_tok_s_by_repeat": vec![100.0; decode_tok_s.len()],
            "ttft_ms": {"p50": 320.0, "p95": 330.0},
            "tpot_ms": {"p50": 20.0, "p95": 22.0},
            "bytes_per_token": 1000,
            "weight_bytes_per_token": 900,
            "fine_head_share": null,
            "kv_bytes_per_token": 100,
            "achieved_gb_s": 1.0,
            "bandwidth_gb_s": 2.0,
            "bandwidth_model_sized_gb_s": 2.0,
            "share_of_bandwidth": 0.5,
            "share_of_model_sized_bandwidth": 0.5,
            "predicted_decode_tok_s": 100.0
        }],
        "load_ms": 1.0,
        "load_warm_ms": 1.0,
        "residency": "map",
        "copied_bytes": 0,
        "streamed_bytes": 0,
        "coarse_head_bytes": null,
        "coarse_head_ms": null,
        "memory": {
            "anonymous_peak_bytes": 1,
            "file_peak_bytes": 2,
            "resident_peak_bytes": 3,
            "resident_peak_was_reset": true,
            "reason": null
        },
        "isa": "scalar",
        "kernels": [],
        "kv": "f16",
        "prompt": 32,
        "gen": 64,
        "depth": 0,
        "repeat": decode_tok_s.len(),
        "probe_bytes": 1,
        "probe_huge_page_bytes": null,
        "architecture": "llama",
        "parameters": 8,
        "fingerprint": "f1",
        "codecs": ["q4"],
        "file_bytes": 4,
        "bits_per_weight": 4.0,
        "method": "",
        "warnings": [],
        "seconds": 1.0,
        "unix_time_s": 1,
        "host": {
            "cpu": "a CPU",
            "cores": 2,
            "isa_detected": "scalar",
            "arch": "x86_64",
            "os": "linux",
            "memory_bytes": null,
            "last_level_cache_bytes": null,
            "load_average": [0.0, 0.0, 0.0],
            "version": "0.1.0",
            "commit": null
        }
    });
    serde_json::from_value(document).expect("a report of the first version")
}
