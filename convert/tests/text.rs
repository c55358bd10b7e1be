//! Special tokens, stop tokens, chat templates and sampling defaults.

mod checkpoint;

use checkpoint::Checkpoint;
use gristmill_formats::source::{GenerationDefaults, ModelSource, SpecialToken, TextAssets};
use serde_json::{Value, json};

fn token(text: &str, id: u32) -> Option<SpecialToken> {
    Some(SpecialToken { text: text.into(), id })
}

/// A tokenizer with two added tokens and a vocabulary of two.
fn tokenizer() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 5, "content": "<s>", "special": true}, {"id": 6, "content": "</s>"}],
        "model": {"type": "BPE", "vocab": {"a": 0, "<unk>": 1}, "merges": []}
    })
}

fn text(checkpoint: &Checkpoint) -> TextAssets {
    checkpoint.open().unwrap().text().clone()
}

#[test]
fn special_tokens_are_strings_or_objects() {
    let checkpoint = Checkpoint::new();
    checkpoint.json("tokenizer.json", &tokenizer()).json(
        "tokenizer_config.json",
        &json!({
            "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": false},
            "eos_token": "</s>", "pad_token": null, "unk_token": "<unk>"
        }),
    );
    let assets = text(&checkpoint);
    assert_eq!(assets.bos, token("<s>", 5));
    assert_eq!(assets.eos, token("</s>", 6));
    assert_eq!(assets.pad, None);
    assert_eq!(assets.unk, token("<unk>", 1), "from the vocabulary");
    // The class's default (2), since config.json says nothing, then the tokenizer's.
    assert_eq!(assets.stop_ids, [2, 6]);
}

#[test]
fn unigram_vocabularies_are_lists() {
    let checkpoint = Checkpoint::new();
    let mut tokenizer = tokenizer();
    tokenizer["model"] =
        json!({"type": "Unigram", "vocab": [["x", 0.0], ["y", -1.5], ["<unk>", -2.0]]});
    checkpoint.json("tokenizer.json", &tokenizer);
    checkpoint.json("tokenizer_config.json", &json!({"unk_token": "<unk>"}));
    assert_eq!(text(&checkpoint).unk, token("<unk>", 2));
}

#[test]
fn special_tokens_map_is_the_second_source_and_ids_the_last() {
    let checkpoint = Checkpoint::new();
    checkpoint
        .json("tokenizer.json", &tokenizer())
        .json("tokenizer_config.json", &json!({"bos_token": null}))
        .json(
            "special_tokens_map.json",
            &json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}),
        );
    let assets = text(&checkpoint);
    assert_eq!((assets.bos, assets.eos), (None, token("</s>", 6)), "null is an answer");

    let checkpoint = Checkpoint::new();
    checkpoint.json("tokenizer.json", &tokenizer()).set("eos_token_id", json!(6));
    let assets = text(&checkpoint);
    assert_eq!((assets.bos, assets.eos), (None, token("</s>", 6)));
    assert_eq!(assets.stop_ids, [6]);
}

#[test]
fn without_a_tokenizer_ids_come_from_the_decoder_table() {
    let checkpoint = Checkpoint::new();
    checkpoint.json(
        "tokenizer_config.json",
        &json!({
            "added_tokens_decoder": {"7": {"content": "<s>", "special": true}},
            "bos_token": "<s>", "eos_token": "nowhere"
        }),
    );
    let assets = text(&checkpoint);
    assert_eq!((assets.bos, assets.eos), (token("<s>", 7), None));
    assert_eq!(checkpoint.open().unwrap().tokenizer().unwrap(), None);
}

#[test]
fn tokens_of_another_tokenizer_are_refused_or_noted() {
    let checkpoint = Checkpoint::new();
    checkpoint.json("tokenizer.json", &tokenizer());
    checkpoint.json("tokenizer_config.json", &json!({"eos_token": "<end>"}));
    checkpoint.refuses(&["tokenizer_config.json", "eos_token", "<end>", "tokenizer.json"]);
    checkpoint.json("tokenizer_config.json", &json!({"pad_token": "<pad>"}));
    let source = checkpoint.open().unwrap();
    assert_eq!(source.text().pad, None);
    assert!(source.notes()[0].contains("<pad>"));
    checkpoint.json("tokenizer_config.json", &json!({"pad_token": 3}));
    checkpoint.refuses(&["pad_token", "content"]);
    checkpoint.json("tokenizer_config.json", &json!({"pad_token": {"text": "x"}}));
    checkpoint.refuses(&["pad_token", "content"]);
}

