//! `config.json` of every architecture in both spellings, and what is refused.

mod checkpoint;

use checkpoint::assert_says;
use gristmill_convert::{ConvertError, SUPPORTED_MODEL_TYPES, spec_from_config};
use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
    RopeScaling, RopeSpec,
};
use serde_json::{Value, json};

fn spec(config: &Value) -> ModelSpec {
    spec_from_config(config.to_string().as_bytes()).unwrap()
}

#[track_caller]
fn refuses(config: &Value, parts: &[&str]) -> ConvertError {
    let error = spec_from_config(config.to_string().as_bytes()).expect_err("should be refused");
    assert_says(&error, parts);
    error
}

fn with(config: &Value, changes: &Value) -> Value {
    let mut config = config.clone();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn without(config: &Value, keys: &[&str]) -> Value {
    let mut config = config.clone();
    for key in keys {
        config.as_object_mut().unwrap().shift_remove(*key);
    }
    config
}

fn attention(spec: &ModelSpec, layer: usize) -> &AttentionSpec {
    match &spec.layers[layer].blocks[0].mixer {
        Mixer::Attention(attention) => attention,
        Mixer::Mlp(_) => panic!("the first block is not attention"),
    }
}

fn rope(spec: &ModelSpec, layer: usize) -> RopeSpec {
    attention(spec, layer).rope.clone().unwrap()
}

fn windows(spec: &ModelSpec) -> Vec<Option<u32>> {
    (0..spec.layers.len()).map(|i| attention(spec, i).window).collect()
}

fn base(base: f64) -> RopeSpec {
    RopeSpec { base, scaling: RopeScaling::None }
}

/// Llama 3.2 1B as published, transformers 4.
fn llama_4() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3"
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
        "use_cache": true,
        "vocab_size": 128256
    })
}

/// The same in the spelling of transformers 5.
fn llama_5() -> Value {
    let mut config = without(&llama_4(), &["rope_theta", "rope_scaling", "torch_dtype"]);
    config["rope_parameters"] = llama_4()["rope_scaling"].clone();
    config["rope_parameters"]["rope_theta"] = json!(500000.0);
    config["dtype"] = json!("bfloat16");
    config
}

#[test]
fn llama_is_described_in_both_spellings() {
    let norm = NormSpec { eps: 1e-5, plus_one: false };
    let layer = LayerSpec {
        blocks: vec![
            BlockSpec {
                pre_norm: norm,
                post_norm: None,
                mixer: Mixer::Attention(AttentionSpec {
                    heads: 32,
                    kv_heads: 8,
                    head_dim: 64,
                    scale: 0.125,
                    window: None,
                    softcap: None,
                    qkv_bias: false,
                    out_bias: false,
                    qk_norm: None,
                    rope: Some(RopeSpec {
                        base: 500_000.0,
                        scaling: RopeScaling::Llama3 {
                            factor: 32.0,
                            low_freq_factor: 1.0,
                            high_freq_factor: 4.0,
                            original_context: 8192,
                        },
                    }),
                }),
            },
            BlockSpec {
                pre_norm: norm,
                post_norm: None,
                mixer: Mixer::Mlp(MlpSpec {
                    d_ff: 8192,
                    activation: Activation::Silu,
                    bias: false,
                }),
            },
        ],
    };
    let expected = ModelSpec {
        architecture: "llama".into(),
        vocab_size: 128_256,
        d_model: 2048,
        max_context: 131_072,
        embedding_scale: 1.0,
        tied_head: true,
        logit_softcap: None,
        final_norm: norm,
        layers: vec![layer; 16],
    };
    assert_eq!(spec(&llama_4()), expected);
    assert_eq!(spec(&llama_5()), expected);
    assert_eq!(expected.parameter_count(), 1_235_814_400, "as published: 1.24 B");
}

#[test]
fn llama_defaults_are_those_of_transformers() {
    let spec = spec(&json!({"model_type": "llama"}));
    assert_eq!((spec.vocab_size, spec.d_model, spec.max_context), (32_000, 4096, 2048));
    assert_eq!(spec.layers.len(), 32);
    assert!(!spec.tied_head);
    assert_eq!(spec.final_norm.eps, 1e-6);
    let attention = attention(&spec, 0);
    assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (32, 32, 128));
    assert_eq!(rope(&spec, 0), base(10_000.0));
    // Llama 2 7B has this shape.
    assert_eq!(spec.parameter_count(), 6_738_415_616);
}

