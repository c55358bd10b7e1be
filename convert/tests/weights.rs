//! The weights of a checkpoint: what is found, and every way in which they can be wrong.

mod checkpoint;

use std::fs;

use checkpoint::{Checkpoint, config, from_parts, safetensors, tensors};
use gristmill_convert::ConvertError;
use gristmill_formats::codec::Codec;
use gristmill_formats::source::{Layout, ModelSource, check_tensors};
use gristmill_formats::{FormatError, Silent};
use serde_json::json;

#[test]
fn tensors_are_handed_out_in_place_under_canonical_names() {
    let checkpoint = Checkpoint::new();
    let source = checkpoint.open().unwrap();
    check_tensors(&source).unwrap();
    let gate = source.tensor("layers.0.mlp.gate").unwrap();
    assert_eq!((gate.shape.as_slice(), gate.codec.clone()), (&[6, 4][..], Codec::F32));
    assert_eq!(gate.layout, Layout::RowMajor);
    let mut row = [0.0; 4];
    gate.decode_row(5, &mut row);
    assert_eq!(row, [720.0, 721.0, 722.0, 723.0]);
    let again = source.tensor("layers.0.mlp.gate").unwrap();
    assert_eq!(gate.bytes.as_ptr(), again.bytes.as_ptr(), "a view, not a copy");
    assert!(matches!(source.tensor("head"), Err(FormatError::MissingTensor(_))));
    let size = |name: &str| fs::metadata(checkpoint.path().join(name)).unwrap().len();
    assert_eq!(source.file_bytes(), size("config.json") + size("model.safetensors"));
}

#[test]
fn all_names_of_all_architectures_are_mapped() {
    for (model_type, prefix) in [
        ("llama", "model."),
        ("mistral", "model."),
        ("qwen2", "model."),
        ("qwen3", "model."),
        ("gemma3_text", "model."),
        ("gemma3", "language_model.model."),
    ] {
        let checkpoint = Checkpoint::empty();
        let mut config = config();
        config["model_type"] = json!(model_type);
        config["head_dim"] = json!(2);
        if model_type == "gemma3" {
            config = json!({"model_type": model_type, "text_config": {
                "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
                "num_attention_heads": 2, "head_dim": 2, "max_position_embeddings": 32,
                "num_key_value_heads": 2, "attention_bias": true,
            }});
        } else {
            config.as_object_mut().unwrap().shift_remove("architectures");
            config["num_key_value_heads"] = json!(2);
            config["attention_bias"] = json!(!matches!(model_type, "mistral" | "qwen2"));
            if model_type == "llama" {
                config["mlp_bias"] = json!(true);
            }
        }
        checkpoint.json("config.json", &config);
        checkpoint.file("model.safetensors", from_parts("{}", b""));
        // The importer asks for one missing tensor after the other until it has all.
        let mut written: Vec<(String, Vec<usize>)> = Vec::new();
        loop {
            let (hf_name, shape) = match checkpoint.open() {
                Ok(_) => break,
                Err(ConvertError::MissingTensor { hf_name, .. }) => (hf_name, vec![1]),
                Err(ConvertError::ShapeMismatch { hf_name, expected, .. }) => {
                    written.pop();
                    (hf_name, expected.iter().map(|&n| n as usize).collect())
                }
                Err(error) => panic!("{model_type}: {error}"),
            };
            // With no embedding yet, the prefix cannot be detected.
            let hf_name = match hf_name.strip_prefix("model.") {
                Some(rest) if written.is_empty() => format!("{prefix}{rest}"),
                _ => hf_name,
            };
            written.push((hf_name, shape));
            let tensors: Vec<_> =
                written.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect();
            checkpoint.file("model.safetensors", safetensors(&tensors));
            assert!(written.len() < 100, "{model_type}: {written:?}");
        }
        let source = checkpoint.open().unwrap();
        check_tensors(&source).unwrap();
        assert_eq!(source.spec().tensors().len(), written.len(), "{model_type}");
        assert!(written.iter().all(|(name, _)| name.starts_with(prefix)), "{written:?}");
        assert_eq!(source.notes().is_empty(), model_type != "gemma3");
    }
}

#[test]
fn half_precision_is_read_and_integers_are_refused_by_name() {
    for (dtype, codec) in [("BF16", Codec::Bf16), ("F16", Codec::F16)] {
        let checkpoint = Checkpoint::new();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, shape) in tensors() {
            let start = data.len();
            data.resize(start + 2 * shape.iter().product::<usize>(), 0);
            let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name.into(), info);
        }
        let header = serde_json::Value::Object(header).to_string();
        checkpoint.file("model.safetensors", from_parts(&header, &data));
        let source = checkpoint.open().unwrap();
        assert_eq!(source.tensor("final_norm").unwrap().codec, codec);
    }
    let checkpoint = Checkpoint::new();
    let header = json!({"model.embed_tokens.weight":
        {"dtype": "I32", "shape": [8, 1], "data_offsets": [0, 32]}});
    checkpoint.file("model.safetensors", from_parts(&header.to_string(), &[0; 32]));
    checkpoint.refuses(&["model.embed_tokens.weight", "I32", "BF16, F16, F32"]);
}