#[test]
fn damaged_tokenizers_are_refused_by_name() {
    let checkpoint = Checkpoint::new();
    checkpoint.json("tokenizer_config.json", &json!({"unk_token": "<unk>"}));
    for (json, part) in [
        ("{", "tokenizer.json"),
        (r#"{"added_tokens": [{"id": -1, "content": "x"}]}"#, "tokenizer.json"),
        (r#"{"model": {"vocab": 3}}"#, "a vocabulary"),
        (r#"{"model": 3}"#, "tokenizer.json"),
    ] {
        checkpoint.file("tokenizer.json", json).refuses(&[part]);
    }
}

#[test]
fn stop_ids_are_merged_in_order() {
    let checkpoint = Checkpoint::new();
    checkpoint
        .set("eos_token_id", json!([6, 3]))
        .json("generation_config.json", &json!({"eos_token_id": [4, 6]}))
        .json("tokenizer.json", &tokenizer())
        .json("tokenizer_config.json", &json!({"eos_token": "<s>"}));
    assert_eq!(text(&checkpoint).stop_ids, [4, 6, 3, 5]);
    checkpoint.json("generation_config.json", &json!({"eos_token_id": 9}));
    assert_eq!(text(&checkpoint).stop_ids, [9, 6, 3, 5]);
    checkpoint.json("generation_config.json", &json!({"eos_token_id": "x"}));
    checkpoint.refuses(&["generation_config.json", "eos_token_id", "\"x\""]);
    checkpoint.json("generation_config.json", &json!({"eos_token_id": vec![1; 5000]}));
    checkpoint.refuses(&["eos_token_id", "at most"]);
    checkpoint.json("generation_config.json", &json!({"eos_token_id": null}));
    checkpoint.set("eos_token_id", json!(-1));
    assert_eq!(text(&checkpoint).stop_ids, [5]);
}

#[test]
fn chat_templates_are_found_in_every_place() {
    let checkpoint = Checkpoint::new();
    assert_eq!(text(&checkpoint).chat_template, None);
    let template = || text(&checkpoint).chat_template;

    checkpoint.json("chat_template.json", &json!({"chat_template": "from json"}));
    assert_eq!(template().as_deref(), Some("from json"));

    checkpoint.json("tokenizer_config.json", &json!({"chat_template": "from config"}));
    assert_eq!(template().as_deref(), Some("from config"));
    checkpoint.json(
        "tokenizer_config.json",
        &json!({"chat_template": [
            {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}
        ]}),
    );
    assert_eq!(template().as_deref(), Some("plain"));
    checkpoint.json("tokenizer_config.json", &json!({"chat_template": {"default": "by name"}}));
    assert_eq!(template().as_deref(), Some("by name"));

    checkpoint.file("chat_template.jinja", "from file ü\n");
    assert_eq!(template().as_deref(), Some("from file ü\n"));
    checkpoint.file("chat_template.jinja", b"\xff").refuses(&["chat_template.jinja", "UTF-8"]);
}

#[test]
fn odd_chat_templates_are_refused_or_noted() {
    let checkpoint = Checkpoint::new();
    for odd in [json!(3), json!([{"name": "default"}]), json!(["x"]), json!({"default": 3})] {
        checkpoint.json("tokenizer_config.json", &json!({"chat_template": odd}));
        checkpoint.refuses(&["tokenizer_config.json", "chat_template"]);
    }
    checkpoint
        .json("tokenizer_config.json", &json!({"chat_template": [{"name": "a", "template": "b"}]}));
    let source = checkpoint.open().unwrap();
    assert_eq!(source.text().chat_template, None);
    assert!(source.notes()[0].contains("default"));
}

#[test]
fn generation_defaults_are_read_and_checked() {
    let checkpoint = Checkpoint::new();
    assert_eq!(*checkpoint.open().unwrap().generation(), GenerationDefaults::default());
    checkpoint.json(
        "generation_config.json",
        &json!({
            "_from_model_config": true, "bos_token_id": 1, "do_sample": true, "temperature": 0.7,
            "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.05, "num_beams": 1,
            "transformers_version": "4.51.0"
        }),
    );
    let source = checkpoint.open().unwrap();
    let expected = GenerationDefaults {
        do_sample: Some(true),
        temperature: Some(0.7),
        top_k: Some(20),
        top_p: Some(0.8),
        min_p: Some(0.05),
        repetition_penalty: Some(1.05),
    };
    assert_eq!(*source.generation(), expected);
    assert!(source.notes().is_empty());

    for (key, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("temperature", json!(1e300)),
        ("top_p", json!(1.5)),
        ("top_k", json!(1.5)),
        ("repetition_penalty", json!(0)),
        ("do_sample", json!(1)),
    ] {
        checkpoint.json("generation_config.json", &json!({key: value}));
        checkpoint.refuses(&["generation_config.json", key]);
    }
    checkpoint.json("generation_config.json", &json!({"num_beams": 4, "top_k": -1, "top_p": null}));
    let source = checkpoint.open().unwrap();
    assert_eq!(source.generation().top_k, Some(0));
    assert!(source.notes()[0].contains("num_beams"));
}
