//! Special tokens, stop tokens, the chat template and sampling defaults.

use std::path::Path;

use gristmill_formats::source::{GenerationDefaults, SpecialToken, TextAssets};
use serde_json::{Map, Value};

use super::arch::{Imported, token_ids};
use super::config::{is_off, shown};
use super::files::{parse_json, read_optional};
use super::vocabulary::{self, TOKENIZER_FILE};
use crate::limits::{MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, MAX_TOKENIZER_CONFIG_BYTES};
use crate::{ConvertError, Result};

const GENERATION_FILE: &str = "generation_config.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_JSON_FILE: &str = "chat_template.json";

/// Every file that [`TextFiles::read`] may read.
pub(super) const FILES: &[&str] = &[
    GENERATION_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    TEMPLATE_JSON_FILE,
];

/// Keys of `generation_config.json` that change what is generated and that gristmill's sampler does not
/// have, with the value that switches each off. They are defaults that the user may override, so they
/// are reported and not refused.
const OTHER_SAMPLING_KEYS: &[(&str, f64)] = &[
    ("num_beams", 1.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("bad_words_ids", 0.0),
    ("suppress_tokens", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("forced_bos_token_id", -1.0),
    ("forced_eos_token_id", -1.0),
    ("sequence_bias", 0.0),
    ("penalty_alpha", 0.0),
    ("stop_strings", 0.0),
];

/// Names of the special tokens in `tokenizer_config.json`.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

type Object = Map<String, Value>;

/// The text files of a checkpoint, as read. All are optional.
#[derive(Debug, Default)]
pub(super) struct TextFiles {
    pub(super) tokenizer: Option<Vec<u8>>,
    tokenizer_config: Option<Object>,
    special_tokens: Option<Object>,
    generation: Option<Object>,
    template: Option<String>,
    template_json: Option<Object>,
}

impl TextFiles {
    /// Reads what is there.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let object = |name: &str, max| -> Result<Option<Object>> {
            match read_optional(&dir.join(name), max)? {
                None => Ok(None),
                Some(bytes) => parse_json(name, &bytes).map(Some),
            }
        };
        let template = match read_optional(&dir.join(TEMPLATE_FILE), MAX_CONFIG_BYTES)? {
            None => None,
            Some(bytes) => {
                Some(String::from_utf8(bytes).map_err(|e| ConvertError::InvalidValue {
                    file: TEMPLATE_FILE.into(),
                    key: "the text".into(),
                    found: format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to()),
                    expected: "UTF-8".into(),
                })?)
            }
        };
        Ok(Self {
            tokenizer: read_optional(&dir.join(TOKENIZER_FILE), MAX_TOKENIZER_BYTES)?,
            tokenizer_config: object(TOKENIZER_CONFIG_FILE, MAX_TOKENIZER_CONFIG_BYTES)?,
            special_tokens: object(SPECIAL_TOKENS_FILE, MAX_CONFIG_BYTES)?,
            generation: object(GENERATION_FILE, MAX_CONFIG_BYTES)?,
            template,
            template_json: object(TEMPLATE_JSON_FILE, MAX_CONFIG_BYTES)?,
        })
    }

    /// Special tokens, stop ids and template. `notes` receives what the user should know.
    pub(super) fn assets(&self, model: &Imported, notes: &mut Vec<String>) -> Result<TextAssets> {
        let mut special = self.special_tokens(notes)?;
        if self.tokenizer_config.is_none() && self.special_tokens.is_none() {
            // Nothing but ids is known; their texts are in the tokenizer.
            let ids = [model.bos, model.eos.first().copied()];
            for (token, text) in special.iter_mut().zip(self.texts(&ids)?) {
                *token = text;
            }
        }
        let [bos, eos, pad, unk] = special;
        let mut stop_ids = Vec::new();
        let mut add = |ids: Vec<u32>| {
            for id in ids {
                if !stop_ids.contains(&id) {
                    stop_ids.push(id);
                }
            }
        };
        if let Some(value) = self.generation.as_ref().and_then(|g| g.get("eos_token_id")) {
            add(token_ids(GENERATION_FILE, "eos_token_id", value)?);
        }
        add(model.eos.clone());
        add(eos.iter().map(|token| token.id).collect());
        Ok(TextAssets { bos, eos, pad, unk, stop_ids, chat_template: self.chat_template(notes)? })
    }

    /// The special tokens that `tokenizer_config.json` or, failing that, `special_tokens_map.json` name.
    fn special_tokens(&self, notes: &mut Vec<String>) -> Result<[Option<SpecialToken>; 4]> {
        let mut named: Vec<(usize, &'static str, &str)> = Vec::new();
        for (i, key) in SPECIAL.iter().enumerate() {
            for (file, object) in [
                (TOKENIZER_CONFIG_FILE, &self.tokenizer_config),
                (SPECIAL_TOKENS_FILE, &self.special_tokens),
            ] {
                let Some(value) = object.as_ref().and_then(|o| o.get(*key)) else { continue };
                // `null` is an answer too: the model has no such token.
                if let Some(text) = token_text(file, key, value)? {
                    named.push((i, file, text));
                }
                break;
            }
        }
        let texts: Vec<&str> = named.iter().map(|(_, _, text)| *text).collect();
        let ids = self.ids(&texts)?;
        let mut special = [const { None }; 4];
        for ((i, file, text), id) in named.into_iter().zip(ids) {
            match id {
                Some(id) => special[i] = Some(SpecialToken { text: text.into(), id }),
                // Without a tokenizer no text can be tokenized either.
                None if self.tokenizer.is_none() => {}
                None if i < 2 => {
                    return Err(ConvertError::InvalidValue {
                        file: file.into(),
                        key: SPECIAL[i].into(),
                        found: shown(&Value::from(text)),
                        expected: format!(
                            "a token of {TOKENIZER_FILE}; the two files are of different tokenizers"
                        ),
                    });
                }
                None => notes.push(format!(
                    "{file}: `{}` {} is not in {TOKENIZER_FILE}; left out",
                    SPECIAL[i],
                    shown(&Value::from(text))
                )),
            }
        }
        Ok(special)
    }

    /// Ids of tokens by their texts: added tokens first, then the vocabulary.
    fn ids(&self, texts: &[&str]) -> Result<Vec<Option<u32>>> {
        let mut ids = vec![None; texts.len()];
        if texts.is_empty() {
            return Ok(ids);
        }
        if let Some(json) = &self.tokenizer {
            let added = vocabulary::added_tokens(json)?;
            for (id, text) in ids.iter_mut().zip(texts) {
                *id = added.iter().find(|token| token.content == *text).map(|token| token.id);
            }
            if ids.contains(&None) {
                let found = vocabulary::find_in_vocab(json, texts)?;
                for (id, text) in ids.iter_mut().zip(texts) {
                    *id = id.or_else(|| found.get(text).copied());
                }
            }
        } else if let Some(added) = self.added_tokens_decoder() {
            for (id, text) in ids.iter_mut().zip(texts) {
                *id = added
                    .iter()
                    .find(|(_, token)| token.get("content").and_then(Value::as_str) == Some(text))
                    .and_then(|(id, _)| id.parse().ok());
            }
        }
        Ok(ids)
    }

    fn added_tokens_decoder(&self) -> Option<&Object> {
        self.tokenizer_config.as_ref()?.get("added_tokens_decoder")?.as_object()
    }

    /// Texts of tokens by their ids, as far as they are added tokens (special tokens are).
    fn texts(&self, ids: &[Option<u32>]) -> Result<Vec<Option<SpecialToken>>> {
        let Some(json) = &self.tokenizer else { return Ok(vec![None; ids.len()]) };
        let added = vocabulary::added_tokens(json)?;
        let text = |id: u32| {
            let token = added.iter().find(|token| token.id == id)?;
            Some(SpecialToken { text: token.content.clone(), id })
        };
        Ok(ids.iter().map(|id| id.and_then(text)).collect())
    }

    /// The template: its own file, then `tokenizer_config.json`, then `chat_template.json`.
    fn chat_template(&self, notes: &mut Vec<String>) -> Result<Option<String>> {
        if let Some(template) = &self.template {
            return Ok(Some(template.clone()));
        }
        for (file, object) in [
            (TOKENIZER_CONFIG_FILE, &self.tokenizer_config),
            (TEMPLATE_JSON_FILE, &self.template_json),
        ] {
            let Some(value) = object.as_ref().and_then(|o| o.get("chat_template")) else {
                continue;
            };
            if !is_off(value) {
                return named_template(file, value, notes);
            }
        }
        Ok(None)
    }

    /// Sampling defaults. `notes` receives what the sampler does not have.
    pub(super) fn generation(&self, notes: &mut Vec<String>) -> Result<GenerationDefaults> {
        let Some(object) = &self.generation else { return Ok(GenerationDefaults::default()) };
        for (key, neutral) in OTHER_SAMPLING_KEYS {
            let Some(value) = object.get(*key) else { continue };
            if !is_off(value) && value.as_f64() != Some(*neutral) {
                notes.push(format!("{GENERATION_FILE}: `{key}` {} is not applied", shown(value)));
            }
        }
        let number = |key: &str, min: f64, max: f64| match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if (min..=max).contains(&x) => Ok(Some(x as f32)),
                _ => Err(invalid_generation(key, value, &format!("a number from {min} to {max}"))),
            },
        };
        let do_sample = match object.get("do_sample") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(on)) => Some(*on),
            Some(value) => return Err(invalid_generation("do_sample", value, "true or false")),
        };
        let top_k = match object.get("top_k") {
            None | Some(Value::Null) => None,
            // Some files write -1 for "no limit", which is 0 here.
            Some(value) if value.as_i64() == Some(-1) => Some(0),
            Some(value) => match value.as_u64().and_then(|k| u32::try_from(k).ok()) {
                Some(k) => Some(k),
                None => return Err(invalid_generation("top_k", value, "a whole number")),
            },
        };
        let largest = f64::from(f32::MAX);
        Ok(GenerationDefaults {
            do_sample,
            temperature: number("temperature", 0.0, largest)?,
            top_k,
            top_p: number("top_p", 0.0, 1.0)?,
            min_p: number("min_p", 0.0, 1.0)?,
            repetition_penalty: number(
                "repetition_penalty",
                f64::from(f32::MIN_POSITIVE),
                largest,
            )?,
        })
    }
}