/// Splits the small model over two files with an index.
fn sharded() -> Checkpoint {
    let checkpoint = Checkpoint::empty();
    checkpoint.json("config.json", &config());
    let tensors = tensors();
    let (first, second) = tensors.split_at(5);
    checkpoint.file("a.safetensors", safetensors(first));
    checkpoint.file("b.safetensors", safetensors(second));
    checkpoint.json("model.safetensors.index.json", &index());
    checkpoint
}

fn index() -> serde_json::Value {
    let mut map = serde_json::Map::new();
    for (i, (name, _)) in tensors().iter().enumerate() {
        map.insert((*name).into(), json!(if i < 5 { "a.safetensors" } else { "b.safetensors" }));
    }
    json!({"metadata": {"total_size": 1}, "weight_map": map})
}

#[test]
fn shards_are_found_through_the_index() {
    let checkpoint = sharded();
    let source = checkpoint.open().unwrap();
    check_tensors(&source).unwrap();
    let names = ["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"];
    assert_eq!(source.files(), names);
    let provenance = source.provenance(&Silent).unwrap();
    assert_eq!(provenance.files.len(), 4);
}

#[test]
fn hostile_indices_are_refused() {
    let with_file = |file: serde_json::Value| {
        let checkpoint = sharded();
        let mut index = index();
        index["weight_map"]["model.norm.weight"] = file;
        checkpoint.json("model.safetensors.index.json", &index);
        checkpoint
    };
    for name in ["../x.safetensors", "/etc/passwd", "sub/x", "..", ".", "", "C:\\x", "a\\b", "x\0y"]
    {
        let error = with_file(json!(name)).refuses(&["model.safetensors.index.json"]);
        assert!(matches!(error, ConvertError::UnsafePath { .. }), "{name}: {error}");
    }
    with_file(json!("c.safetensors")).refuses(&["c.safetensors", "no such file", "download"]);
    with_file(json!("a.safetensors")).refuses(&[
        "model.norm.weight",
        "a.safetensors",
        "b.safetensors",
    ]);
    with_file(json!(3)).refuses(&["model.norm.weight", "not a string"]);

    let checkpoint = sharded();
    checkpoint.file("model.safetensors.index.json", "{").refuses(&["index.json", "EOF"]);
    checkpoint.file("model.safetensors.index.json", "{}").refuses(&["weight_map"]);

    let checkpoint = sharded();
    checkpoint.file("b.safetensors", safetensors(&tensors()));
    checkpoint.refuses(&["model.embed_tokens.weight", "is in", "a.safetensors", "b.safetensors"]);

    let mut map = serde_json::Map::new();
    for i in 0..5000 {
        map.insert(format!("t{i}"), json!(format!("{i}.safetensors")));
    }
    let checkpoint = sharded();
    checkpoint.json("model.safetensors.index.json", &json!({"weight_map": map}));
    checkpoint.refuses(&["more than 4096 files"]);
}

