//! A model described for llama.cpp: what is said, under which name, and what is refused.

use gristmill_convert::{GgufOrigin, gguf_model, spec_from_config};
use gristmill_formats::gguf::{GgufData, GgufModel, GgufTensor, RowOrder, Value};
use gristmill_formats::model::{Mixer, ModelSpec, RopeScaling};
use gristmill_formats::source::{
    GenerationDefaults, ModelSource, SpecialToken, TensorData, TextAssets,
};
use gristmill_formats::tokenizer::TokenizerData;
use gristmill_formats::{FormatError, Result};

/// A model without weights.
#[derive(Debug)]
struct Described {
    spec: ModelSpec,
    tokenizer: Option<TokenizerData>,
    text: TextAssets,
}

impl ModelSource for Described {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn tensor(&self, name: &str) -> Result<TensorData> {
        Err(FormatError::MissingTensor(name.into()))
    }
    fn tokenizer(&self) -> Result<Option<TokenizerData>> {
        Ok(self.tokenizer.clone())
    }
    fn text(&self) -> &TextAssets {
        &self.text
    }
    fn generation(&self) -> &GenerationDefaults {
        const NONE: GenerationDefaults = GenerationDefaults {
            do_sample: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
        };
        &NONE
    }
    fn file_bytes(&self) -> u64 {
        0
    }
    fn fingerprint(&self) -> String {
        String::new()
    }
}

fn fixture(path: &str) -> Vec<u8> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
    std::fs::read(format!("{root}/{path}")).expect("a fixture")
}

fn spec(name: &str) -> ModelSpec {
    spec_from_config(&fixture(&format!("architectures/{name}/config.json"))).expect("a model")
}

fn describe(spec: ModelSpec) -> gristmill_convert::Result<GgufModel> {
    let source = Described { spec, tokenizer: None, text: TextAssets::default() };
    gguf_model(&source, GgufOrigin::default())
}

fn tensor<'a>(model: &'a GgufModel, name: &str) -> &'a GgufTensor {
    model.tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name} is missing"))
}

fn order_and_addend(model: &GgufModel, name: &str) -> (RowOrder, f32) {
    match &tensor(model, name).data {
        GgufData::Source { order, add, .. } => (*order, *add),
        GgufData::Values(_) => panic!("{name} is a tensor of the source"),
    }
}

#[test]
fn llama_rotates_neighbouring_pairs() {
    let spec = spec("llama2");
    let head_dim = 8;
    let model = describe(spec.clone()).expect("a model");
    let pairs = RowOrder::RotaryPairs { head_dim };
    for (name, order) in [
        ("blk.1.attn_q.weight", pairs),
        ("blk.1.attn_k.weight", pairs),
        ("blk.1.attn_v.weight", RowOrder::Same),
        ("blk.1.attn_output.weight", RowOrder::Same),
        ("token_embd.weight", RowOrder::Same),
    ] {
        assert_eq!(order_and_addend(&model, name), (order, 0.0), "{name}");
    }
    assert_eq!(model.tensors.len(), spec.tensors().len());
    assert_eq!(model.tied_head, !model.tensors.iter().any(|t| t.name == "output.weight"));
    let get = |key: &str| model.metadata.get(key).cloned();
    assert_eq!(get("general.architecture"), Some(Value::Text("llama".into())));
    assert_eq!(get("llama.block_count"), Some(Value::U32(2)));
    assert_eq!(get("llama.context_length"), Some(Value::U32(256)));
    assert_eq!(get("llama.embedding_length"), Some(Value::U32(32)));
    assert_eq!(get("llama.attention.key_length"), Some(Value::U32(head_dim as u32)));
    assert_eq!(get("llama.rope.freq_base"), Some(Value::F32(10_000.0)));
    assert_eq!(get("tokenizer.ggml.model"), Some(Value::Text("no_vocab".into())));
}

#[test]
fn llama3_has_its_frequencies_as_a_tensor() {
    let spec = spec("llama3");
    let model = describe(spec.clone()).expect("a model");
    let GgufData::Values(divisors) = &tensor(&model, "rope_freqs.weight").data else {
        panic!("values of their own");
    };
    let Mixer::Attention(attention) = &spec.layers[0].blocks[0].mixer else { panic!("attention") };
    let rope = attention.rope.clone().expect("a rotation");
    let RopeScaling::Llama3 { factor, .. } = rope.scaling else { panic!("Llama 3's") };
    assert_eq!(divisors.len() as u32, attention.head_dim / 2);
    assert_eq!(divisors[0], 1.0, "the highest frequency is kept");
    assert_eq!(f64::from(divisors[divisors.len() - 1]), factor, "the lowest is divided");
}

#[test]
fn gemma_stores_whole_gains() {
    let mut spec = spec("gemma3");
    // The fixture scales attention in a way of its own.
    for layer in &mut spec.layers {
        let Mixer::Attention(a) = &mut layer.blocks[0].mixer else { panic!("attention") };
        a.scale = f64::from(a.head_dim).powf(-0.5) as f32;
    }
    let model = describe(spec).expect("a model");
    for name in [
        "blk.0.attn_norm.weight",
        "blk.0.post_attention_norm.weight",
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_norm.weight",
        "blk.0.post_ffw_norm.weight",
        "output_norm.weight",
    ] {
        assert_eq!(order_and_addend(&model, name), (RowOrder::Same, 1.0), "{name}");
    }
    assert_eq!(order_and_addend(&model, "blk.0.attn_q.weight"), (RowOrder::Same, 0.0));
    assert_eq!(model.metadata.get("gemma3.attention.sliding_window"), Some(&Value::U32(9)));
    assert_eq!(model.metadata.get("gemma3.rope.freq_base"), Some(&Value::F32(20_000.0)));
    assert_eq!(model.metadata.get("gemma3.rope.freq_base_swa"), Some(&Value::F32(200.0)));
}