#[test]
fn llama_head_dim_bias_and_null_keys() {
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "head_dim": null,
        "num_key_value_heads": null, "attention_bias": true, "mlp_bias": true, "num_hidden_layers": 1,
    });
    let spec = spec(&config);
    let attention = attention(&spec, 0);
    assert_eq!((attention.head_dim, attention.kv_heads), (16, 4));
    assert!(attention.qkv_bias && attention.out_bias);
    assert!(matches!(&spec.layers[0].blocks[1].mixer, Mixer::Mlp(mlp) if mlp.bias));
    refuses(
        &with(&config, &json!({"num_attention_heads": 5})),
        &["`hidden_size` 64 is no multiple of `num_attention_heads` 5"],
    );
}

#[test]
fn smollm2_keys_of_its_trainer_are_harmless() {
    let spec = spec(&json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
        "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152
    }));
    assert_eq!(spec.parameter_count(), 134_515_008);
    assert_eq!(rope(&spec, 29), base(100_000.0));
}

#[test]
fn linear_scaling_in_three_spellings() {
    let expected = RopeSpec { base: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
    for rope_keys in [
        json!({"rope_scaling": {"type": "linear", "factor": 4.0}}),
        json!({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}}),
        json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ] {
        let config = with(&json!({"model_type": "llama"}), &rope_keys);
        assert_eq!(rope(&spec(&config), 0), expected, "{rope_keys}");
    }
}

#[test]
fn llama3_scaling_falls_back_to_the_context_length() {
    let mut config = llama_5();
    config["rope_parameters"]
        .as_object_mut()
        .unwrap()
        .shift_remove("original_max_position_embeddings");
    let RopeScaling::Llama3 { original_context, .. } = rope(&spec(&config), 0).scaling else {
        panic!("not llama3")
    };
    assert_eq!(original_context, 131_072);
}

#[test]
fn rope_is_refused_when_unsupported_or_contradictory() {
    let llama = |keys: Value| with(&json!({"model_type": "llama"}), &keys);
    for kind in ["yarn", "dynamic", "longrope", "su", "mrope"] {
        let config = llama(json!({"rope_scaling": {"type": kind, "factor": 2.0}}));
        refuses(&config, &["rope_scaling.type", kind, "default, linear, llama3"]);
    }
    refuses(
        &llama(json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}})),
        &["rope_parameters.rope_type", "yarn"],
    );
    refuses(
        &llama(json!({"rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": true}})),
        &["unknown key `rope_scaling.finetuned`"],
    );
    refuses(
        &llama(json!({"rope_scaling": {"type": "default", "factor": 2.0}})),
        &["unknown key `rope_scaling.factor`"],
    );
    refuses(
        &llama(json!({"rope_scaling": {"type": "linear"}})),
        &["rope_scaling.factor", "absent", "a positive number"],
    );
    refuses(
        &llama(json!({"rope_scaling": {"type": "linear", "factor": 0}})),
        &["rope_scaling.factor", "0"],
    );
    refuses(
        &llama(json!({"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2}})),
        &["rope_scaling.rope_type", "rope_scaling.type"],
    );
    refuses(
        &llama(json!({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}})),
        &["1000000", "10000", "remove the wrong one"],
    );
    refuses(
        &llama(json!({
            "rope_scaling": {"type": "linear", "factor": 2},
            "rope_parameters": {"rope_type": "linear", "factor": 4}
        })),
        &["describe different rotations"],
    );
    refuses(
        &llama(json!({"rope_parameters": {"partial_rotary_factor": 0.5}})),
        &["0.5", "whole head"],
    );
    refuses(&llama(json!({"partial_rotary_factor": 0.5})), &["partial_rotary_factor", "0.5"]);
    refuses(&llama(json!({"rope_theta": "big"})), &["rope_theta", "\"big\"", "a positive number"]);
    refuses(&llama(json!({"rope_scaling": [1]})), &["rope_scaling", "an object"]);
}

#[test]
fn mistral_window_head_dim_and_defaults() {
    let mistral = json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 2,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "max_position_embeddings": 32768, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "vocab_size": 32000, "hidden_act": "silu",
    });
    // Absent is the default of the class, null is none.
    assert_eq!(windows(&spec(&mistral)), [Some(4096); 2]);
    assert_eq!(windows(&spec(&with(&mistral, &json!({"sliding_window": null})))), [None; 2]);
    assert_eq!(windows(&spec(&with(&mistral, &json!({"sliding_window": 11})))), [Some(11); 2]);
    assert_eq!(attention(&spec(&mistral), 0).head_dim, 128);
    let nemo = spec(&with(&mistral, &json!({"hidden_size": 5120, "head_dim": 128})));
    assert_eq!(attention(&nemo, 0).q_width(), 4096);
    let default = spec(&json!({"model_type": "mistral"}));
    assert_eq!((default.max_context, attention(&default, 0).kv_heads), (131_072, 8));
    let null = spec(&json!({"model_type": "mistral", "num_key_value_heads": null}));
    assert_eq!(attention(&null, 0).kv_heads, 32);

    let new = with(
        &without(&mistral, &["rope_theta", "torch_dtype"]),
        &json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "dtype": "bfloat16"}),
    );
    assert_eq!(spec(&new), spec(&mistral));
    refuses(&with(&mistral, &json!({"sliding_window": 0})), &["sliding_window", "0"]);
}

