//! Bounds on what is read into memory. Weights are mapped and have no bound of their own.

/// Largest `config.json`, `generation_config.json`, `special_tokens_map.json` or chat template.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Largest `tokenizer_config.json` (it may list every added token).
pub const MAX_TOKENIZER_CONFIG_BYTES: u64 = 64 << 20;
/// Largest `tokenizer.json`.
pub const MAX_TOKENIZER_BYTES: u64 = gristmill_formats::limits::MAX_TOKENIZER_BYTES as u64;
/// Largest `model.safetensors.index.json`.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Largest header of a safetensors file, as in the format's reference implementation.
pub const MAX_SAFETENSORS_HEADER_BYTES: u64 = 100_000_000;
/// Largest number of safetensors files in one checkpoint.
pub const MAX_SHARDS: usize = 4096;
/// Largest licence file.
pub const MAX_LICENCE_BYTES: u64 = 1 << 20;
/// How much of a README is searched for its front matter.
pub const MAX_FRONT_MATTER_BYTES: u64 = 64 << 10;
/// Largest number of token ids in an `eos_token_id` list.
pub const MAX_STOP_IDS: usize = 1024;