#[test]
fn what_llama_cpp_does_otherwise_is_named() {
    let refused = |spec: ModelSpec| describe(spec).expect_err("refused").to_string();
    let with = |name: &str, change: &dyn Fn(&mut ModelSpec)| {
        let mut spec = spec(name);
        change(&mut spec);
        refused(spec)
    };
    let attention = |spec: &mut ModelSpec,
                     f: &dyn Fn(&mut gristmill_formats::model::AttentionSpec)| {
        for layer in &mut spec.layers {
            if let Mixer::Attention(a) = &mut layer.blocks[0].mixer {
                f(a);
            }
        }
    };
    let cases = [
        (refused(spec("mistral")), "a sliding window"),
        (refused(spec("gemma3")), "attention scale"),
        (with("llama2", &|s| s.architecture = "new".into()), "architecture `new`"),
        (with("llama2", &|s| s.embedding_scale = 2.0), "embedding scale 2"),
        (with("llama2", &|s| s.logit_softcap = Some(30.0)), "a cap on the logits"),
        (with("qwen2", &|s| attention(s, &|a| a.qkv_bias = false)), "biases of q, k and v"),
        (with("qwen3", &|s| attention(s, &|a| a.qk_norm = None)), "norms of q and k"),
        (with("llama2", &|s| attention(s, &|a| a.rope = None)), "attention without positions"),
        (
            with("qwen2", &|s| {
                attention(s, &|a| {
                    a.rope.as_mut().expect("a rotation").scaling = RopeScaling::Llama3 {
                        factor: 8.0,
                        low_freq_factor: 1.0,
                        high_freq_factor: 4.0,
                        original_context: 64,
                    };
                });
            }),
            "Llama 3's scaling",
        ),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
}

/// A model of enough embeddings with a tokenizer.
fn with_tokenizer(json: &[u8], text: TextAssets) -> gristmill_convert::Result<GgufModel> {
    let mut spec = spec("llama2");
    spec.vocab_size = 512;
    let tokenizer = Some(TokenizerData::from_json(json).expect("a tokenizer"));
    gguf_model(&Described { spec, tokenizer, text }, GgufOrigin::default())
}

fn token(text: &str, id: u32) -> Option<SpecialToken> {
    Some(SpecialToken { text: text.into(), id })
}

#[test]
fn pre_tokenizers_have_llama_cpps_names() {
    for (tokenizer, name, bos) in [
        ("gpt2", "gpt-2", false),
        ("smollm", "smollm", false),
        ("qwen2", "qwen2", false),
        ("llama3", "llama-bpe", true),
    ] {
        let json = fixture(&format!("tokenizers/{tokenizer}/tokenizer.json"));
        let text = TextAssets {
            bos: token("<|begin_of_text|>", 441),
            eos: token("<|eot_id|>", 442),
            stop_ids: vec![442, 443],
            ..TextAssets::default()
        };
        let metadata = with_tokenizer(&json, text).expect(tokenizer).metadata;
        let get = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}")).cloned();
        assert_eq!(get("model"), Some(Value::Text("gpt2".into())));
        assert_eq!(get("pre"), Some(Value::Text(name.into())));
        assert_eq!(get("add_bos_token"), Some(Value::Bool(bos)), "{tokenizer}");
        assert_eq!(get("eos_token_id"), Some(Value::U32(442)));
        assert_eq!(get("eot_token_id"), Some(Value::U32(443)));
        let Some(Value::Texts(tokens)) = get("tokens") else { panic!("tokens") };
        let Some(Value::I32s(types)) = get("token_type") else { panic!("token types") };
        assert_eq!((tokens.len(), types.len()), (512, 512), "one for every embedding");
        // Control, then filling; the last token of the vocabulary is an ordinary one.
        assert_eq!((types[442], types[511], types[439]), (3, 5, 1), "{tokenizer}");
        assert_eq!(tokens[511], "[PAD511]");
        let Some(Value::Texts(merges)) = get("merges") else { panic!("merges") };
        assert!(merges.iter().all(|merge| merge.split(' ').count() == 2));
    }
}

#[test]
fn tokenizers_that_llama_cpp_has_no_name_for_are_refused() {
    let refused =
        |json: &[u8]| with_tokenizer(json, TextAssets::default()).expect_err("refused").to_string();
    for spm in ["gemma", "sentencepiece"] {
        let error = refused(&fixture(&format!("tokenizers/{spm}/tokenizer.json")));
        assert!(error.contains("SentencePiece"), "{error}");
    }
    let json = String::from_utf8(fixture("tokenizers/gpt2/tokenizer.json")).expect("UTF-8");
    let mut json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let plain = json.clone();
    json["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"});
    assert!(refused(json.to_string().as_bytes()).contains("\"Whitespace\""));
    json = plain.clone();
    json["normalizer"] = serde_json::json!({"type": "Lowercase"});
    assert!(refused(json.to_string().as_bytes()).contains("\"Lowercase\""));
    json = plain;
    json["added_tokens"][0]["id"] = serde_json::json!(600);
    assert!(refused(json.to_string().as_bytes()).contains("token 600"));
}