/// Qwen2.5 0.5B as published.
fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true,
        "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936
    })
}

#[test]
fn qwen2_has_biases_and_windows_only_on_request() {
    let old = spec(&qwen2());
    assert_eq!(old.architecture, "qwen2");
    assert_eq!(old.parameter_count(), 494_032_768, "as published: 0.49 B");
    assert_eq!(windows(&old), [None; 24]);
    assert!(attention(&old, 0).qkv_bias && !attention(&old, 0).out_bias);
    assert_eq!(attention(&old, 0).qk_norm, None);

    let on = spec(&with(&qwen2(), &json!({"use_sliding_window": true})));
    let expected: Vec<_> = (0..24).map(|i| (i >= 21).then_some(32_768)).collect();
    assert_eq!(windows(&on), expected);

    let new = with(
        &without(&qwen2(), &["rope_theta", "torch_dtype"]),
        &json!({
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "dtype": "bfloat16", "sliding_window": null, "layer_types": vec!["full_attention"; 24],
        }),
    );
    assert_eq!(spec(&new), old);
}

#[test]
fn layer_types_win_over_max_window_layers() {
    let types = |kind: &str| {
        with(&qwen2(), &json!({"num_hidden_layers": 2, "layer_types": ["full_attention", kind]}))
    };
    let on = with(
        &types("sliding_attention"),
        &json!({"use_sliding_window": true, "sliding_window": 9}),
    );
    assert_eq!(windows(&spec(&on)), [None, Some(9)]);
    refuses(&types("sliding_attention"), &["layer_types", "use_sliding_window"]);
    refuses(&types("chunked_attention"), &["layer_types", "chunked_attention", "full_attention"]);
    refuses(&with(&types("full_attention"), &json!({"num_hidden_layers": 3})), &["a list of 3"]);
}

#[test]
fn qwen3_norms_of_q_and_k() {
    let old = json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
        "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
    });
    let new = with(
        &without(&old, &["rope_theta", "rope_scaling"]),
        &json!({"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}),
    );
    let spec_old = spec(&old);
    assert_eq!(spec(&new), spec_old);
    assert_eq!(spec_old.parameter_count(), 596_049_920, "as published: 0.6 B");
    let norm = NormSpec { eps: 1e-6, plus_one: false };
    assert_eq!(attention(&spec_old, 0).qk_norm, Some(norm));
    assert!(!attention(&spec_old, 0).qkv_bias);
    // head_dim does not follow from the width.
    assert_eq!(attention(&spec(&without(&old, &["head_dim"])), 0).head_dim, 128);
    let biased = spec(&with(&old, &json!({"attention_bias": true})));
    assert!(attention(&biased, 0).qkv_bias && attention(&biased, 0).out_bias);
}

/// Gemma 3 1B as published.
fn gemma3() -> Value {
    json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid",
        "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144
    })
}