#[test]
fn truncated_and_overlapping_files_are_refused() {
    let whole = safetensors(&tensors());
    let checkpoint = Checkpoint::new();
    let cuts = (0..whole.len()).step_by(7).chain([whole.len() - 1]);
    for len in cuts {
        checkpoint
            .file("model.safetensors", &whole[..len])
            .refuses(&["model.safetensors", "truncated"]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    checkpoint.file("model.safetensors", &longer).refuses(&["extended"]);

    for length in [whole.len() as u64, 1 << 27, u64::MAX, u64::MAX - 7] {
        let mut file = whole.clone();
        file[..8].copy_from_slice(&length.to_le_bytes());
        let error = checkpoint.file("model.safetensors", &file).refuses(&["header"]);
        assert!(matches!(error, ConvertError::InvalidSafetensors { .. }));
    }

    let two = |a: [usize; 2], b: [usize; 2]| {
        let header = json!({
            "x": {"dtype": "F32", "shape": [2], "data_offsets": a},
            "y": {"dtype": "F32", "shape": [2], "data_offsets": b},
        });
        let error = checkpoint
            .file("model.safetensors", from_parts(&header.to_string(), &[0; 16]))
            .refuses(&["model.safetensors"]);
        assert!(matches!(error, ConvertError::InvalidSafetensors { .. }), "{error}");
    };
    two([0, 8], [4, 12]);
    two([0, 8], [0, 8]);
    two([0, 8], [16, 24]);
    two([8, 0], [8, 16]);
    two([0, 8], [8, usize::MAX]);
    two([0, 4], [4, 16]);

    for header in [
        r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,16]}}"#,
        r#"{"x":{"dtype":"Q9","shape":[4],"data_offsets":[0,16]}}"#,
        r#"{"x":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#,
        r#"{"x":{"dtype":"F32","shape":[4]}}"#,
        r#"{"x":[]}"#,
        "[]",
        "\u{0}\u{0}",
    ] {
        let error = checkpoint
            .file("model.safetensors", from_parts(header, &[0; 16]))
            .refuses(&["model.safetensors"]);
        assert!(matches!(error, ConvertError::InvalidSafetensors { .. }), "{header}: {error}");
    }
    checkpoint
        .file("model.safetensors", from_parts("\"\u{ff}\"", b""))
        .refuses(&["model.safetensors"]);
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_refused_by_name() {
    let checkpoint = Checkpoint::new();
    checkpoint.set("intermediate_size", json!(7)).refuses(&[
        "mlp.gate_proj.weight",
        "layers.0.mlp.gate",
        "[7, 4]",
        "[6, 4]",
    ]);
    checkpoint
        .set("num_hidden_layers", json!(2))
        .refuses(&["model.layers.1.input_layernorm.weight"]);
    checkpoint.set("attention_bias", json!(true)).refuses(&["self_attn.q_proj.bias"]);
    checkpoint
        .set("tie_word_embeddings", json!(false))
        .refuses(&["lm_head.weight", "set `tie_word_embeddings` to true"]);

    let checkpoint = Checkpoint::new();
    let mut more = tensors();
    more.push(("model.layers.0.self_attn.q_norm.weight", vec![2]));
    checkpoint.file("model.safetensors", safetensors(&more));
    checkpoint.refuses(&["self_attn.q_norm.weight", "`llama`", "not ignored"]);
    more.push(("model.layers.1.input_layernorm.weight", vec![4]));
    checkpoint.file("model.safetensors", safetensors(&more)).refuses(&["1 others"]);

    let mut buffers = tensors();
    buffers.push(("model.layers.0.self_attn.rotary_emb.inv_freq", vec![1]));
    checkpoint.file("model.safetensors", safetensors(&buffers));
    checkpoint.open().unwrap();
}

