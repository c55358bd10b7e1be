//! Choice of the element type of the key/value cache, by measurement.

use std::sync::Arc;

use gristmill_formats::Progress;
use gristmill_runtime::{Engine, EngineConfig, KvType, Model};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::quality::{Protocol, QualityConfig, TextTokens, quality};

/// What a cache may cost: the mean divergence from f16, in nats. It is less than what rounding the
/// reference model's weights to 5 bits costs (0.023), and five times what a packed
/// model shows after any change at all, because roundings of activations flip (0.003).
pub const MAX_KV_KLD: f64 = 0.015;

/// Tokens of a probe's window, at most, and windows: a prompt's length, a few seconds for small models.
const CTX: usize = 512;
const WINDOWS: usize = 2;

/// Types that are tried, smallest first.
const CANDIDATES: [KvType; 2] = [KvType::Int4, KvType::Int8];

/// What was measured, and what follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvChoice {
    /// The smallest type whose divergence is acceptable, else f16.
    pub kv: String,
    /// Largest divergence that is.
    pub max_kld: f64,
    /// Tokens compared.
    pub tokens: u64,
    /// BLAKE3 of the text.
    pub text_blake3: String,
    /// Types that were tried.
    pub measured: Vec<KvDivergence>,
}

/// Divergence of a type from f16.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvDivergence {
    /// The type.
    pub kv: String,
    /// Mean divergence, in nats.
    pub kld: f64,
}

/// Compares types of the cache with f16 on the beginning of a text, smallest first, until one is
/// acceptable. Engines are built as `config` says, but for type and context.
///
/// # Errors
/// When an engine cannot be built, the text is too short, or the user cancels.
pub fn choose_kv(
    model: &Arc<Model>,
    config: &EngineConfig,
    text: &TextTokens,
    progress: &dyn Progress,
) -> Result<(KvType, KvChoice)> {
    let ctx = CTX.min(model.spec().max_context as usize);
    let windows = Some(WINDOWS);
    let probe = QualityConfig { ctx, windows, ..QualityConfig::new(Protocol::Chunk) };
    let engine = |kv| {
        let config = EngineConfig { kv, context: Some(ctx), ..config.clone() };
        Engine::new(Arc::clone(model), &config)
    };
    let mut reference = engine(KvType::F16)?;
    let (mut measured, mut tokens) = (Vec::new(), 0);
    let mut chosen = KvType::F16;
    for kv in CANDIDATES {
        let report = quality(&mut engine(kv)?, Some(&mut reference), text, &probe, progress)?;
        tokens = report.tokens;
        let kld = report.kld.expect("there is a reference").mean;
        measured.push(KvDivergence { kv: kv.name().into(), kld });
        if kld <= MAX_KV_KLD {
            chosen = kv;
            break;
        }
    }
    let choice = KvChoice {
        kv: chosen.name().into(),
        max_kld: MAX_KV_KLD,
        tokens,
        text_blake3: text.text_blake3.clone(),
        measured,
    };
    Ok((chosen, choice))
}
