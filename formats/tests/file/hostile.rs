//! Headers that are well sealed and say something impossible.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gristmill_formats::FormatError;
use gristmill_formats::container::{Header, Superblock};
use gristmill_formats::limits::{MAX_HEADER_BYTES, SECTION_ALIGN};
use serde_json::{Value, json};

use crate::sample::{self, Rng};

/// The sample's header as a tree, to be changed and sealed again.
struct Attack {
    bytes: Vec<u8>,
    header: Value,
}

impl Attack {
    fn new() -> Self {
        let bytes = sample::bytes();
        let header = serde_json::to_value(sample::open(&bytes).unwrap().header()).unwrap();
        Self { bytes, header }
    }

    /// Opens the file with a changed header.
    fn open(&self, change: impl FnOnce(&mut Value)) -> Result<(), FormatError> {
        let mut header = self.header.clone();
        change(&mut header);
        self.open_text(&header.to_string())
    }

    fn open_text(&self, header: &str) -> Result<(), FormatError> {
        let file = sample::with_header(&self.bytes, header.as_bytes());
        sample::open(&file).map(|_| ())
    }

    #[track_caller]
    fn refused(&self, what: &str, change: impl FnOnce(&mut Value)) -> String {
        match self.open(change) {
            Ok(()) => panic!("{what} was accepted"),
            Err(FormatError::Corrupt { what, detail }) => {
                panic!("sealed wrongly: {what}: {detail}")
            }
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn the_unchanged_header_is_accepted() {
    Attack::new().open(|_| {}).unwrap();
}

#[test]
fn tensors_that_do_not_tile_the_file_are_refused() {
    let attack = Attack::new();
    let count = attack.header["tensors"].as_array().unwrap().len();
    for i in [0, 1, count / 2, count - 1] {
        let shift = |by: i64| {
            move |h: &mut Value| {
                let offset = h["tensors"][i]["offset"].as_i64().unwrap();
                h["tensors"][i]["offset"] = json!(offset + by);
            }
        };
        attack.refused("an overlap", shift(-64));
        attack.refused("a hole", shift(64));
        attack.refused("a misaligned tensor", shift(1));
        attack.refused("an offset of zero", |h| h["tensors"][i]["offset"] = json!(0));
        attack.refused("an offset at the end of numbers", |h| {
            h["tensors"][i]["offset"] = json!(u64::MAX);
        });
        attack.refused("an offset near the end of numbers", |h| {
            h["tensors"][i]["offset"] = json!(u64::MAX - 63);
        });
        for bytes in [0, 1, 63, u64::MAX, u64::MAX - 64, 1 << 63] {
            attack.refused("a wrong size", |h| h["tensors"][i]["bytes"] = json!(bytes));
        }
    }
    attack.refused("the tensor before in its place", |h| {
        h["tensors"][1]["offset"] = h["tensors"][0]["offset"].clone();
    });
}

#[test]
fn tensors_that_are_not_the_models_are_refused() {
    let attack = Attack::new();
    let last = attack.header["tensors"].as_array().unwrap().len() - 1;
    fn tensors(header: &mut Value) -> &mut Vec<Value> {
        header["tensors"].as_array_mut().unwrap()
    }
    attack.refused("a missing first tensor", |h| drop(tensors(h).remove(0)));
    attack.refused("a missing last tensor", |h| drop(tensors(h).pop()));
    attack.refused("no tensors", |h| tensors(h).clear());
    attack.refused("a duplicate", |h| {
        let copy = tensors(h)[last].clone();
        tensors(h).push(copy);
    });
    attack.refused("a duplicate in place of another", |h| {
        let copy = tensors(h)[0].clone();
        tensors(h)[1] = copy;
    });
    attack.refused("two tensors exchanged", |h| tensors(h).swap(2, 3));
    attack.refused("two names exchanged", |h| {
        let name = h["tensors"][2]["name"].take();
        h["tensors"][2]["name"] = h["tensors"][3]["name"].take();
        h["tensors"][3]["name"] = name;
    });
    attack.refused("an unknown name", |h| h["tensors"][0]["name"] = json!("embed2"));
    attack.refused("an empty name", |h| h["tensors"][0]["name"] = json!(""));
    let error = attack.refused("a long name", |h| {
        h["tensors"][0]["name"] = json!("é".repeat(100_000));
    });
    assert!(error.len() < 500, "the error repeats a long name");
    attack.refused("a name of the wrong type", |h| h["tensors"][0]["name"] = json!(7));
}

#[test]
fn shapes_and_codecs_that_do_not_fit_are_refused() {
    let attack = Attack::new();
    for shape in [
        json!([]),
        json!([37]),
        json!([37, 40, 1]),
        json!([40, 37]),
        json!([0, 40]),
        json!([37, 0]),
        json!([u64::MAX, u64::MAX]),
        json!([1u64 << 31, 1u64 << 31]),
        json!([1u64 << 60, 16]),
        json!([-1, 40]),
        json!([37.0, 40]),
        json!("37x40"),
        json!(null),
    ] {
        attack.refused(&format!("shape {shape}"), |h| h["tensors"][0]["shape"] = shape);
    }
    let at = |codec: &str| {
        let tensors = attack.header["tensors"].as_array().unwrap();
        tensors
            .iter()
            .position(|t| t["codec"] == codec && t["shape"].as_array().unwrap().len() == 2)
            .unwrap()
    };
    let (q4, q8) = (at("q4"), at("q8"));
    attack.refused("q4 without a table", |h| {
        h["tensors"][q4].as_object_mut().unwrap().remove("table");
    });
    attack.refused("q4 without a shift", |h| {
        h["tensors"][q4].as_object_mut().unwrap().remove("table_shift");
    });
    attack.refused("q8 with a table", |h| {
        h["tensors"][q8]["table"] = h["tensors"][q4]["table"].clone();
    });
    attack.refused("q8 with a shift", |h| h["tensors"][q8]["table_shift"] = json!(0));
    attack.refused("a table of 15", |h| {
        drop(h["tensors"][q4]["table"].as_array_mut().unwrap().pop())
    });
    attack.refused("a table of 17", |h| {
        h["tensors"][q4]["table"].as_array_mut().unwrap().push(json!(127));
    });
    for (codec, bits) in [("q6", 6), ("q5", 5), ("q3", 3), ("q2", 2)] {
        let error = attack.refused(&format!("{codec} with a table of 16"), |h| {
            h["tensors"][q4]["codec"] = json!(codec);
        });
        let expected = format!("a table of 16 values, {codec} has {}", 1 << bits);
        assert!(error.contains(&expected), "{error}");
    }
    attack.refused("a table out of order", |h| {
        h["tensors"][q4]["table"].as_array_mut().unwrap().swap(3, 4);
    });
    attack.refused("a table beyond int8", |h| h["tensors"][q4]["table"][15] = json!(128));
    attack.refused("a shift beyond int8", |h| h["tensors"][q4]["table_shift"] = json!(200));
    attack.refused("a shift that takes the table out of int8", |h| {
        h["tensors"][q4]["table"][15] = json!(127);
        h["tensors"][q4]["table_shift"] = json!(1);
    });
    attack.refused("an unknown codec", |h| h["tensors"][q8]["codec"] = json!("q9"));
    attack.refused("another codec of another size", |h| h["tensors"][q8]["codec"] = json!("f32"));
    let vector = attack.header["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .position(|t| t["shape"].as_array().unwrap().len() == 1)
        .unwrap();
    attack.refused("a quantized vector", |h| h["tensors"][vector]["codec"] = json!("q8"));
}

#[test]
fn a_tokenizer_section_out_of_place_is_refused() {
    let attack = Attack::new();
    let offset = attack.header["tokenizer"]["offset"].as_u64().unwrap();
    for place in [0, offset - 64, offset + 64, offset + 1, u64::MAX, u64::MAX - 63] {
        attack.refused("a misplaced section", |h| h["tokenizer"]["offset"] = json!(place));
    }
    for bytes in [0, 1 << 20, 65 << 20, u64::MAX, u64::MAX - offset] {
        attack.refused("a section of another size", |h| h["tokenizer"]["bytes"] = json!(bytes));
    }
    attack.refused("a hole where it was", |h| h["tokenizer"] = json!(null));
}

#[test]
fn unknown_missing_and_repeated_fields_are_refused() {
    let attack = Attack::new();
    for pointer in [
        "",
        "/model",
        "/model/final_norm",
        "/model/layers/0",
        "/model/layers/0/blocks/0",
        "/model/layers/0/blocks/0/mixer/attention",
        "/model/layers/0/blocks/0/mixer/attention/rope",
        "/model/layers/0/blocks/0/mixer/attention/rope/scaling/llama3",
        "/model/layers/0/blocks/1/mixer/mlp",
        "/tensors/0",
        "/tokenizer",
        "/text",
        "/text/bos",
        "/generation",
        "/provenance",
        "/provenance/files/0",
    ] {
        let error = attack.refused(&format!("an unknown field in `{pointer}`"), |h| {
            h.pointer_mut(pointer).unwrap()["surprise"] = json!(1);
        });
        assert!(error.contains("surprise"), "{error}");
    }
    for pointer in
        ["/model/d_model", "/model/layers", "/tensors", "/tensors/0/blake3", "/provenance"]
    {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let error = attack.refused(&format!("a missing {field}"), |h| {
            h.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field);
        });
        assert!(error.contains(field), "{error}");
    }
    let text = attack.header.to_string();
    let twice = text.replacen("\"d_model\":40", "\"d_model\":40,\"d_model\":40", 1);
    assert_ne!(text, twice);
    assert!(attack.open_text(&twice).is_err(), "a repeated field was accepted");
}

#[test]
fn numbers_that_are_no_numbers_are_refused() {
    let attack = Attack::new();
    let text = attack.header.to_string();
    let eps = "\"final_norm\":{\"eps\":";
    let at = text.find(eps).unwrap() + eps.len();
    let end = at + text[at..].find(',').unwrap();
    let with = |number: &str| format!("{}{number}{}", &text[..at], &text[end..]);
    attack.open_text(&with("0.5")).unwrap();
    for number in ["NaN", "nan", "Infinity", "-Infinity", "inf", "1e999", "1e39", "-1e39", "null"] {
        assert!(attack.open_text(&with(number)).is_err(), "eps of {number}");
    }
    for number in ["-1", "-0.001", "\"1\"", "true", "01", "+1", ".5", "0x10", "1e", "[]"] {
        assert!(attack.open_text(&with(number)).is_err(), "eps of {number}");
    }
}

#[test]
fn text_that_is_not_one_json_object_is_refused() {
    let attack = Attack::new();
    let text = attack.header.to_string();
    for bad in [
        String::new(),
        " ".into(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        format!("{text}{text}"),
        format!("{text}x"),
        format!("{text}\0"),
        text[..text.len() - 1].to_string(),
        text.replacen(':', "=", 1),
        "[".repeat(1 << 20),
        "{\"model\":".repeat(100_000),
        format!("\u{feff}{text}"),
    ] {
        assert!(attack.open_text(&bad).is_err(), "{:.40} was accepted", bad);
    }
    // Invalid UTF-8 inside a string.
    let mut bytes = text.clone().into_bytes();
    let at = text.find("someone/").unwrap();
    bytes[at] = 0xff;
    assert!(sample::open(&sample::with_header(&attack.bytes, &bytes)).is_err());
    // White space is JSON too.
    attack.open_text(&format!("  {text}\n")).unwrap();
}

#[test]
fn giant_counts_are_refused_before_anything_is_allocated_for_them() {
    let attack = Attack::new();
    for (field, value) in [
        ("vocab_size", json!(u32::MAX)),
        ("vocab_size", json!(u64::MAX)),
        ("vocab_size", json!((1 << 24) + 1)),
        ("d_model", json!((1 << 20) + 1)),
        ("d_model", json!(0)),
        ("max_context", json!(u32::MAX)),
    ] {
        attack.refused(&format!("{field} of {value}"), |h| h["model"][field] = value);
    }
    attack.refused("5000 layers", |h| {
        let layer = h["model"]["layers"][0].clone();
        h["model"]["layers"] = Value::Array(vec![layer; 5000]);
    });
    attack.refused("4096 layers without their tensors", |h| {
        let layer = h["model"]["layers"][0].clone();
        h["model"]["layers"] = Value::Array(vec![layer; 4096]);
    });
    attack.refused("9 blocks", |h| {
        let block = h["model"]["layers"][0]["blocks"][0].clone();
        h["model"]["layers"][0]["blocks"] = Value::Array(vec![block; 9]);
    });
    attack.refused("100,000 tensors", |h| {
        let tensor = h["tensors"][0].clone();
        h["tensors"] = Value::Array(vec![tensor; 100_000]);
    });
    let at = "/model/layers/0/blocks/0/mixer/attention";
    for (heads, kv, dim) in [
        (4096, 1, 1024),
        (4096, 4096, 4096),
        (u32::MAX, u32::MAX, u32::MAX),
        (65_536, 1, 65_536),
        (1 << 16, 1 << 16, 1 << 16),
    ] {
        attack.refused("attention that overflows", |h| {
            let attention = h.pointer_mut(at).unwrap();
            attention["heads"] = json!(heads);
            attention["kv_heads"] = json!(kv);
            attention["head_dim"] = json!(dim);
        });
    }
}

/// The good superblock with a change, and the file that goes with it.
fn with_superblock(change: impl FnOnce(&mut Superblock)) -> Result<(), FormatError> {
    let bytes = sample::bytes();
    let superblock = Superblock::parse(&bytes).unwrap();
    let start = superblock.header_offset as usize;
    let header = bytes[start..start + superblock.header_bytes as usize].to_vec();
    let body = bytes[..superblock.footer_offset() as usize].to_vec();
    // A footer for a change that makes the file length nonsense cannot be placed: seal writes it at
    // the end of the bytes, where the reader never looks.
    let file = sample::seal(body, superblock.header_offset, &header, change);
    sample::open(&file).map(|_| ())
}

#[test]
fn versions_and_features_follow_the_rules() {
    with_superblock(|_| {}).unwrap();
    with_superblock(|s| s.version.1 = 7).unwrap();
    with_superblock(|s| s.optional_features = u64::MAX).unwrap();
    for version in [(0, 0), (2, 0), (u16::MAX, u16::MAX)] {
        let error = with_superblock(|s| s.version = version).unwrap_err();
        assert!(
            matches!(error, FormatError::UnsupportedVersion { major, .. } if major == version.0)
        );
    }
    // Bit 0 says that the header may have more members, and this one need not.
    with_superblock(|s| s.required_features = 1).unwrap();
    for bit in 1..64 {
        let error = with_superblock(|s| s.required_features = 1 << bit).unwrap_err();
        let name = format!("required bit {bit}");
        assert!(matches!(error, FormatError::UnknownFeature(found) if found == name));
    }
}

#[test]
fn superblocks_that_point_anywhere_else_are_refused() {
    let values = [0, 1, 63, 64, 127, 128, SECTION_ALIGN, 1 << 31, 1 << 32, u64::MAX - 63, u64::MAX];
    for value in values {
        for (what, change) in [
            ("header_offset", (|s, v| s.header_offset = v) as fn(&mut Superblock, u64)),
            ("header_bytes", |s, v| s.header_bytes = v),
            ("file_bytes", |s, v| s.file_bytes = v),
            ("all", |s, v| {
                s.header_offset = v;
                s.header_bytes = v;
                s.file_bytes = v;
            }),
            ("offset and length", |s, v| {
                s.header_offset = v;
                s.file_bytes =
                    v.wrapping_add(s.header_bytes.next_multiple_of(64)).wrapping_add(144);
            }),
        ] {
            let result = with_superblock_checked(change, value);
            assert!(result.is_err(), "{what} of {value} was accepted");
        }
    }
    let error = with_superblock(|s| {
        s.header_bytes = MAX_HEADER_BYTES + 1;
        s.file_bytes = s.header_offset + (MAX_HEADER_BYTES + 1).next_multiple_of(64) + 144;
    });
    assert!(matches!(error, Err(FormatError::InvalidHeader(_))));
}

/// `with_superblock` for one value of a family.
fn with_superblock_checked(
    change: fn(&mut Superblock, u64),
    value: u64,
) -> Result<(), FormatError> {
    with_superblock(|s| change(s, value))
}

#[test]
fn a_footer_of_another_file_or_without_its_mark_is_refused() {
    let good = sample::bytes();
    let superblock = Superblock::parse(&good).unwrap();
    let footer = superblock.footer_offset() as usize;
    let mut other = superblock;
    other.optional_features = 1;
    let mut bytes = good.clone();
    bytes[footer..].copy_from_slice(&other.footer());
    assert!(
        matches!(sample::open(&bytes), Err(FormatError::Corrupt { what, .. }) if what == "footer")
    );
    let mut bytes = good;
    let end = bytes.len();
    bytes[end - 16..].fill(0);
    assert!(
        matches!(sample::open(&bytes), Err(FormatError::Corrupt { what, .. }) if what == "footer")
    );
}

#[test]
fn mutated_headers_never_panic() {
    let attack = Attack::new();
    let text = attack.header.to_string().into_bytes();
    let offset = Superblock::parse(&attack.bytes).unwrap().header_offset;
    let mut rng = Rng::new(4);
    for round in 0..3000 {
        let mut bytes = text.clone();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(bytes.len());
            match rng.below(4) {
                0 => bytes[at] = rng.bits() as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"0123456789-e.\"{}[],:"[rng.below(20)]),
                _ => {
                    let end = (at + rng.below(40)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
        let parsed = catch_unwind(AssertUnwindSafe(|| Header::parse(&bytes, offset)));
        assert!(parsed.is_ok(), "round {round}: {}", String::from_utf8_lossy(&bytes));
    }
}
