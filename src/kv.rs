//! The `--kv` argument: a type of the key/value cache, or a measured choice.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use gristmill_eval::{KvChoice, choose_kv};
use gristmill_quantize::Calibration;
use gristmill_runtime::{EngineConfig, KvType, Model};

use crate::measure;
use crate::progress::TerminalProgress;
use crate::render;
use crate::source::Source;

/// Bytes of the built-in text that a choice is measured on: more than enough tokens.
const PROBE_BYTES: usize = 16 << 10;

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvArg {
    /// The smallest type that costs little.
    Auto,
    /// This one.
    Is(KvType),
}

impl KvArg {
    /// The names, as users type them.
    pub(crate) fn all() -> impl Iterator<Item = (&'static str, Self)> {
        KvType::ALL.map(|kv| (kv.name(), Self::Is(kv))).into_iter().chain([("auto", Self::Auto)])
    }

    /// As users type it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Is(kv) => kv.name(),
        }
    }

    /// The type, with what was measured for it, if it was; `config` is how engines are built. What is
    /// chosen is told on standard error.
    pub(crate) fn resolve(
        self,
        source: &Source,
        model: impl FnOnce() -> Result<Arc<Model>>,
        config: &EngineConfig,
    ) -> Result<(KvType, Option<KvChoice>)> {
        if let Self::Is(kv) = self {
            return Ok((kv, None));
        }
        let text = Calibration::built_in_text();
        let text = &text[..text.floor_char_boundary(PROBE_BYTES)];
        let tokens = measure::tokenize(&source.tokenizer()?, text)?;
        let progress = TerminalProgress::new();
        let (kv, choice) = choose_kv(&model()?, config, &tokens, &progress)
            .context("cannot choose a type for the key/value cache")?;
        drop(progress);
        let mut line = format!("KV {}: divergence from f16", kv.name());
        for (i, measured) in choice.measured.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(line, "{comma} {} {:.4}", measured.kv, measured.kld);
        }
        let _ = write!(line, " on {} tokens, at most {}", choice.tokens, choice.max_kld);
        render::note(line);
        Ok((kv, Some(choice)))
    }
}
