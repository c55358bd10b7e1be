//! How text is cut before it is tokenised. llama.cpp knows its ways by name; which one a tokenizer
//! means follows from the structure of its JSON.

use serde_json::Value;

use super::not_in_gguf;
use crate::Result;

/// A pattern that cuts text, whether merges are skipped for words that are tokens themselves, and the
/// name of both together.
type Pattern = (&'static str, bool, &'static str);

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PATTERNS: [Pattern; 3] =
    [(LLAMA3, true, "llama-bpe"), (LLAMA3, false, "smaug-bpe"), (QWEN2, false, "qwen2")];

/// A step of a pre-tokenizer, as far as it is told apart.
#[derive(Debug, PartialEq)]
enum Step<'a> {
    /// Every digit on its own.
    Digits,
    /// Matches of a pattern, each on its own.
    Split(&'a str),
    /// Bytes as characters; whether GPT-2's pattern cuts first.
    Bytes { cut: bool },
}

/// llama.cpp's name for the pre-tokenizer of a byte-level tokenizer.
pub(super) fn name(json: &Value) -> Result<&'static str> {
    let unknown = |what: &str| not_in_gguf(format!("{what}; llama.cpp has no name for it"));
    let pre_tokenizer = &json["pre_tokenizer"];
    let steps = steps(pre_tokenizer)
        .ok_or_else(|| unknown(&format!("pre-tokenizer {}", shortened(pre_tokenizer))))?;
    let ignore_merges = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let found = match steps.as_slice() {
        [Step::Bytes { cut: true }] if !ignore_merges => Some("gpt-2"),
        [Step::Digits, Step::Bytes { cut: true }] if !ignore_merges => Some("smollm"),
        [Step::Split(pattern), Step::Bytes { cut: false }] => PATTERNS
            .iter()
            .find(|(known, ignores, _)| known == pattern && *ignores == ignore_merges)
            .map(|(_, _, name)| *name),
        _ => None,
    };
    let found = found.ok_or_else(|| {
        let merges = if ignore_merges { " with `ignore_merges`" } else { "" };
        unknown(&format!("pre-tokenizer {}{merges}", shortened(pre_tokenizer)))
    })?;
    // llama.cpp leaves composition out, for Qwen as for all; its own converter accepts that.
    let normalizer = &json["normalizer"];
    let composes = normalizer["type"] == "NFC" && found == "qwen2";
    if !normalizer.is_null() && !composes {
        return Err(unknown(&format!("normalizer {}", shortened(normalizer))));
    }
    Ok(found)
}

fn steps(pre_tokenizer: &Value) -> Option<Vec<Step<'_>>> {
    match pre_tokenizer["type"].as_str()? {
        "Sequence" => {
            let steps = pre_tokenizer["pretokenizers"].as_array()?;
            steps.iter().map(step).collect()
        }
        _ => Some(vec![step(pre_tokenizer)?]),
    }
}

fn step(step: &Value) -> Option<Step<'_>> {
    match step["type"].as_str()? {
        "Digits" if step["individual_digits"] == true => Some(Step::Digits),
        "ByteLevel" if step["add_prefix_space"] == false => {
            Some(Step::Bytes { cut: step["use_regex"].as_bool().unwrap_or(true) })
        }
        "Split" if step["behavior"] == "Isolated" && step["invert"] == false => {
            step["pattern"]["Regex"].as_str().map(Step::Split)
        }
        _ => None,
    }
}

/// The JSON of a component, short enough for an error.
pub(super) fn shortened(value: &Value) -> String {
    const MOST: usize = 400;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