#[test]
fn gemma3_norms_scales_and_two_rotations() {
    let old = spec(&gemma3());
    assert_eq!(old.parameter_count(), 999_885_952, "as published: 1 B");
    let norm = NormSpec { eps: 1e-6, plus_one: true };
    assert_eq!(old.final_norm, norm);
    assert!(old.tied_head, "the default of this class");
    assert_eq!(old.embedding_scale, 1152f64.sqrt() as f32);
    for block in &old.layers[0].blocks {
        assert_eq!((block.pre_norm, block.post_norm), (norm, Some(norm)));
    }
    assert_eq!(attention(&old, 0).qk_norm, Some(norm));
    assert_eq!(attention(&old, 0).scale, 1.0 / 16.0);
    assert!(matches!(
        &old.layers[0].blocks[1].mixer,
        Mixer::Mlp(MlpSpec { activation: Activation::GeluTanh, d_ff: 6912, bias: false })
    ));
    for i in 0..26 {
        let full = i % 6 == 5;
        assert_eq!(attention(&old, i).window, (!full).then_some(512), "layer {i}");
        assert_eq!(rope(&old, i), base(if full { 1e6 } else { 1e4 }), "layer {i}");
    }

    let keys = [
        "rope_theta",
        "rope_local_base_freq",
        "rope_scaling",
        "sliding_window_pattern",
        "torch_dtype",
        "cache_implementation",
    ];
    let types: Vec<_> =
        (0..26).map(|i| if i % 6 == 5 { "full_attention" } else { "sliding_attention" }).collect();
    let new = with(
        &without(&gemma3(), &keys),
        &json!({
            "_sliding_window_pattern": 6, "layer_types": types, "dtype": "bfloat16",
            "tie_word_embeddings": true, "use_bidirectional_attention": false,
            "rope_parameters": {
                "full_attention": {"rope_theta": 1000000, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 10000, "rope_type": "default"}
            }
        }),
    );
    assert_eq!(spec(&new), old);
}

#[test]
fn gemma3_variations() {
    let query = spec(&with(&gemma3(), &json!({"query_pre_attn_scalar": 168})));
    assert_eq!(attention(&query, 0).scale, 168f64.powf(-0.5) as f32);
    let capped = spec(&with(&gemma3(), &json!({"final_logit_softcapping": 30.0})));
    assert_eq!(capped.logit_softcap, Some(30.0));
    let scaled = with(&gemma3(), &json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}));
    let scaled = spec(&scaled);
    assert_eq!(rope(&scaled, 0), base(1e4), "local layers are not scaled");
    assert_eq!(rope(&scaled, 5).scaling, RopeScaling::Linear { factor: 8.0 });
    let pattern = spec(&with(&gemma3(), &json!({"sliding_window_pattern": 2})));
    assert_eq!(&windows(&pattern)[..4], [Some(512), None, Some(512), None]);
    // Defaults for both bases.
    let bare = spec(&without(&gemma3(), &["rope_theta", "rope_local_base_freq"]));
    assert_eq!(bare, spec(&gemma3()));

    refuses(
        &with(&gemma3(), &json!({"attn_logit_softcapping": 50.0})),
        &["attn_logit_softcapping"],
    );
    refuses(&with(&gemma3(), &json!({"use_bidirectional_attention": true})), &["causal"]);
    refuses(&with(&gemma3(), &json!({"sliding_window": null})), &["sliding_window"]);
    refuses(
        &with(&gemma3(), &json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})),
        &["rope_parameters.rope_t"],
    );
    refuses(&with(&gemma3(), &json!({"_sliding_window_pattern": 5})), &["add `layer_types`"]);
}

#[test]
fn gemma3_multimodal_configuration_gives_the_text_model() {
    // Gemma 3 4B as published: most of the text model is left to defaults.
    let config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024
        },
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"}
    });
    let text = spec(&config);
    assert_eq!((text.vocab_size, text.d_model, text.layers.len()), (262_208, 2560, 34));
    let attention = attention(&text, 0);
    assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (8, 4, 256));
    assert_eq!(rope(&text, 5).scaling, RopeScaling::Linear { factor: 8.0 });
    let mut odd = config.clone();
    odd["text_config"]["foo"] = json!(1);
    refuses(&odd, &["unknown key `text_config.foo`"]);
    odd = with(&config, &json!({"bar": 1}));
    refuses(&odd, &["unknown key `bar`"]);
    odd = config.clone();
    odd["text_config"]["model_type"] = json!("gemma3n_text");
    refuses(&odd, &["text_config.model_type", "gemma3n_text"]);
    odd = with(&config, &json!({"tie_word_embeddings": false}));
    assert!(!spec(&odd).tied_head);
    odd["text_config"]["tie_word_embeddings"] = json!(true);
    refuses(&odd, &["tie_word_embeddings", "text_config.tie_word_embeddings"]);
}

