//! What to do with each tensor.

use std::fmt;
use std::str::FromStr;

use gristmill_formats::codec::{Codec, CodecId, NamedGrid};
use gristmill_formats::model::{ModelSpec, TensorRole, TensorSpec};
use regex::Regex;

use crate::{QuantizeError, Result};

/// How weights are rounded to the values of a codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Method {
    /// Each weight to the nearest value, under scales searched per block (`rtn`).
    #[default]
    Rtn,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Rtn];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A codec for the tensors whose canonical name a pattern is found in.
#[derive(Debug, Clone)]
pub struct Override {
    /// Searched in the name, so `attn` means every tensor of every attention block and `^embed$` one.
    pub pattern: Regex,
    /// Their codec.
    pub codec: CodecId,
}

impl FromStr for Override {
    type Err = QuantizeError;

    /// Parses `REGEX=CODEC`; the last `=` separates.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason: String| QuantizeError::InvalidOverride { text: text.into(), reason };
        let (pattern, codec) =
            text.rsplit_once('=').ok_or_else(|| invalid("there is no `=`".into()))?;
        if pattern.is_empty() {
            return Err(invalid("the pattern is empty".into()));
        }
        Ok(Self {
            pattern: Regex::new(pattern).map_err(|e| invalid(e.to_string()))?,
            codec: codec
                .parse()
                .map_err(|e: gristmill_formats::FormatError| invalid(e.to_string()))?,
        })
    }
}

impl Override {
    /// Whether it decides a tensor's codec. A block codec passes the vectors by that its pattern
    /// matches, so that `mlp=q4` means the matrices.
    fn applies_to(&self, tensor: &TensorSpec) -> bool {
        let possible = self.codec.is_dense() || tensor.role != TensorRole::Vector;
        possible && self.pattern.is_match(&tensor.name)
    }
}

/// Which codec every tensor gets and how its weights are rounded.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Codec of the matrices.
    pub default: CodecId,
    /// Codec of the vectors (gains and biases): dense.
    pub vectors: CodecId,
    /// Exceptions; the first that matches a tensor wins.
    pub overrides: Vec<Override>,
    /// Table of the q4 tensors.
    pub grid: NamedGrid,
    /// How to round.
    pub method: Method,
}

/// Widths that can be asked for, and their codecs.
const WIDTHS: [(u32, CodecId); 4] =
    [(4, CodecId::Q4), (8, CodecId::Q8), (16, CodecId::Bf16), (32, CodecId::F32)];

/// How many names an error shows as examples.
const EXAMPLE_NAMES: usize = 3;

impl Recipe {
    /// All matrices in one codec, vectors in f32.
    pub fn new(default: CodecId) -> Self {
        Self {
            default,
            vectors: CodecId::F32,
            overrides: Vec::new(),
            grid: NamedGrid::Mix4,
            method: Method::Rtn,
        }
    }

    /// All matrices at about this many bits per weight.
    ///
    /// # Errors
    /// [`QuantizeError::UnknownBits`] when no codec has this width.
    pub fn for_bits(bits: u32) -> Result<Self> {
        match WIDTHS.into_iter().find(|(width, _)| *width == bits) {
            Some((_, codec)) => Ok(Self::new(codec)),
            None => {
                let available =
                    WIDTHS.map(|(width, codec)| format!("{width} ({codec})")).join(", ");
                Err(QuantizeError::UnknownBits { bits, available })
            }
        }
    }

    /// Adds an exception given as `REGEX=CODEC`, after those already there.
    ///
    /// # Errors
    /// [`QuantizeError::InvalidOverride`] when it is not of that form.
    pub fn with_override(mut self, text: &str) -> Result<Self> {
        self.overrides.push(text.parse()?);
        Ok(self)
    }

    /// The codec with the recipe's parameters.
    pub fn codec(&self, id: CodecId) -> Codec {
        match id {
            CodecId::F32 => Codec::F32,
            CodecId::Bf16 => Codec::Bf16,
            CodecId::F16 => Codec::F16,
            CodecId::Q8 => Codec::Q8,
            CodecId::Q4 => Codec::Q4(self.grid.grid()),
        }
    }

    /// The codec of every tensor of a model, in the order of [`ModelSpec::tensors`].
    ///
    /// # Errors
    /// When an override decides no tensor, or a vector would get a block codec.
    pub fn resolve(&self, spec: &ModelSpec) -> Result<Vec<(TensorSpec, Codec)>> {
        let tensors = spec.tensors();
        let unused = |o: &&Override| !tensors.iter().any(|t| o.applies_to(t));
        if let Some(unused) = self.overrides.iter().find(unused) {
            return Err(unused_override(unused, &tensors));
        }
        tensors.into_iter().map(|tensor| self.assign(tensor)).collect()
    }

    fn assign(&self, tensor: TensorSpec) -> Result<(TensorSpec, Codec)> {
        let vector = tensor.role == TensorRole::Vector;
        let id = match self.overrides.iter().find(|o| o.applies_to(&tensor)) {
            Some(o) => o.codec,
            None if vector => self.vectors,
            None => self.default,
        };
        if vector && !id.is_dense() {
            let (pattern, tensor) = ("vectors".into(), tensor.name);
            return Err(QuantizeError::VectorCodec { pattern, tensor, codec: id });
        }
        Ok((tensor, self.codec(id)))
    }
}

/// Why an override decides nothing: it matches only vectors, or no tensor at all.
fn unused_override(unused: &Override, tensors: &[TensorSpec]) -> QuantizeError {
    let pattern = unused.pattern.to_string();
    if let Some(vector) = tensors.iter().find(|t| unused.pattern.is_match(&t.name)) {
        let (tensor, codec) = (vector.name.clone(), unused.codec);
        return QuantizeError::VectorCodec { pattern, tensor, codec };
    }
    // From the middle of the list: its ends are the embedding and the last norm.
    let matrices: Vec<_> = tensors.iter().filter(|t| t.role == TensorRole::Linear).collect();
    let examples = matrices[matrices.len() / 2..].iter().take(EXAMPLE_NAMES);
    let examples: Vec<_> = examples.map(|t| format!("`{}`", t.name)).collect();
    QuantizeError::UnmatchedOverride { pattern, examples: examples.join(", ") }
}

/// Everything needed to do it again, e.g. `rtn q4 grid=iq4-nl vectors=f32 codec:^embed$=q8`.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.default)?;
        if self.default == CodecId::Q4 || self.overrides.iter().any(|o| o.codec == CodecId::Q4) {
            write!(f, " grid={}", self.grid.name())?;
        }
        write!(f, " vectors={}", self.vectors)?;
        for o in &self.overrides {
            write!(f, " codec:{}={}", o.pattern, o.codec)?;
        }
        Ok(())
    }
}
