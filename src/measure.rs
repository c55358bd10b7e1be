//! What `eval`, `quantize --measure` and `demo` share: texts as tokens, engines for scoring.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use gristmill_eval::{QualityConfig, TextTokens};
use gristmill_runtime::text::Tokenizer;
use gristmill_runtime::{Engine, EngineConfig, Isa, KvType, Model};

use crate::error::WithHint;

/// Windows that a measurement takes when it is a by-product: the interval of the divergence is then a
/// few percent of it.
pub(crate) const BRIEF_WINDOWS: usize = 40;

/// What engines of a measurement have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) threads: Option<usize>,
    pub(crate) isa: Option<Isa>,
    pub(crate) context: usize,
}

impl Setup {
    pub(crate) fn config(&self) -> EngineConfig {
        EngineConfig {
            threads: self.threads,
            isa: self.isa,
            context: Some(self.context),
            ..EngineConfig::default()
        }
    }

    pub(crate) fn engine(&self, model: &Arc<Model>, kv: KvType) -> Result<Engine> {
        Ok(Engine::new(model.clone(), &EngineConfig { kv, ..self.config() })?)
    }
}

/// A file's text as it is: line ends and a byte-order mark included, because they are tokens, too.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let shown = path.display();
    let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    String::from_utf8(bytes)
        .map_err(|e| anyhow::anyhow!("{shown}: not UTF-8 at byte {}", e.utf8_error().valid_up_to()))
        .hint("give a plain text file")
}

/// The text's tokens, as the model's own tokenizer makes them.
pub(crate) fn tokenize(tokenizer: &Tokenizer, text: &str) -> Result<TextTokens> {
    let ids = tokenizer.encode(text, true)?;
    let bos = tokenizer.adds_bos().then(|| tokenizer.bos_id()).flatten();
    Ok(TextTokens::new(text.as_bytes(), ids, bos))
}

/// The protocol's usual window, cut to what the model takes.
pub(crate) fn config_for(model: &Model, mut config: QualityConfig) -> QualityConfig {
    config.ctx = config.ctx.min(model.spec().max_context as usize);
    config
}

/// Cache of the reference beside a model with another: the usual one, so that the divergence is that of
/// the weights, and shows the loss of a narrower cache when one is asked for.
pub(crate) fn reference_kv(kv: KvType) -> KvType {
    if kv == KvType::F32 { KvType::F32 } else { KvType::F16 }
}

/// Half the width of an interval.
pub(crate) fn half_width(interval: Option<[f64; 2]>) -> Option<f64> {
    interval.map(|[low, high]| (high - low) / 2.0)
}
