//! What to do with each tensor.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use gristmill_formats::codec::{Codec, CodecId, NamedGrid};
use gristmill_formats::model::{ModelSpec, TensorRole, TensorSpec};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::awq::Judge;
use crate::plan::TensorPlan;
use crate::{Calibration, QuantizeError, Result};

/// How weights are rounded to the values of a codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Method {
    /// Each weight to the nearest value, under scales that clip nothing: the yardstick (`absmax`).
    #[serde(rename = "absmax")]
    Absmax,
    /// Each weight to the nearest value, under scales searched per block (`rtn`).
    #[default]
    #[serde(rename = "rtn")]
    Rtn,
    /// Errors of weights already rounded are made up for by those that follow (`gptq`).
    #[serde(rename = "gptq")]
    Gptq,
    /// Channels are scaled so that those that matter are rounded more finely, then as `rtn` with
    /// columns weighed by their activations (`awq`).
    #[serde(rename = "awq")]
    Awq,
    /// Channels are scaled as by `awq`, then as `gptq` (`awq+gptq`).
    #[serde(rename = "awq+gptq")]
    AwqGptq,
    /// Channels are scaled where that helps error feedback too, and each matrix is rounded in whichever
    /// way is predicted to lose least (`auto`).
    #[serde(rename = "auto")]
    Auto,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Absmax, Self::Rtn, Self::Gptq, Self::Awq, Self::AwqGptq, Self::Auto];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Absmax => "absmax",
            Self::Rtn => "rtn",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::AwqGptq => "awq+gptq",
            Self::Auto => "auto",
        }
    }

    /// Whether it looks at a calibration text.
    pub fn is_calibrated(self) -> bool {
        !matches!(self, Self::Absmax | Self::Rtn)
    }

    /// Whether it feeds errors back.
    pub fn feeds_back(self) -> bool {
        matches!(self, Self::Gptq | Self::AwqGptq | Self::Auto)
    }

    /// The same on scaled channels.
    pub(crate) fn with_scales(self) -> Self {
        match self {
            Self::Rtn => Self::Awq,
            Self::Gptq => Self::AwqGptq,
            scaled => scaled,
        }
    }

    /// What it asks of the scales of channels; `None` when it leaves them.
    pub(crate) fn scales(self) -> Option<Judge> {
        match self {
            Self::Absmax | Self::Rtn | Self::Gptq => None,
            Self::Awq | Self::AwqGptq => Some(Judge::Plain),
            Self::Auto => Some(Judge::Best),
        }
    }
}

/// What rounding a matrix should keep small, by what calibration finds out: see QUANTIZATION.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Objective {
    /// The error of the layer's output, `tr(E Hᵢ Eᵀ)`: GPTQ's (`inputs`).
    Inputs,
    /// The same with tokens weighed by the energy of their gradients (`guided`).
    Guided,
    /// The loss to second order, `tr(Hₒ E Hᵢ Eᵀ)`: gradients of outputs count in their directions too
    /// (`fisher`).
    #[default]
    Fisher,
}

impl Objective {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Inputs, Self::Guided, Self::Fisher];

    /// The name on the command line and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::Guided => "guided",
            Self::Fisher => "fisher",
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
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
    /// Table of the tensors whose codec has a table of its width; other widths have their default.
    pub grid: NamedGrid,
    /// How to round.
    pub method: Method,
    /// What error feedback keeps small.
    pub objective: Objective,
    /// What a calibrated method looks at.
    pub calibration: Option<Calibration>,
    /// Bytes that the file may have: then each matrix without an exception gets the codec that serves
    /// the whole best, and `default` is not used.
    pub file_bytes: Option<u64>,
    /// Codecs of single matrices, by name, where no exception decides: what [`Self::file_bytes`] leads
    /// to.
    pub chosen: HashMap<String, CodecId>,
    /// How often coordinate descent goes over a matrix after error feedback.
    pub sweeps: usize,
    /// How many passes over the calibration text scales, tables and gains are tuned for at the end.
    pub epochs: usize,
    /// Whether to continue what an interrupted run left beside the output.
    pub resume: bool,
}

/// Widths that can be asked for, and their codecs.
const WIDTHS: [(u32, CodecId); 8] = [
    (2, CodecId::Q2),
    (3, CodecId::Q3),
    (4, CodecId::Q4),
    (5, CodecId::Q5),
    (6, CodecId::Q6),
    (8, CodecId::Q8),
    (16, CodecId::Bf16),
    (32, CodecId::F32),
];

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
            objective: Objective::default(),
            calibration: None,
            file_bytes: None,
            chosen: HashMap::new(),
            sweeps: 0,
            epochs: 0,
            resume: false,
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
        if id.has_table() { Codec::Table(self.table(id).grid()) } else { Codec::from(id) }
    }

    /// The table of a table codec.
    fn table(&self, id: CodecId) -> NamedGrid {
        if self.grid.grid().bits() == id.code_bits() {
            return self.grid;
        }
        NamedGrid::default_for(id.code_bits())
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

    /// Whether the codec of a matrix is open to choice under [`Self::file_bytes`].
    pub(crate) fn is_free(&self, tensor: &TensorPlan) -> bool {
        tensor.shape.len() == 2 && !self.overrides.iter().any(|o| o.pattern.is_match(&tensor.name))
    }

    fn assign(&self, tensor: TensorSpec) -> Result<(TensorSpec, Codec)> {
        let vector = tensor.role == TensorRole::Vector;
        let id = match self.overrides.iter().find(|o| o.applies_to(&tensor)) {
            Some(o) => o.codec,
            None if vector => self.vectors,
            None => self.chosen.get(&tensor.name).copied().unwrap_or(self.default),
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
        match self.file_bytes {
            Some(bytes) => write!(f, "{} size={bytes}", self.method)?,
            None => write!(f, "{} {}", self.method, self.default)?,
        }
        let codecs = self.overrides.iter().map(|o| o.codec).chain([self.default]);
        let tables: BTreeSet<_> = codecs.filter(|codec| codec.has_table()).collect();
        for (i, codec) in tables.into_iter().enumerate() {
            let separator = if i == 0 { " grid=" } else { "," };
            write!(f, "{separator}{}", self.table(codec).name())?;
        }
        write!(f, " vectors={}", self.vectors)?;
        if self.objective != Objective::default() {
            write!(f, " objective={}", self.objective)?;
        }
        if self.sweeps > 0 {
            write!(f, " refine={}", self.sweeps)?;
        }
        if self.epochs > 0 {
            write!(f, " tune={}", self.epochs)?;
        }
        if let Some(calibration) = &self.calibration {
            write!(f, " calib={calibration}")?;
        }
        for o in &self.overrides {
            write!(f, " codec:{}={}", o.pattern, o.codec)?;
        }
        Ok(())
    }
}
