//! Strict reading of `config.json`: every access states a type and a range, and keys that nobody reads
//! are judged by [`super::policy`].

use std::fmt::Display;

use serde_json::{Map, Value};

use super::policy::{Allowed, HARMLESS, RESTRICTED};
use crate::{ConvertError, Result};

/// Name of the file in errors.
pub(super) const CONFIG_FILE: &str = "config.json";

/// How much of a value an error shows.
const SHOWN_CHARS: usize = 80;

/// An object of `config.json` with the keys that its reader uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Config<'a> {
    map: &'a Map<String, Value>,
    /// Path of the object within the file: empty, or `text_config.`.
    path: &'static str,
    used: &'static [&'static str],
}

/// A value as errors show it.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Whether a value switches its key off.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) => false,
    }
}

impl<'a> Config<'a> {
    /// Wraps an object after judging every key in it.
    ///
    /// # Errors
    /// [`ConvertError::UnknownKey`] or [`ConvertError::UnsupportedValue`] naming the key.
    pub(super) fn new(
        map: &'a Map<String, Value>,
        path: &'static str,
        used: &'static [&'static str],
    ) -> Result<Self> {
        let config = Self { map, path, used };
        for (key, value) in map {
            config.check_key(key, value)?;
        }
        Ok(config)
    }

    fn check_key(&self, key: &str, value: &Value) -> Result<()> {
        if self.used.contains(&key) || HARMLESS.contains(&key) || is_off(value) {
            return Ok(());
        }
        let Some(rule) = RESTRICTED.iter().find(|rule| rule.key == key) else {
            return Err(ConvertError::UnknownKey {
                file: CONFIG_FILE.into(),
                key: self.full_key(key),
                value: shown(value),
            });
        };
        match rule.allowed {
            Allowed::One if value.as_f64() == Some(1.0) => Ok(()),
            Allowed::Off | Allowed::One => Err(self.unsupported(key, rule.supported)),
        }
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// The value of a key; `None` when the key is absent. `null` is a value.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        debug_assert!(
            self.used.contains(&key) || HARMLESS.contains(&key),
            "`{key}` is read but not in the list of keys that are used"
        );
        self.map.get(key)
    }

    /// The value of a key; `None` when the key is absent or `null`.
    pub(super) fn non_null(&self, key: &str) -> Option<&'a Value> {
        self.get(key).filter(|value| !value.is_null())
    }

    /// The error for a value of the wrong type or out of range.
    pub(super) fn invalid(&self, key: &str, expected: impl Display) -> ConvertError {
        ConvertError::InvalidValue {
            file: CONFIG_FILE.into(),
            key: self.full_key(key),
            found: self.shown(key),
            expected: expected.to_string(),
        }
    }

    /// The error for a value that is understood but not implemented.
    pub(super) fn unsupported(&self, key: &str, supported: impl Display) -> ConvertError {
        ConvertError::UnsupportedValue {
            file: CONFIG_FILE.into(),
            key: self.full_key(key),
            value: self.shown(key),
            supported: supported.to_string(),
        }
    }

    fn shown(&self, key: &str) -> String {
        self.map.get(key).map_or_else(|| "absent".into(), shown)
    }

    /// A whole number from 1 to `max`; `None` when absent or `null`.
    pub(super) fn count(&self, key: &str, max: u32) -> Result<Option<u32>> {
        let Some(value) = self.non_null(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.invalid(key, format_args!("a whole number from 1 to {max}"))),
        }
    }

    /// Like [`Self::count`] with a default for an absent key; `null` is refused.
    pub(super) fn count_or(&self, key: &str, default: u32, max: u32) -> Result<u32> {
        match self.get(key) {
            None => Ok(default),
            Some(_) => self
                .count(key, max)?
                .ok_or_else(|| self.invalid(key, format_args!("a whole number from 1 to {max}"))),
        }
    }

    /// A positive finite number; `None` when absent or `null`.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.non_null(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(self.invalid(key, "a positive number")),
            },
        }
    }

    /// Like [`Self::positive`] with a default for an absent key; `null` is refused.
    pub(super) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(_) => self.positive(key)?.ok_or_else(|| self.invalid(key, "a positive number")),
        }
    }

    /// A truth value with a default for an absent key.
    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.invalid(key, "true or false")),
        }
    }

    /// A string with a default for an absent key.
    pub(super) fn string_or(&self, key: &str, default: &'static str) -> Result<&'a str> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.invalid(key, "a string")),
        }
    }

    /// An object; `None` when absent, `null` or empty.
    pub(super) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.non_null(key) {
            None => Ok(None),
            Some(Value::Object(map)) if map.is_empty() => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(self.invalid(key, "an object")),
        }
    }

    /// The error for keys that disagree.
    pub(super) fn contradiction(&self, detail: impl Into<String>) -> ConvertError {
        ConvertError::Contradiction { file: CONFIG_FILE.into(), detail: detail.into() }
    }

    /// The name of a nested key in errors.
    pub(super) fn nested(&self, key: &str, inner: &str) -> String {
        format!("{}{key}.{inner}", self.path)
    }
}
