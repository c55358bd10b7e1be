//! The vocabulary of a byte-pair tokenizer as llama.cpp's metadata.

use gristmill_formats::gguf::Metadata;
use gristmill_formats::source::TextAssets;
use gristmill_formats::tokenizer::TokenizerData;
use serde_json::Value;

use super::not_in_gguf;
use super::pretokenizer::{self, shortened};
use crate::{ConvertError, Result};

/// Kinds of tokens (`enum llama_token_type`).
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Writes tokens, merges, special tokens and the chat template.
pub(super) fn write(
    tokenizer: &TokenizerData,
    text: &TextAssets,
    vocab_size: u32,
    metadata: &mut Metadata,
) -> Result<()> {
    let json: Value = serde_json::from_str(&tokenizer.json)
        .map_err(|source| ConvertError::Json { file: "tokenizer.json".into(), source })?;
    let model = &json["model"];
    let whole_words = ["continuing_subword_prefix", "end_of_word_suffix"]
        .iter()
        .all(|key| model[*key].as_str().is_none_or(str::is_empty));
    if model["type"] != "BPE" || !tokenizer.is_compact() || !whole_words {
        return Err(not_in_gguf(format!("a tokenizer of type {}", shortened(&model["type"]))));
    }
    if model["byte_fallback"] == true {
        return Err(not_in_gguf(
            "a SentencePiece vocabulary: its scores are not in tokenizer.json",
        ));
    }
    let pre = pretokenizer::name(&json)?;
    let (tokens, types) = tokens(tokenizer, &json, vocab_size)?;
    let merges = tokenizer.merges.iter().map(|&(left, right)| {
        format!("{} {}", tokenizer.vocab[left as usize], tokenizer.vocab[right as usize])
    });
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.pre", pre);
    metadata.set("tokenizer.ggml.tokens", tokens);
    metadata.set("tokenizer.ggml.token_type", types);
    metadata.set("tokenizer.ggml.merges", merges.collect::<Vec<_>>());
    special(&json, text, metadata)
}

/// Texts and kinds of all tokens. Embeddings often have rows beyond the last token.
fn tokens(
    tokenizer: &TokenizerData,
    json: &Value,
    vocab_size: u32,
) -> Result<(Vec<String>, Vec<i32>)> {
    let size = vocab_size as usize;
    let beyond = |id: u64| {
        not_in_gguf(format!("token {id}: the model has embeddings for {vocab_size} tokens only"))
    };
    if tokenizer.vocab.len() > size {
        return Err(beyond(tokenizer.vocab.len() as u64 - 1));
    }
    let mut tokens = tokenizer.vocab.clone();
    let mut types = vec![NORMAL; tokens.len()];
    tokens.extend((tokens.len()..size).map(|id| format!("[PAD{id}]")));
    types.resize(size, UNUSED);
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(id), Some(text)) = (added["id"].as_u64(), added["content"].as_str()) else {
            return Err(not_in_gguf(format!("added token {}", shortened(added))));
        };
        let at = usize::try_from(id).ok().filter(|at| *at < size).ok_or_else(|| beyond(id))?;
        tokens[at] = text.into();
        types[at] = if added["special"] == true { CONTROL } else { USER_DEFINED };
    }
    Ok((tokens, types))
}

/// Special tokens, what is put around a text, and the chat template.
fn special(json: &Value, text: &TextAssets, metadata: &mut Metadata) -> Result<()> {
    let named =
        [("bos", &text.bos), ("eos", &text.eos), ("unknown", &text.unk), ("padding", &text.pad)];
    for (name, token) in named {
        if let Some(token) = token {
            metadata.set(format!("tokenizer.ggml.{name}_token_id"), token.id);
        }
    }
    // The end of a turn, where that is not the end of the text.
    let eos = text.eos.as_ref().map(|token| token.id);
    if let Some(eot) = text.stop_ids.iter().find(|id| Some(**id) != eos) {
        metadata.set("tokenizer.ggml.eot_token_id", *eot);
    }
    let around = around(&json["post_processor"])?;
    let expected = [("bos", &text.bos), ("eos", &text.eos)];
    for ((name, token), found) in expected.into_iter().zip(around) {
        let fits = found.is_none_or(|found| token.as_ref().is_some_and(|t| t.text == found));
        if !fits {
            return Err(not_in_gguf(format!("a tokenizer that adds {found:?} where {name} goes")));
        }
        metadata.set(format!("tokenizer.ggml.add_{name}_token"), found.is_some());
    }
    metadata.set("tokenizer.ggml.add_space_prefix", false);
    if let Some(template) = &text.chat_template {
        metadata.set("tokenizer.chat_template", template.as_str());
    }
    Ok(())
}

/// The tokens that are put before and after a text.
fn around<'a>(post_processor: &'a Value) -> Result<[Option<&'a str>; 2]> {
    let unknown = || not_in_gguf(format!("post-processor {}", shortened(post_processor)));
    match post_processor["type"].as_str() {
        None if post_processor.is_null() => Ok([None, None]),
        // Changes offsets, not tokens.
        Some("ByteLevel") => Ok([None, None]),
        Some("Sequence") => {
            let mut both = [None, None];
            for part in post_processor["processors"].as_array().ok_or_else(unknown)? {
                for (all, one) in both.iter_mut().zip(around(part)?) {
                    *all = all.or(one);
                }
            }
            Ok(both)
        }
        Some("TemplateProcessing") => {
            let pieces = post_processor["single"].as_array().ok_or_else(unknown)?;
            let token = |piece: &'a Value| piece["SpecialToken"]["id"].as_str();
            let is_text = |piece: &Value| piece["Sequence"].is_object();
            match pieces.as_slice() {
                [text] if is_text(text) => Ok([None, None]),
                [bos, text] if is_text(text) && token(bos).is_some() => Ok([token(bos), None]),
                [text, eos] if is_text(text) && token(eos).is_some() => Ok([None, token(eos)]),
                [bos, text, eos]
                    if is_text(text) && token(bos).is_some() && token(eos).is_some() =>
                {
                    Ok([token(bos), token(eos)])
                }
                _ => Err(unknown()),
            }
        }
        _ => Err(unknown()),
    }
}
