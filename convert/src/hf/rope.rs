//! Rotary position embedding from both spellings: `rope_theta` with `rope_scaling` (transformers 4) and
//! `rope_parameters` (transformers 5).

use gristmill_formats::limits::MAX_CONTEXT;
use gristmill_formats::model::{RopeScaling, RopeSpec};
use serde_json::{Map, Value};

use super::config::{CONFIG_FILE, Config, is_off, shown};
use crate::{ConvertError, Result};

/// Keys of `config.json` that this module reads.
pub(super) const THETA: &str = "rope_theta";
const SCALING: &str = "rope_scaling";
const PARAMETERS: &str = "rope_parameters";
const LOCAL_THETA: &str = "rope_local_base_freq";

/// Keys that each type of rotation reads, beyond type and base.
const TYPES: &[(&str, &[&str])] = &[
    ("default", &[]),
    ("linear", &["factor"]),
    (
        "llama3",
        &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
    ),
];

/// Keys that every type may have. The original context does not enter the formulas of `default` and
/// `linear`; a partial rotation is refused by its value.
const COMMON_KEYS: &[&str] =
    &["rope_type", "type", THETA, "original_max_position_embeddings", "partial_rotary_factor"];

/// What stands outside the object and applies to it.
#[derive(Debug, Clone, Copy)]
struct Fallback {
    theta: Option<f64>,
    default_theta: f64,
    max_context: u32,
}

/// The rotation of a model whose layers all have the same.
pub(super) fn uniform(
    config: &Config<'_>,
    default_theta: f64,
    max_context: u32,
) -> Result<RopeSpec> {
    let fallback = Fallback { theta: config.positive(THETA)?, default_theta, max_context };
    let mut found: Option<RopeSpec> = None;
    for key in [SCALING, PARAMETERS] {
        let Some(map) = config.object(key)? else { continue };
        let spec = Object { config, path: key.into(), map }.rope(fallback)?;
        if found.as_ref().is_some_and(|first| *first != spec) {
            return Err(config.contradiction(format!(
                "`{SCALING}` and `{PARAMETERS}` describe different rotations; remove the wrong one"
            )));
        }
        found = Some(spec);
    }
    Ok(found.unwrap_or(RopeSpec {
        base: fallback.theta.unwrap_or(default_theta),
        scaling: RopeScaling::None,
    }))
}

/// The rotations of full-attention and of sliding-window layers (Gemma 3).
pub(super) fn per_layer_type(
    config: &Config<'_>,
    default_theta: (f64, f64),
    max_context: u32,
) -> Result<(RopeSpec, RopeSpec)> {
    let full =
        Fallback { theta: config.positive(THETA)?, default_theta: default_theta.0, max_context };
    let sliding = Fallback {
        theta: config.positive(LOCAL_THETA)?,
        default_theta: default_theta.1,
        max_context,
    };
    let scaling = config.object(SCALING)?;
    let Some(parameters) = config.object(PARAMETERS)? else {
        // The old spelling scales the full-attention layers only.
        let empty = Map::new();
        let map = scaling.unwrap_or(&empty);
        let full = Object { config, path: SCALING.into(), map }.rope(full)?;
        let map = &empty;
        let sliding = Object { config, path: SCALING.into(), map }.rope(sliding)?;
        return Ok((full, sliding));
    };
    if scaling.is_some() {
        return Err(config.contradiction(format!(
            "both `{SCALING}` and `{PARAMETERS}` are given; remove the one that does not apply"
        )));
    }
    let kinds = ["full_attention", "sliding_attention"];
    if let Some((key, value)) =
        parameters.iter().find(|(key, value)| !kinds.contains(&key.as_str()) && !is_off(value))
    {
        return Err(ConvertError::UnknownKey {
            file: CONFIG_FILE.into(),
            key: config.nested(PARAMETERS, key),
            value: shown(value),
        });
    }
    let read = |kind: &str, fallback| {
        let path = format!("{PARAMETERS}.{kind}");
        let empty = Map::new();
        let map = match parameters.get(kind) {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(map)) => map,
            Some(value) => {
                return Err(ConvertError::InvalidValue {
                    file: CONFIG_FILE.into(),
                    key: config.nested(PARAMETERS, kind),
                    found: shown(value),
                    expected: "an object".into(),
                });
            }
        };
        Object { config, path, map }.rope(fallback)
    };
    Ok((read(kinds[0], full)?, read(kinds[1], sliding)?))
}

