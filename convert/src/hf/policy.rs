//! Which keys of `config.json` matter, as data. A key is *used* by its architecture, *harmless* for
//! inference, or *restricted* to values that leave the result alone. Any other key is refused unless its
//! value switches it off.

/// Keys that have no influence on the logits, whatever their value.
pub(super) const HARMLESS: &[&str] = &[
    // Where the file came from, and for which program.
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "_from_model_config",
    "transformers_version",
    "transformers.js_config",
    "unsloth_version",
    "unsloth_fixed",
    "license",
    "is_llama_config",
    // How transformers runs it.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "attn_implementation",
    "_flash_attn_2_enabled",
    "cache_implementation",
    "use_cache",
    "dtype",
    "torch_dtype",
    "torchscript",
    "use_bfloat16",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "tie_last_hidden_states",
    "return_dict",
    "use_return_dict",
    "is_decoder",
    // Training.
    "attention_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "residual_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "classifier_dropout",
    "gradient_checkpointing",
    "initializer_range",
    "neftune_noise_alpha",
    // Other tasks.
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "prefix",
    "problem_type",
    "task_specific_params",
    "tokenizer_class",
    // Token ids; `eos_token_id` becomes a stop token, the others belong to the tokenizer.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    // Generation options of old checkpoints; generation_config.json has replaced them.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Values that a restricted key may have. `null`, `false` and empty values are always among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Only switched off.
    Off,
    /// Also the number 1.
    One,
}

/// A key that changes the result unless it has one of the allowed values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Restricted {
    /// The key.
    pub(super) key: &'static str,
    /// Its allowed values.
    pub(super) allowed: Allowed,
    /// What is supported, for the error.
    pub(super) supported: &'static str,
}

const fn off(key: &'static str, supported: &'static str) -> Restricted {
    Restricted { key, allowed: Allowed::Off, supported }
}

const fn one(key: &'static str, supported: &'static str) -> Restricted {
    Restricted { key, allowed: Allowed::One, supported }
}

/// Keys that are known to change the result, with what is supported of them.
pub(super) const RESTRICTED: &[Restricted] = &[
    one("pretraining_tp", "1"),
    one("partial_rotary_factor", "1 (rotation of the whole head)"),
    off("quantization_config", "full-precision checkpoints (BF16, F16, F32)"),
    off("compression_config", "full-precision checkpoints (BF16, F16, F32)"),
    off("attention_chunk_size", "full and sliding-window attention"),
    off("use_bidirectional_attention", "causal attention"),
    off("is_encoder_decoder", "decoder-only models"),
    off("add_cross_attention", "decoder-only models"),
    off("cross_attention_hidden_size", "decoder-only models"),
    off("pruned_heads", "layers with all their heads"),
    off("per_layer_config", "one configuration for all layers"),
    off(
        "auto_map",
        "models without code of their own; remove the key if the model does not need it",
    ),
];
