//! Ids of a few tokens from `tokenizer.json`, without building its vocabulary in memory.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::files::parse_json;
use crate::{ConvertError, Result};

pub(super) const TOKENIZER_FILE: &str = "tokenizer.json";

#[derive(Deserialize)]
struct Added {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

/// A token outside the model's vocabulary.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
}

/// The `added_tokens` of a `tokenizer.json`.
pub(super) fn added_tokens(json: &[u8]) -> Result<Vec<AddedToken>> {
    Ok(parse_json::<Added>(TOKENIZER_FILE, json)?.added_tokens)
}

/// Ids of the given texts in `model.vocab`, which maps texts to ids or lists pairs of text and score.
pub(super) fn find_in_vocab<'a>(json: &[u8], texts: &[&'a str]) -> Result<HashMap<&'a str, u32>> {
    let mut found = HashMap::new();
    let mut parser = serde_json::Deserializer::from_slice(json);
    let field =
        Field { name: "model", inner: Field { name: "vocab", inner: Vocab(texts, &mut found) } };
    field
        .deserialize(&mut parser)
        .map_err(|source| ConvertError::Json { file: TOKENIZER_FILE.into(), source })?;
    Ok(found)
}

/// One field of an object; the others are skipped.
struct Field<S> {
    name: &'static str,
    inner: S,
}

impl<'de, S: DeserializeSeed<'de, Value = ()>> DeserializeSeed<'de> for Field<S> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: DeserializeSeed<'de, Value = ()>> Visitor<'de> for Field<S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with `{}`", self.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut inner = Some(self.inner);
        while let Some(key) = map.next_key::<String>()? {
            match inner.take() {
                Some(seed) if key == self.name => map.next_value_seed(seed)?,
                kept => {
                    inner = kept;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct Vocab<'a, 'b>(&'b [&'a str], &'b mut HashMap<&'a str, u32>);

impl<'de> DeserializeSeed<'de> for Vocab<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Vocab<'_, '_> {
    fn see(&mut self, text: &str, id: u32) {
        if let Some(wanted) = self.0.iter().find(|wanted| **wanted == text) {
            self.1.entry(wanted).or_insert(id);
        }
    }
}

impl<'de> Visitor<'de> for Vocab<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary: an object of ids or a list of pairs")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((text, id)) = map.next_entry::<String, u32>()? {
            self.see(&text, id);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        let mut id = 0u32;
        while let Some((text, _)) = seq.next_element::<(String, IgnoredAny)>()? {
            self.see(&text, id);
            id = id.saturating_add(1);
        }
        Ok(())
    }
}
