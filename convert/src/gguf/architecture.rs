//! What llama.cpp's code of each architecture does, held against a description.

use gristmill_formats::gguf::Metadata;
use gristmill_formats::model::{
    Activation, AttentionSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, RopeScaling, RopeSpec,
};

use super::{GgufOrigin, not_in_gguf};
use crate::Result;

/// An architecture of llama.cpp.
#[derive(Debug)]
pub(super) struct Architecture {
    /// Its name in the file.
    name: &'static str,
    /// Descriptions that it may fit.
    ours: &'static [&'static str],
    /// Rotation of neighbouring pairs instead of halves.
    pub(super) rotary_pairs: bool,
    /// Norms whose stored gain is an offset from one.
    pub(super) plus_one: bool,
    /// Norm over the heads of q and k.
    qk_norm: bool,
    /// Biases: on q, k and v; on the attention's output; in the feed-forward part.
    biases: [Bias; 3],
    activation: Activation,
    /// Llama 3's frequencies.
    rope_factors: bool,
    /// Gemma's: every sixth layer sees everything, the others a window with rotations of their own;
    /// norms after the blocks; the embedding multiplied by the square root of its width.
    gemma: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bias {
    Never,
    Maybe,
    Always,
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    ours: &["llama", "mistral"],
    rotary_pairs: true,
    plus_one: false,
    qk_norm: false,
    biases: [Bias::Maybe; 3],
    activation: Activation::Silu,
    rope_factors: true,
    gemma: false,
};

static ARCHITECTURES: [Architecture; 4] = [
    LLAMA,
    Architecture {
        name: "qwen2",
        ours: &["qwen2"],
        rotary_pairs: false,
        biases: [Bias::Always, Bias::Never, Bias::Never],
        rope_factors: false,
        ..LLAMA
    },
    Architecture {
        name: "qwen3",
        ours: &["qwen3"],
        rotary_pairs: false,
        qk_norm: true,
        biases: [Bias::Never; 3],
        rope_factors: false,
        ..LLAMA
    },
    Architecture {
        name: "gemma3",
        ours: &["gemma3_text"],
        rotary_pairs: false,
        plus_one: true,
        qk_norm: true,
        biases: [Bias::Never; 3],
        activation: Activation::GeluTanh,
        rope_factors: false,
        gemma: true,
    },
];

/// Every layer of Gemma 3 but each sixth sees a window.
const GEMMA_PERIOD: usize = 6;
/// Layers of Gemma 3 27B, the only one whose attention scale is not that of its head's width.
const GEMMA_27B_LAYERS: usize = 62;

/// An error unless the description says what llama.cpp does.
fn require(holds: bool, what: impl Into<String>) -> Result<()> {
    if holds { Ok(()) } else { Err(not_in_gguf(what)) }
}

fn parts(layer: &LayerSpec) -> Option<(&AttentionSpec, &MlpSpec)> {
    match layer.blocks.as_slice() {
        [first, second] => match (&first.mixer, &second.mixer) {
            (Mixer::Attention(attention), Mixer::Mlp(mlp)) => Some((attention, mlp)),
            _ => None,
        },
        _ => None,
    }
}