#[test]
fn unknown_keys_are_refused_by_name_unless_switched_off() {
    for off in [json!(null), json!(false), json!(""), json!([]), json!({})] {
        spec(&with(&llama_4(), &json!({"foo": off})));
    }
    for on in [json!(true), json!(0), json!("x"), json!([0]), json!({"a": null})] {
        let error = refuses(&with(&llama_4(), &json!({"foo": on})), &["config.json", "`foo`"]);
        assert!(matches!(error, ConvertError::UnknownKey { .. }), "{error}");
    }
    // A key of one architecture is unknown to another.
    refuses(&with(&llama_4(), &json!({"query_pre_attn_scalar": 256})), &["query_pre_attn_scalar"]);
    refuses(&with(&llama_4(), &json!({"sliding_window": 512})), &["sliding_window", "512"]);
    let long = refuses(&with(&llama_4(), &json!({"foo": "é".repeat(10_000)})), &["…"]);
    assert!(long.to_string().len() < 500);
}

#[test]
fn values_that_change_the_result_are_refused_with_what_is_supported() {
    for (changes, parts) in [
        (json!({"hidden_act": "relu2"}), ["hidden_act", "relu2", "silu"]),
        (json!({"hidden_act": "gelu"}), ["hidden_act", "\"gelu\"", "gelu_pytorch_tanh"]),
        (json!({"pretraining_tp": 2}), ["pretraining_tp", "2", "supported: 1"]),
        (json!({"quantization_config": {"bits": 4}}), ["quantization_config", "bits", "BF16"]),
        (json!({"attention_chunk_size": 8192}), ["attention_chunk_size", "8192", "sliding-window"]),
        (json!({"is_encoder_decoder": true}), ["is_encoder_decoder", "true", "decoder-only"]),
        (json!({"auto_map": {"AutoModel": "m.M"}}), ["auto_map", "m.M", "code of their own"]),
    ] {
        let error = refuses(&with(&llama_4(), &changes), &parts);
        assert!(matches!(error, ConvertError::UnsupportedValue { .. }), "{error}");
    }
}

#[test]
fn unknown_architectures_are_refused_with_the_list() {
    for config in [
        json!({"model_type": "mixtral"}),
        json!({"model_type": 3}),
        json!({}),
        json!({"model_type": "x".repeat(5000)}),
    ] {
        let error = refuses(&config, SUPPORTED_MODEL_TYPES);
        assert!(error.to_string().len() < 400);
    }
    refuses(
        &with(&llama_4(), &json!({"architectures": ["LlamaForSequenceClassification"]})),
        &["LlamaForSequenceClassification", "LlamaForCausalLM"],
    );
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    for (key, value) in [
        ("num_hidden_layers", json!(4_000_000_000u32)),
        ("num_hidden_layers", json!(0)),
        ("hidden_size", json!(-1)),
        ("hidden_size", json!(1e30)),
        ("hidden_size", json!("4096")),
        ("vocab_size", json!(null)),
        ("vocab_size", json!(u64::MAX)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(2_000_000)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
        ("tie_word_embeddings", json!("yes")),
    ] {
        refuses(&with(&llama_4(), &json!({key: value})), &["config.json", key]);
    }
    // Each in range, together not.
    refuses(
        &with(&llama_4(), &json!({"head_dim": 1 << 20, "num_attention_heads": 4096})),
        &["wider"],
    );
    refuses(&with(&llama_4(), &json!({"num_key_value_heads": 5})), &["kv_heads"]);
    refuses(&with(&llama_4(), &json!({"head_dim": 63})), &["even head_dim"]);
}

#[test]
fn any_prefix_of_a_configuration_is_an_error_and_no_panic() {
    let text = gemma3().to_string();
    for end in 0..text.len() {
        assert!(spec_from_config(&text.as_bytes()[..end]).is_err());
    }
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_says(&spec_from_config(deep.as_bytes()).unwrap_err(), &["config.json", "recursion"]);
    assert!(spec_from_config(b"\xff\xfe").is_err());
    assert!(spec_from_config(b"[]").is_err());
}