fn invalid_generation(key: &str, value: &Value, expected: &str) -> ConvertError {
    ConvertError::InvalidValue {
        file: GENERATION_FILE.into(),
        key: key.into(),
        found: shown(value),
        expected: expected.into(),
    }
}

/// A special token is a string or an object with its text in `content`.
fn token_text<'a>(file: &str, key: &str, value: &'a Value) -> Result<Option<&'a str>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Object(token) => match token.get("content") {
            Some(Value::String(text)) => Ok(Some(text)),
            _ => Err(invalid_token(file, key, value)),
        },
        _ => Err(invalid_token(file, key, value)),
    }
}

fn invalid_token(file: &str, key: &str, value: &Value) -> ConvertError {
    ConvertError::InvalidValue {
        file: file.into(),
        key: key.into(),
        found: shown(value),
        expected: "a string, an object with `content`, or null".into(),
    }
}

/// A template is a string, a list of `{name, template}`, or an object of templates by name.
fn named_template(file: &str, value: &Value, notes: &mut Vec<String>) -> Result<Option<String>> {
    let invalid = || ConvertError::InvalidValue {
        file: file.into(),
        key: "chat_template".into(),
        found: shown(value),
        expected: "a template, or a list of objects with `name` and `template`".into(),
    };
    let templates: Vec<(&str, &str)> = match value {
        Value::String(template) => return Ok(Some(template.clone())),
        Value::Array(items) => items
            .iter()
            .map(|item| {
                let name = item.get("name")?.as_str()?;
                Some((name, item.get("template")?.as_str()?))
            })
            .collect::<Option<_>>()
            .ok_or_else(invalid)?,
        Value::Object(map) => map
            .iter()
            .map(|(name, template)| Some((name.as_str(), template.as_str()?)))
            .collect::<Option<_>>()
            .ok_or_else(invalid)?,
        _ => return Err(invalid()),
    };
    match templates.iter().find(|(name, _)| *name == "default") {
        Some((_, template)) => Ok(Some((*template).into())),
        None => {
            notes.push(format!("{file}: no chat template is named `default`; none is used"));
            Ok(None)
        }
    }
}