impl Architecture {
    /// The architecture that does what a description says.
    pub(super) fn find(spec: &ModelSpec) -> Result<&'static Self> {
        let name = spec.architecture.as_str();
        let found = ARCHITECTURES.iter().find(|a| a.ours.contains(&name));
        let found = found.ok_or_else(|| not_in_gguf(format!("architecture `{name}`")))?;
        found.check(spec)?;
        Ok(found)
    }

    fn check(&self, spec: &ModelSpec) -> Result<()> {
        let name = self.name;
        require(!spec.layers.is_empty(), "a model without layers")?;
        require(spec.logit_softcap.is_none(), "a cap on the logits")?;
        let scale = if self.gemma { f64::from(spec.d_model).sqrt() as f32 } else { 1.0 };
        require(
            spec.embedding_scale == scale,
            format!("embedding scale {} (`{name}` has {scale})", spec.embedding_scale),
        )?;
        let norm = spec.final_norm;
        require(
            norm.plus_one == self.plus_one,
            format!("the final norm's gain: `{name}` stores it otherwise"),
        )?;
        let first = spec.layers.first().and_then(parts);
        for (i, layer) in spec.layers.iter().enumerate() {
            let layer_parts = parts(layer);
            let (Some((attention, mlp)), Some((first_attention, first_mlp))) = (layer_parts, first)
            else {
                return Err(not_in_gguf(format!("layer {i}: blocks other than attention and mlp")));
            };
            let what = |what: &str| format!("layer {i}: {what}");
            for block in &layer.blocks {
                require(block.pre_norm == norm, what("a norm that differs from the final one"))?;
                let post = self.gemma.then_some(norm);
                require(block.post_norm == post, what("norms after the blocks, or their lack"))?;
            }
            let qk_norm = self.qk_norm.then_some(norm);
            require(attention.qk_norm == qk_norm, what("norms of q and k, or their lack"))?;
            let biases = [
                ("q, k and v", attention.qkv_bias),
                ("the attention's output", attention.out_bias),
                ("the feed-forward part", mlp.bias),
            ];
            for ((part, is), may) in biases.into_iter().zip(self.biases) {
                let fits = may == Bias::Maybe || is == (may == Bias::Always);
                require(fits, what(&format!("biases of {part}, or their lack")))?;
            }
            require(mlp.activation == self.activation, what("another activation"))?;
            require(mlp.d_ff == first_mlp.d_ff, what("another feed-forward width"))?;
            require(attention.softcap.is_none(), what("a cap on attention scores"))?;
            self.check_attention(spec, i, attention, first_attention)?;
        }
        Ok(())
    }

    fn check_attention(
        &self,
        spec: &ModelSpec,
        layer: usize,
        attention: &AttentionSpec,
        first: &AttentionSpec,
    ) -> Result<()> {
        let what = |what: &str| format!("layer {layer}: {what}");
        let shape = |a: &AttentionSpec| (a.heads, a.kv_heads, a.head_dim);
        require(shape(attention) == shape(first), what("heads that differ between layers"))?;
        let width = match self.gemma && spec.layers.len() == GEMMA_27B_LAYERS {
            true => f64::from(spec.d_model) / f64::from(attention.heads),
            false => f64::from(attention.head_dim),
        };
        // Single precision of a square root: the last bits may differ.
        let scale = width.powf(-0.5) as f32;
        let off = (attention.scale - scale).abs() / scale;
        require(off < 1e-6, what(&format!("attention scale {}", attention.scale)))?;
        let Some(rope) = &attention.rope else {
            return Err(not_in_gguf(what("attention without positions")));
        };
        let windowed = self.gemma && layer % GEMMA_PERIOD != GEMMA_PERIOD - 1;
        match attention.window {
            Some(window) if !self.gemma => {
                // A window as long as the context changes nothing.
                require(window >= spec.max_context, what("a sliding window"))?;
            }
            window => {
                require(window.is_some() == windowed, what("a window, or its lack"))?;
                let same = !windowed || window == first.window;
                require(same, what("a window that differs between layers"))?;
            }
        }
        if windowed {
            let local = first.rope.as_ref() == Some(rope) && rope.scaling == RopeScaling::None;
            return require(local, what("the rotation of layers with a window"));
        }
        require(rope == self.rope(spec), what("a rotation that differs between layers"))?;
        let factors = matches!(rope.scaling, RopeScaling::Llama3 { .. });
        require(!factors || self.rope_factors, what("Llama 3's scaling of the rotation"))
    }

    fn attention<'a>(&self, spec: &'a ModelSpec, layer: usize) -> &'a AttentionSpec {
        let layer = &spec.layers[layer.min(spec.layers.len() - 1)];
        parts(layer).expect("checked when the architecture was found").0
    }

    /// Width of a head.
    pub(super) fn head_dim(&self, spec: &ModelSpec) -> usize {
        self.attention(spec, 0).head_dim as usize
    }

    /// The rotation of the layers that see everything.
    pub(super) fn rope<'a>(&self, spec: &'a ModelSpec) -> &'a RopeSpec {
        let layer = if self.gemma { GEMMA_PERIOD - 1 } else { 0 };
        let rope = self.attention(spec, layer).rope.as_ref();
        rope.expect("checked when the architecture was found")
    }

    /// Everything about the model but the vocabulary.
    pub(super) fn metadata(&self, spec: &ModelSpec, origin: GgufOrigin<'_>) -> Result<Metadata> {
        let (attention, mlp) = parts(&spec.layers[0]).expect("checked");
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", self.name);
        metadata.set("general.type", "model");
        for (key, value) in [("name", origin.name), ("license", origin.licence)] {
            if let Some(value) = value {
                metadata.set(format!("general.{key}"), value);
            }
        }
        let arch = self.name;
        let mut count = |key: &str, value: u32| metadata.set(format!("{arch}.{key}"), value);
        count("block_count", spec.layers.len() as u32);
        count("context_length", spec.max_context);
        count("embedding_length", spec.d_model);
        count("feed_forward_length", mlp.d_ff);
        count("attention.head_count", attention.heads);
        count("attention.head_count_kv", attention.kv_heads);
        count("attention.key_length", attention.head_dim);
        count("attention.value_length", attention.head_dim);
        count("rope.dimension_count", attention.head_dim);
        count("vocab_size", spec.vocab_size);
        if self.gemma
            && let Some(window) = attention.window
        {
            count("attention.sliding_window", window);
        }
        let mut number = |key: &str, value: f64| {
            metadata.set(format!("{arch}.{key}"), value as f32);
        };
        let rope = self.rope(spec);
        number("attention.layer_norm_rms_epsilon", f64::from(spec.final_norm.eps));
        number("rope.freq_base", rope.base);
        if self.gemma
            && let Some(local) = &attention.rope
        {
            number("rope.freq_base_swa", local.base);
        }
        if let RopeScaling::Linear { factor } = rope.scaling {
            number("rope.scaling.factor", factor);
            metadata.set(format!("{arch}.rope.scaling.type"), "linear");
        }
        Ok(metadata)
    }
}
