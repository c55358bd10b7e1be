//! Memory of a comparison over a vocabulary of 262,144 tokens. Alone in its program, because it looks at the
//! memory of all of it.

use std::sync::Arc;

use gristmill_eval::{
    Protocol, QualityConfig, TextTokens, peak_memory, quality, reset_peak_memory,
};
use gristmill_formats::codec::Codec;
use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
    RopeScaling, RopeSpec,
};
use gristmill_formats::source::{GenerationDefaults, Layout, ModelSource, TensorData, TextAssets};
use gristmill_formats::tokenizer::TokenizerData;
use gristmill_formats::{SharedBytes, Silent};
use gristmill_runtime::{Engine, EngineConfig, Model};

const VOCAB: u32 = 262_144;
const WIDTH: u32 = 16;
const CTX: usize = 512;

/// One layer, and nearly nothing but a vocabulary.
#[derive(Debug)]
struct WideModel {
    spec: ModelSpec,
    seed: u64,
    text: TextAssets,
    generation: GenerationDefaults,
}

fn spec() -> ModelSpec {
    let norm = NormSpec { eps: 1e-5, plus_one: false };
    let block = |mixer| BlockSpec { pre_norm: norm, post_norm: None, mixer };
    let attention = AttentionSpec {
        heads: 1,
        kv_heads: 1,
        head_dim: WIDTH,
        scale: 0.25,
        window: None,
        softcap: None,
        qkv_bias: false,
        out_bias: false,
        qk_norm: None,
        rope: Some(RopeSpec { base: 10_000.0, scaling: RopeScaling::None }),
    };
    let mlp = MlpSpec { d_ff: 32, activation: Activation::Silu, bias: false };
    let blocks = vec![block(Mixer::Attention(attention)), block(Mixer::Mlp(mlp))];
    ModelSpec {
        architecture: "wide".into(),
        vocab_size: VOCAB,
        d_model: WIDTH,
        max_context: CTX as u32,
        embedding_scale: 1.0,
        tied_head: true,
        logit_softcap: None,
        final_norm: norm,
        layers: vec![LayerSpec { blocks }],
    }
}

impl ModelSource for WideModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, name: &str) -> gristmill_formats::Result<TensorData> {
        let spec = self.spec.tensors().into_iter().find(|t| t.name == name).expect("a known name");
        let count = spec.shape.iter().product::<u64>();
        let vector = spec.shape.len() == 1;
        let value = |i: u64| {
            let mixed = (i + self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            if vector { 1.0 } else { mixed as f32 / (1 << 23) as f32 - 1.0 }
        };
        let bytes = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
        Ok(TensorData {
            shape: spec.shape,
            codec: Codec::F32,
            layout: Layout::RowMajor,
            bytes: SharedBytes::from_vec(bytes),
        })
    }

    fn tokenizer(&self) -> gristmill_formats::Result<Option<TokenizerData>> {
        Ok(None)
    }

    fn text(&self) -> &TextAssets {
        &self.text
    }

    fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    fn file_bytes(&self) -> u64 {
        self.spec.parameter_count() * 4
    }

    fn fingerprint(&self) -> String {
        format!("wide-{}", self.seed)
    }
}

fn engine(seed: u64) -> Engine {
    let (text, generation) = Default::default();
    let model = Model::load(Arc::new(WideModel { spec: spec(), seed, text, generation }));
    let config = EngineConfig { threads: Some(2), context: Some(CTX), ..EngineConfig::default() };
    Engine::new(Arc::new(model.expect("a complete model")), &config).expect("a small engine")
}

#[test]
fn logits_of_a_window_are_never_held_together() {
    let (mut student, mut reference) = (engine(1), engine(2));
    let ids = (0..CTX as u32).map(|i| i.wrapping_mul(2_654_435_761) % VOCAB).collect();
    let text = TextTokens::new(b"text", ids, None);
    let config = QualityConfig { ctx: CTX, ..QualityConfig::new(Protocol::Chunk) };
    let before = reset_peak_memory().then(peak_memory).flatten();
    let report =
        quality(&mut student, Some(&mut reference), &text, &config, &Silent).expect("measured");
    assert_eq!(report.tokens, 255);
    let kld = report.kld.expect("there is a reference");
    assert!(kld.mean > 0.0 && kld.mean.is_finite());
    // The logits of the scored half of one window take 510 MiB, for both models together.
    let (Some(before), Some(after)) = (before, peak_memory()) else { return };
    // 64 MiB of logits are the measurement's own; each engine has 32 rows, which it touches only now.
    let grown = after.saturating_sub(before) >> 20;
    assert!(grown < 64 + 2 * 32 + 64, "{grown} MiB more than before");
}