/// An object that describes one rotation.
struct Object<'a> {
    config: &'a Config<'a>,
    path: String,
    map: &'a Map<String, Value>,
}

impl Object<'_> {
    fn rope(&self, outside: Fallback) -> Result<RopeSpec> {
        let kind = self.kind()?;
        let Some((_, keys)) = TYPES.iter().find(|(name, _)| *name == kind) else {
            let supported: Vec<_> = TYPES.iter().map(|(name, _)| *name).collect();
            let key = if self.map.contains_key("rope_type") { "rope_type" } else { "type" };
            return Err(self.unsupported(key, &supported.join(", ")));
        };
        for (key, value) in self.map {
            if !keys.contains(&key.as_str())
                && !COMMON_KEYS.contains(&key.as_str())
                && !is_off(value)
            {
                return Err(ConvertError::UnknownKey {
                    file: CONFIG_FILE.into(),
                    key: self.config.nested(&self.path, key),
                    value: shown(value),
                });
            }
        }
        if self.positive("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(self.unsupported("partial_rotary_factor", "1 (rotation of the whole head)"));
        }
        let inside = self.positive(THETA)?;
        if let (Some(inside), Some(outside)) = (inside, outside.theta)
            && inside != outside
        {
            return Err(self.config.contradiction(format!(
                "the base of the rotation is {outside} outside `{path}` and {inside} in \
                 `{path}.{THETA}`; remove the wrong one",
                path = self.path
            )));
        }
        let base = inside.or(outside.theta).unwrap_or(outside.default_theta);
        let scaling = match kind {
            "linear" => RopeScaling::Linear { factor: self.required("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: self.required("factor")?,
                low_freq_factor: self.required("low_freq_factor")?,
                high_freq_factor: self.required("high_freq_factor")?,
                original_context: self.original_context()?.unwrap_or(outside.max_context),
            },
            _ => RopeScaling::None,
        };
        Ok(RopeSpec { base, scaling })
    }

    /// The type of rotation; old files call the key `type`.
    fn kind(&self) -> Result<&str> {
        let read = |key: &str| match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(kind)) => Ok(Some(kind.as_str())),
            Some(_) => Err(self.invalid(key, "a string")),
        };
        match (read("rope_type")?, read("type")?) {
            (Some(a), Some(b)) if a != b => Err(self.config.contradiction(format!(
                "`{path}.rope_type` is \"{a:.80}\" and `{path}.type` is \"{b:.80}\"; remove the wrong one",
                path = self.path
            ))),
            (Some(kind), _) | (None, Some(kind)) => Ok(kind),
            (None, None) => Ok("default"),
        }
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(self.invalid(key, "a positive number")),
            },
        }
    }

    fn required(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.invalid(key, "a positive number"))
    }

    fn original_context(&self) -> Result<Option<u32>> {
        let key = "original_max_position_embeddings";
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(n) if (1..=MAX_CONTEXT).contains(&n) => Ok(Some(n)),
                _ => Err(self.invalid(key, "a positive whole number")),
            },
        }
    }

    fn shown(&self, key: &str) -> String {
        self.map.get(key).map_or_else(|| "absent".into(), shown)
    }

    fn invalid(&self, key: &str, expected: &str) -> ConvertError {
        ConvertError::InvalidValue {
            file: CONFIG_FILE.into(),
            key: self.config.nested(&self.path, key),
            found: self.shown(key),
            expected: expected.into(),
        }
    }

    fn unsupported(&self, key: &str, supported: &str) -> ConvertError {
        ConvertError::UnsupportedValue {
            file: CONFIG_FILE.into(),
            key: self.config.nested(&self.path, key),
            value: self.shown(key),
            supported: supported.into(),
        }
    }
}
