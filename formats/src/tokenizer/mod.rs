//! The tokenizer inside a packed file.
//!
//! A `tokenizer.json` is mostly two tables that follow from each other: the texts of the vocabulary
//! and the merges of a byte-pair model. [`TokenizerData`] keeps both as numbers and short texts and
//! leaves the rest of the JSON as it is; the section of a packed file stores only the texts that no
//! merge spells.
//!
//! # The section, byte by byte
//!
//! All integers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | method: 0 stored, 1 brotli (RFC 7932, windows up to 16 MiB, not the large-window extension) |
//! | 2 | 2 | zero |
//! | 4 | 32 | BLAKE3 of the original `tokenizer.json` |
//! | 36 | 4 | length of the body after decompression, at most 64 times the stream's own |
//! | 40 | rest | the body, stored or as one brotli stream that ends with the section |
//!
//! The body:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | `json_len` |
//! | 4 | `vocab_len`, 0 when the JSON is whole |
//! | 4 | `merges_len` |
//! | 4 | `prefix_len`, bytes of the model's `continuing_subword_prefix`, which a merge drops from its right part |
//! | 4 | `text_len` |
//! | `json_len` | the JSON in UTF-8; `model.vocab` is `{}` and `model.merges` is `[]` when `vocab_len` is not 0 |
//! | ⌈`vocab_len` / 8⌉ | one bit per id, lowest bit first: 1 when the token is *explicit*; unused bits are 0 |
//! | ... | per explicit token, by increasing id, its length in bytes as LEB128 (shortest form, at most 32 bits) |
//! | `text_len` | the texts of the explicit tokens, by increasing id, UTF-8 |
//! | 6 × `merges_len` | six planes: lowest, middle and highest byte of the left ids, then of the right ids, best merge first |
//!
//! The other tokens are *derived*, and the merges say what they are. Walk the merges, best first.
//! Each one spells a text: the left token followed by the right token less its first `prefix_len`
//! bytes. When a token has that text already, the merge adds nothing; when none has, the text
//! belongs to the next derived id in increasing order. At the end no derived id may be left.
//! Derived texts may take at most 16 times the body's length, which keeps a few doubling merges
//! from asking for gigabytes.

mod merges;
mod section;
#[cfg(test)]
mod tests;
mod texts;

use serde_json::Value;

use crate::limits::MAX_TOKENIZER_BYTES;
use crate::{FormatError, Result};

/// A tokenizer in a form from which the runtime can build one.
///
/// Either `json` is whole and the tables are empty, or the model is a byte-pair model whose tables
/// are here. [`TokenizerData::from_json`] makes values in which every merge spells a token of
/// `vocab` and no text occurs twice; what is put together by hand must keep to that, or its section
/// will not be read back.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerData {
    /// `tokenizer.json` without `model.vocab` and `model.merges` when those are given below, else
    /// whole.
    pub json: String,
    /// Token texts by id, for byte-pair models.
    pub vocab: Vec<String>,
    /// Merges as pairs of ids, best first.
    pub merges: Vec<(u32, u32)>,
    /// BLAKE3 of the original `tokenizer.json`, hexadecimal.
    pub source_blake3: String,
}

impl TokenizerData {
    /// From the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is too large, not JSON or has no `model`.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        if json.len() > MAX_TOKENIZER_BYTES {
            return Err(FormatError::Unsupported(format!(
                "tokenizer.json has {} bytes, at most {MAX_TOKENIZER_BYTES} are supported",
                json.len()
            )));
        }
        let text = std::str::from_utf8(json)
            .map_err(|e| FormatError::Unsupported(format!("tokenizer.json is not UTF-8: {e}")))?;
        let mut value: Value = serde_json::from_str(text)
            .map_err(|e| FormatError::Unsupported(format!("tokenizer.json is not JSON: {e}")))?;
        let Some(model) = value.get_mut("model").filter(|model| model.is_object()) else {
            return Err(FormatError::Unsupported("tokenizer.json has no `model`".into()));
        };
        let source_blake3 = blake3::hash(json).to_hex().to_string();
        let (json, vocab, merges) = match merges::extract(model) {
            Some((vocab, merges)) => (value.to_string(), vocab, merges),
            None => (text.to_owned(), Vec::new(), Vec::new()),
        };
        Ok(Self { json, vocab, merges, source_blake3 })
    }

    /// Whether vocabulary and merges are in the tables instead of the JSON.
    pub fn is_compact(&self) -> bool {
        !self.vocab.is_empty()
    }

    /// The section of a packed file.
    pub fn to_section(&self) -> Vec<u8> {
        section::write(self)
    }

    /// From the section of a packed file.
    ///
    /// # Errors
    /// When the section is damaged or larger than its limits.
    pub fn from_section(section: &[u8]) -> Result<Self> {
        section::read(section)
    }

    /// Bytes of the prefix that a merge drops from its right part. 0 in all but a few old
    /// vocabularies.
    fn prefix_len(&self) -> usize {
        // Cheap: with tables the JSON is a few kilobytes of components and added tokens.
        let json: Option<Value> = serde_json::from_str(&self.json).ok();
        json.as_ref().and_then(|json| json.get("model")).map_or(0, merges::prefix_len)
    }
}