#[test]
fn a_stored_tied_head_must_be_the_embedding() {
    // Equal: both are tensor 0 of their file.
    let checkpoint = Checkpoint::empty();
    checkpoint.json("config.json", &config());
    checkpoint.file("a.safetensors", safetensors(&tensors()));
    checkpoint.file("b.safetensors", safetensors(&[("lm_head.weight", vec![8, 4])]));
    let index = json!({"weight_map":
        {"model.embed_tokens.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}});
    checkpoint.json("model.safetensors.index.json", &index);
    let source = checkpoint.open().unwrap();
    assert!(source.spec().tied_head && source.tensor("head").is_err());

    let checkpoint = Checkpoint::new();
    let mut more = tensors();
    more.push(("lm_head.weight", vec![8, 4]));
    checkpoint.file("model.safetensors", safetensors(&more));
    checkpoint.refuses(&["tie_word_embeddings", "lm_head.weight", "model.embed_tokens.weight"]);

    checkpoint.set("tie_word_embeddings", json!(false));
    let source = checkpoint.open().unwrap();
    let mut row = [0.0; 4];
    source.tensor("head").unwrap().decode_row(0, &mut row);
    assert_eq!(row[0], 1100.0);
}

#[test]
fn other_parts_of_a_multimodal_checkpoint_are_left_out() {
    let checkpoint = Checkpoint::empty();
    let text = json!({
        "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 2, "num_key_value_heads": 2,
    });
    checkpoint.json("config.json", &json!({"model_type": "gemma3", "text_config": text}));
    for (prefix, vision) in [
        ("language_model.model.", "vision_tower."),
        ("model.language_model.", "model.vision_tower."),
    ] {
        let mut names: Vec<(String, Vec<usize>)> = Vec::new();
        for (name, shape) in tensors() {
            names.push((name.replace("model.", prefix), shape));
        }
        for (part, n) in [
            ("self_attn.q_norm", 2),
            ("self_attn.k_norm", 2),
            ("pre_feedforward_layernorm", 4),
            ("post_feedforward_layernorm", 4),
        ] {
            names.push((format!("{prefix}layers.0.{part}.weight"), vec![n]));
        }
        names.push((format!("{vision}embeddings.weight"), vec![3]));
        let all: Vec<_> =
            names.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect();
        checkpoint.file("model.safetensors", safetensors(&all));
        let source = checkpoint.open().unwrap();
        assert!(source.notes()[0].contains("vision"));
    }
}

#[test]
fn directories_that_are_no_checkpoint_are_refused_with_a_remedy() {
    let checkpoint = Checkpoint::empty();
    checkpoint.refuses(&["config.json", "no such file", "Hugging Face"]);
    checkpoint
        .json("config.json", &config())
        .refuses(&["model.safetensors", "no safetensors weights"]);
    checkpoint.file("adapter_model.safetensors", "").refuses(&["LoRA"]);
    checkpoint.file("pytorch_model.bin", "").refuses(&["pickle", "save_pretrained"]);
    let error = gristmill_convert::HfCheckpoint::open(&checkpoint.path().join("config.json"));
    assert!(matches!(error, Err(ConvertError::NotADirectory { .. })));

    let checkpoint = Checkpoint::empty();
    fs::create_dir(checkpoint.path().join("config.json")).unwrap();
    checkpoint.refuses(&["config.json", "not a regular file"]);

    // A sparse file claims a size that nobody reads.
    let checkpoint = Checkpoint::new();
    let file = fs::File::create(checkpoint.path().join("config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    checkpoint.refuses(&["config.json", "1099511627776", "16777216"]);
}

#[test]
fn fingerprints_follow_configuration_and_weights() {
    let checkpoint = Checkpoint::new();
    let first = checkpoint.open().unwrap().fingerprint();
    assert_eq!(first.len(), 32);
    assert_eq!(first, checkpoint.open().unwrap().fingerprint());
    let mut other = safetensors(&tensors());
    *other.last_mut().unwrap() ^= 1;
    checkpoint.file("model.safetensors", &other);
    let second = checkpoint.open().unwrap().fingerprint();
    assert_ne!(first, second, "same header, other weights");
    checkpoint.set("rope_theta", json!(5000.0));
    assert_ne!(second, checkpoint.open().unwrap().fingerprint());
}

#[test]
fn provenance_has_digests_licence_and_the_name_from_the_hub_cache() {
    let root = Checkpoint::empty();
    let dir = root.path().join("models--org--some--name/snapshots/abc123");
    fs::create_dir_all(&dir).unwrap();
    let mut config = config();
    config["_name_or_path"] = json!("org/base");
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(&tensors())).unwrap();
    fs::write(dir.join("LICENSE"), "Do as you like.").unwrap();
    let readme =
        "---\nlanguage: en\nlicense: apache-2.0\nlicense_name: \"x\"\n---\nlicense: none\n";
    fs::write(dir.join("README.md"), readme).unwrap();
    let source = gristmill_convert::HfCheckpoint::open(&dir).unwrap();
    assert_eq!(source.name_or_path(), Some("org/base"));
    let provenance = source.provenance(&Silent).unwrap();
    assert_eq!(provenance.source, "org/some--name");
    assert_eq!(provenance.revision.as_deref(), Some("abc123"));
    assert_eq!(provenance.licence.as_deref(), Some("apache-2.0, x\n\nDo as you like."));
    let expected = blake3::hash(config.to_string().as_bytes()).to_hex().to_string();
    assert_eq!(provenance.files[0].name, "config.json");
    assert_eq!(provenance.files[0].blake3, expected);

    let plain = Checkpoint::new();
    plain.file("README.md", "# license: not front matter\n");
    let source = plain.open().unwrap();
    assert_eq!(source.licence().statement(), None);
    let name = plain.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(source.provenance(&Silent).unwrap().source, name);
}

#[test]
fn hashing_can_be_cancelled() {
    #[derive(Debug)]
    struct Cancel;
    impl gristmill_formats::Progress for Cancel {
        fn begin(&self, _: &str, _: u64, _: &str) {}
        fn advance(&self, _: u64) {}
        fn note(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let checkpoint = Checkpoint::new();
    let result = checkpoint.open().unwrap().provenance(&Cancel);
    assert!(matches!(result, Err(ConvertError::Cancelled)));
}

#[test]
fn any_changed_byte_of_a_header_gives_a_model_or_an_error() {
    let checkpoint = Checkpoint::new();
    let whole = safetensors(&tensors());
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        let mut file = whole.clone();
        file[at] ^= 1 << (at % 8);
        checkpoint.file("model.safetensors", &file);
        if let Ok(source) = checkpoint.open() {
            check_tensors(&source).unwrap();
        }
    }
}

#[test]
fn other_kinds_of_tokenizer_are_noted() {
    let checkpoint = Checkpoint::new();
    let source = checkpoint.file("tokenizer.model", "").open().unwrap();
    assert!(source.notes()[0].contains("tokenizer.model"));
}
