//! Where a model's channels can be rescaled at no cost: whoever produces a channel divides it by a
//! factor, and all who read it multiply by the same.
//!
//! The pairs are those of AWQ (Lin et al. 2023, section 3.2). What stands between the two sides of a
//! pair must be linear in the channel: nothing for a norm's gain, the mixing of positions for values,
//! the multiplication with the gate for `up`. The gate itself is inside the nonlinearity and no producer.

use crate::model::{AttentionSpec, Mixer, ModelSpec, layer_tensor};

/// A producer of channels and all who read them. Tensors go by their canonical names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldPair {
    /// Who is divided.
    pub producer: FoldProducer,
    /// Matrices whose columns are multiplied.
    pub consumers: Vec<String>,
    /// Number of channels: free factors.
    pub channels: usize,
    /// Channels that lie side by side in the consumers' columns before they are repeated.
    pub stretch: usize,
    /// How often each stretch is read.
    pub copies: usize,
}

/// What a channel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoldProducer {
    /// The gain of a norm.
    Norm {
        /// The gain.
        gain: String,
        /// Whether it is stored as an offset from one: `w' = (1 + w) / s - 1`.
        plus_one: bool,
    },
    /// The rows of a linear layer.
    Linear {
        /// The matrix.
        weight: String,
        /// What is added to its rows.
        bias: Option<String>,
    },
}

impl FoldProducer {
    /// The tensor that the pair is named after.
    pub fn name(&self) -> &str {
        match self {
            Self::Norm { gain, .. } => gain,
            Self::Linear { weight, .. } => weight,
        }
    }
}

impl FoldPair {
    /// The channel that a column of the consumers reads.
    pub fn channel(&self, column: usize) -> usize {
        column / (self.stretch * self.copies) * self.stretch + column % self.stretch
    }

    /// Columns of the consumers.
    pub fn columns(&self) -> usize {
        self.channels * self.copies
    }
}

impl ModelSpec {
    /// The foldable pairs of a layer. Every matrix is a consumer of at most one pair and a producer of
    /// at most one.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn fold_pairs(&self, layer: usize) -> Vec<FoldPair> {
        let mut pairs = Vec::new();
        for block in &self.layers[layer].blocks {
            let kind = block.mixer.name();
            let name = |part: &str| layer_tensor(layer, &format!("{kind}.{part}"));
            let names = |parts: &[&str]| parts.iter().map(|part| name(part)).collect();
            let linear = |part: &str, biased: bool| FoldProducer::Linear {
                weight: name(part),
                bias: biased.then(|| name(&format!("{part}_bias"))),
            };
            let norm = FoldProducer::Norm { gain: name("norm"), plus_one: block.pre_norm.plus_one };
            let pair = |producer, consumers, channels, stretch, copies| FoldPair {
                producer,
                consumers,
                channels: channels as usize,
                stretch: stretch as usize,
                copies: copies as usize,
            };
            let d = self.d_model;
            match &block.mixer {
                // With norms on the heads of q and k the fold is still exact, they come after the
                // matrices; but they undo what a row's scale does, and scales found by the error of
                // q and k have been seen to do harm there (Gemma 3: llm-compressor issue 2522).
                Mixer::Attention(a) => {
                    pairs.push(pair(norm, names(&["q", "k", "v"]), d, d, 1));
                    let AttentionSpec { heads, kv_heads, head_dim, .. } = *a;
                    // All query heads of one kv head read the same values.
                    let (v, o) = (linear("v", a.qkv_bias), names(&["o"]));
                    pairs.push(pair(v, o, kv_heads * head_dim, head_dim, heads / kv_heads));
                }
                Mixer::Mlp(m) => {
                    pairs.push(pair(norm, names(&["gate", "up"]), d, d, 1));
                    pairs.push(pair(linear("up", m.bias), names(&["down"]), m.d_ff, m.d_ff, 1));
                }
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_grouped_heads_share_channels() {
        let producer = FoldProducer::Linear { weight: "v".into(), bias: None };
        let pair = FoldPair { producer, consumers: Vec::new(), channels: 4, stretch: 2, copies: 3 };
        let channels: Vec<_> = (0..pair.columns()).map(|c| pair.channel(c)).collect();
        assert_eq!(channels, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
    }
}
