//! A small model in memory.

use std::collections::HashMap;

use gristmill_formats::codec::Codec;
use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
    RopeScaling, RopeSpec, TensorRole, TensorSpec,
};
use gristmill_formats::source::{
    GenerationDefaults, Layout, ModelSource, SpecialToken, TensorData, TextAssets,
};
use gristmill_formats::tokenizer::TokenizerData;
use gristmill_formats::{FormatError, SharedBytes};

/// Weights that are made up, reproducible, and can be changed by tests.
#[derive(Debug)]
pub(crate) struct TestSource {
    spec: ModelSpec,
    weights: HashMap<String, Vec<f32>>,
    text: TextAssets,
    generation: GenerationDefaults,
}

/// A linear congruential generator (Knuth's MMIX): the same numbers in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// In [-0.5, 0.5).
    pub(crate) fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

pub(crate) fn spec(tied_head: bool) -> ModelSpec {
    let norm = NormSpec { eps: 1e-5, plus_one: false };
    let block = |mixer| BlockSpec { pre_norm: norm, post_norm: None, mixer };
    let attention = Mixer::Attention(AttentionSpec {
        heads: 3,
        kv_heads: 1,
        head_dim: 16,
        scale: 0.25,
        window: None,
        softcap: None,
        qkv_bias: true,
        out_bias: false,
        qk_norm: None,
        rope: Some(RopeSpec { base: 1e4, scaling: RopeScaling::None }),
    });
    // Widths that are no multiple of 32 and row counts that are no multiple of 16.
    let mlp = Mixer::Mlp(MlpSpec { d_ff: 101, activation: Activation::Silu, bias: false });
    let layer = LayerSpec { blocks: vec![block(attention), block(mlp)] };
    ModelSpec {
        architecture: "test".into(),
        vocab_size: 75,
        d_model: 48,
        max_context: 64,
        embedding_scale: 1.0,
        tied_head,
        logit_softcap: None,
        final_norm: norm,
        layers: vec![layer.clone(), layer],
    }
}

impl TestSource {
    pub(crate) fn new(tied_head: bool) -> Self {
        let mut random = Random(1);
        let mut weight = || (random.uniform() + random.uniform() + random.uniform()) * 0.05;
        Self::filled(spec(tied_head), |_| weight())
    }

    /// With random weights of the size that a trained model's have.
    pub(crate) fn plausible(spec: ModelSpec, seed: u64) -> Self {
        let mut random = Random(seed);
        let plus_one = spec.final_norm.plus_one;
        Self::filled(spec, |tensor| match tensor.role {
            TensorRole::Vector if tensor.name.ends_with("bias") => random.uniform(),
            TensorRole::Vector => random.uniform() + if plus_one { 0.0 } else { 1.0 },
            TensorRole::Embedding => 2.0 * random.uniform(),
            _ => 4.0 * random.uniform() / (tensor.shape[1] as f32).sqrt(),
        })
    }

    /// Every weight of a tensor is `weight(tensor)`, called for one after the other.
    pub(crate) fn filled(spec: ModelSpec, mut weight: impl FnMut(&TensorSpec) -> f32) -> Self {
        let mut weights = HashMap::new();
        for tensor in spec.tensors() {
            let n = tensor.shape.iter().product::<u64>();
            let values = (0..n).map(|_| weight(&tensor)).collect();
            weights.insert(tensor.name, values);
        }
        let token = SpecialToken { text: "<s>".into(), id: 1 };
        let text = TextAssets { bos: Some(token), stop_ids: vec![2], ..TextAssets::default() };
        Self { spec, weights, text, generation: GenerationDefaults::default() }
    }

    pub(crate) fn values(&self, tensor: &str) -> &[f32] {
        &self.weights[tensor]
    }

    pub(crate) fn set(&mut self, tensor: &str, index: usize, value: f32) {
        self.weights.get_mut(tensor).expect("a tensor of the model")[index] = value;
    }

    pub(crate) fn remove(&mut self, tensor: &str) {
        self.weights.remove(tensor);
    }
}

impl ModelSource for TestSource {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, name: &str) -> Result<TensorData, FormatError> {
        let values =
            self.weights.get(name).ok_or_else(|| FormatError::MissingTensor(name.into()))?;
        let tensors = self.spec.tensors();
        let spec = tensors.iter().find(|t| t.name == name).expect("a tensor of the model");
        Ok(TensorData {
            shape: spec.shape.clone(),
            codec: Codec::F32,
            layout: Layout::RowMajor,
            bytes: SharedBytes::from_vec(Codec::F32.encode_linear(values)),
        })
    }

    fn tokenizer(&self) -> Result<Option<TokenizerData>, FormatError> {
        let json =
            br#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;
        TokenizerData::from_json(json).map(Some)
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
        "test".into()
    }
}
