//! Small models that between them use everything a description can say.

use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
    RopeScaling, RopeSpec,
};
use gristmill_formats::source::ModelSource;
use gristmill_quantize::network::{BlockParams, Matrix};

use crate::source::{Random, TestSource};

/// Tokens of a sequence: more than a tile of queries.
pub(crate) const SEQUENCE: usize = 150;

/// Grouped queries, Llama 3.1's rotation, an untied head.
fn llama() -> ModelSpec {
    let norm = NormSpec { eps: 1e-5, plus_one: false };
    let block = |mixer| BlockSpec { pre_norm: norm, post_norm: None, mixer };
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    let attention = AttentionSpec {
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        scale: 0.3,
        window: None,
        softcap: None,
        qkv_bias: false,
        out_bias: false,
        qk_norm: None,
        rope: Some(RopeSpec { base: 5000.0, scaling }),
    };
    let mlp = MlpSpec { d_ff: 56, activation: Activation::Silu, bias: false };
    let blocks = vec![block(Mixer::Attention(attention)), block(Mixer::Mlp(mlp))];
    ModelSpec {
        architecture: "llama".into(),
        vocab_size: 75,
        d_model: 40,
        max_context: 256,
        embedding_scale: 1.0,
        tied_head: false,
        logit_softcap: None,
        final_norm: norm,
        layers: vec![LayerSpec { blocks: blocks.clone() }, LayerSpec { blocks }],
    }
}

/// Changes every attention, feed-forward and block of a model.
fn changed(
    mut spec: ModelSpec,
    attention: impl Fn(usize, &mut AttentionSpec),
    mlp: impl Fn(&mut MlpSpec),
    block: impl Fn(&mut BlockSpec),
) -> ModelSpec {
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        for b in &mut layer.blocks {
            block(b);
            match &mut b.mixer {
                Mixer::Attention(a) => attention(i, a),
                Mixer::Mlp(m) => mlp(m),
            }
        }
    }
    spec
}

/// Biases everywhere, linear scaling in one layer and no positions in the other.
fn biased() -> ModelSpec {
    let attention = |layer: usize, a: &mut AttentionSpec| {
        (a.qkv_bias, a.out_bias) = (true, true);
        let scaling = RopeScaling::Linear { factor: 4.0 };
        a.rope = (layer == 0).then_some(RopeSpec { base: 1e4, scaling });
    };
    changed(llama(), attention, |m| m.bias = true, |_| ())
}

/// Gemma's: windows, caps, norms of heads and after blocks with gains from one, GELU, a tied and scaled
/// embedding.
fn gemma() -> ModelSpec {
    let norm = NormSpec { eps: 1e-3, plus_one: true };
    let attention = |layer: usize, a: &mut AttentionSpec| {
        a.window = (layer == 0).then_some(9);
        a.softcap = Some(2.0);
        a.qk_norm = Some(norm);
        a.rope = Some(RopeSpec { base: 200.0, scaling: RopeScaling::None });
    };
    let block = |b: &mut BlockSpec| (b.pre_norm, b.post_norm) = (norm, Some(norm));
    ModelSpec {
        embedding_scale: 3.0,
        tied_head: true,
        logit_softcap: Some(4.0),
        final_norm: norm,
        ..changed(llama(), attention, |m| m.activation = Activation::GeluTanh, block)
    }
}

/// The models, with random weights of the size that a trained model's have.
pub(crate) fn all() -> Vec<TestSource> {
    let models = [llama(), biased(), gemma()];
    models.map(|spec| TestSource::plausible(spec, 7)).into()
}

/// All blocks of a model, in order, with names for messages.
pub(crate) fn blocks(source: &dyn ModelSource) -> Vec<(String, BlockParams)> {
    let spec = source.spec();
    let layers = spec.layers.iter().enumerate();
    layers
        .flat_map(|(l, layer)| layer.blocks.iter().enumerate().map(move |(b, block)| (l, b, block)))
        .map(|(l, b, block)| {
            let name = format!("{} {l} {}", spec.architecture, block.mixer.name());
            (name, BlockParams::load(source, l, b).expect("the block loads"))
        })
        .collect()
}

/// A matrix of numbers in [-1, 1).
pub(crate) fn random_matrix(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut random = Random(seed);
    Matrix::new(rows, cols, (0..rows * cols).map(|_| 2.0 * random.uniform()).collect())
}

/// `Σ a b` in double precision.
pub(crate) fn inner(a: &Matrix, b: &Matrix) -> f64 {
    let pairs = a.data().iter().zip(b.data());
    pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `sqrt(Σ a²)`.
pub(crate) fn length(a: &Matrix) -> f64 {
    inner(a, a).sqrt()
}
