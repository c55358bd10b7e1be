//! What is measured, and what bounds it.

use gristmill_formats::codec::CodecId;
use gristmill_kernels::{Kernels, KvType};
use serde::{Serialize, Serializer};

/// A family of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Matrices with one token: decoding.
    Gemv,
    /// Matrices with a few tokens.
    SmallM,
    /// Matrices with the tokens of a prompt.
    Gemm,
    /// Queries over keys and values.
    Attention,
    /// Norms, activations and their quantization.
    Elementwise,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 5] =
        [Self::Gemv, Self::SmallM, Self::Gemm, Self::Attention, Self::Elementwise];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gemv => "gemv",
            Self::SmallM => "small-m",
            Self::Gemm => "gemm",
            Self::Attention => "attention",
            Self::Elementwise => "elementwise",
        }
    }
}

/// An elementwise kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Activations to int8.
    Quantize,
    /// Activations to two planes of int8.
    QuantizeFine,
    /// Root-mean-square norm.
    RmsNorm,
    /// `silu(gate) * up`.
    SiluMul,
    /// `gelu(gate) * up`.
    GeluTanhMul,
    /// `ln Σ e^x`.
    LogSumExp,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Quantize,
        Self::QuantizeFine,
        Self::RmsNorm,
        Self::SiluMul,
        Self::GeluTanhMul,
        Self::LogSumExp,
    ];

    /// Vectors that it reads.
    pub(super) fn inputs(self) -> u64 {
        match self {
            Self::Quantize | Self::QuantizeFine | Self::LogSumExp => 1,
            Self::RmsNorm | Self::SiluMul | Self::GeluTanhMul => 2,
        }
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quantize => "quantize",
            Self::QuantizeFine => "quantize-fine",
            Self::RmsNorm => "rms-norm",
            Self::SiluMul => "silu-mul",
            Self::GeluTanhMul => "gelu-tanh-mul",
            Self::LogSumExp => "log-sum-exp",
        }
    }
}

/// Which kernel of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Of matrices in a codec.
    Codec(CodecId),
    /// Of a cache type.
    Kv(KvType),
    /// Elementwise.
    Operation(Operation),
}

impl Subject {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let codecs = CodecId::ALL.into_iter().map(Self::Codec);
        let caches = KvType::ALL.into_iter().map(Self::Kv);
        codecs.chain(caches).chain(Operation::ALL.into_iter().map(Self::Operation))
    }

    /// The name in reports. f32 and f16 are names of a codec and of a cache type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Codec(codec) => codec.name(),
            Self::Kv(kv) => kv.name(),
            Self::Operation(operation) => operation.name(),
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Where the data come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The large buffer.
    Memory,
    /// The second-level cache, or nearer.
    Cache,
}

/// What a rate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Unit {
    /// 1e9 bytes per second.
    #[serde(rename = "GB/s")]
    Bytes,
    /// 1e9 multiply-accumulates per second.
    #[serde(rename = "GMAC/s")]
    Macs,
}

/// What a kernel cannot exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ceiling {
    /// Reading the large buffer.
    ReadMemory,
    /// Reading what the second-level cache holds.
    ReadCache,
    /// int8 multiplication.
    Int8,
    /// Fused multiply-adds in f32.
    F32,
}

impl Ceiling {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ReadMemory, Self::ReadCache, Self::Int8, Self::F32];

    /// Whether it differs between instruction sets.
    pub fn has_isa(self) -> bool {
        matches!(self, Self::Int8 | Self::F32)
    }

    /// What its rate counts.
    pub fn unit(self) -> Unit {
        if self.has_isa() { Unit::Macs } else { Unit::Bytes }
    }
}

/// One measurement, whatever the instruction set and the threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Case {
    /// Family.
    pub family: Family,
    /// Codec, cache type or operation.
    pub subject: Subject,
    /// Tokens at once. Of attention: 1 for the query heads of one token that share keys and values, else
    /// that many tokens of one query head.
    pub tokens: usize,
    /// Positions attended to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Where its data come from.
    pub from: Origin,
}

impl Case {
    /// Whether it is one of some families, on one of some subjects; none stand for all.
    pub(super) fn is_of(&self, families: &[Family], subjects: &[Subject]) -> bool {
        // A few tokens are compared with one.
        let compared = self.family == Family::Gemv
            && self.from == Origin::Memory
            && families.contains(&Family::SmallM);
        let of_family = families.is_empty() || compared || families.contains(&self.family);
        of_family && (subjects.is_empty() || subjects.contains(&self.subject))
    }

    /// What its rate counts: bytes of weights, of keys and values or of inputs; or products.
    pub fn unit(&self) -> Unit {
        match self.family {
            Family::Gemm => Unit::Macs,
            Family::Attention if self.tokens > 1 => Unit::Macs,
            _ => Unit::Bytes,
        }
    }

    /// What bounds it. A few tokens are compared with one instead, elementwise kernels with nothing.
    pub fn ceiling(&self) -> Option<Ceiling> {
        match (self.family, self.subject) {
            (Family::Elementwise | Family::SmallM, _) => None,
            (Family::Gemm, Subject::Codec(codec)) if !codec.is_dense() => Some(Ceiling::Int8),
            _ if self.unit() == Unit::Macs => Some(Ceiling::F32),
            _ if self.from == Origin::Memory => Some(Ceiling::ReadMemory),
            _ => Some(Ceiling::ReadCache),
        }
    }

    /// Part of the ceiling that it can reach: two planes of activations take two products each.
    pub(super) fn reachable(&self) -> f64 {
        match (self.family, self.subject) {
            (Family::Gemm, Subject::Codec(codec)) if Kernels::takes_fine(codec) => 0.5,
            _ => 1.0,
        }
    }
}
