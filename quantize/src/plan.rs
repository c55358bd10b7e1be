//! What a recipe will weigh, before anything is read or written.

use gristmill_formats::codec::{BLOCK_COLS, Codec, CodecId, PANEL_ROWS, block_count, panel_count};
use gristmill_formats::container::{
    FOOTER_BYTES, Header, Provenance, QualityReport, SectionEntry, TensorEntry, TensorQuality,
};
use gristmill_formats::limits::{PANEL_ALIGN, SECTION_ALIGN};
use gristmill_formats::model::{ModelSpec, TensorRole};
use gristmill_formats::source::{GenerationDefaults, ModelSource, TextAssets};
use serde::Serialize;

use crate::recipe::Recipe;
use crate::{Metadata, Result};

/// What a packed file will contain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The recipe in words.
    pub recipe: String,
    /// The tensors in the order of the file.
    pub tensors: Vec<TensorPlan>,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of the parts of the file.
    pub bytes: PartBytes,
    /// Bytes of the whole file. Exact but for the length of some numbers in the header, and without
    /// tokenizer and texts when only the model's description was given.
    pub file_bytes: u64,
    /// Bits per weight of the whole file, everything counted.
    pub bits_per_weight: f64,
    /// Bytes that one decoded token reads from the weights: all of them once, but a single row of an
    /// embedding that is not the output head too.
    pub bytes_per_token: u64,
}

/// One tensor of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorPlan {
    /// Canonical name.
    pub name: String,
    /// `[n_out, n_in]` or `[n]`.
    pub shape: Vec<u64>,
    /// Its codec.
    pub codec: CodecId,
    /// Bytes in the file, scales and padding included.
    pub bytes: u64,
    /// `8 bytes / elements`.
    pub bits_per_weight: f64,
    /// The codec with its parameters.
    #[serde(skip)]
    pub(crate) encoding: Codec,
}

/// Bytes of the parts of a packed file. Their sum is the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PartBytes {
    /// Token embedding, without its scales. When it is the output head too, it is counted here.
    pub embeddings: u64,
    /// Output head, without its scales.
    pub head: u64,
    /// Matrices of linear layers, without their scales.
    pub linears: u64,
    /// Gains and biases.
    pub vectors: u64,
    /// Row and block scales of all matrices.
    pub scales: u64,
    /// Tokenizer section.
    pub tokenizer: u64,
    /// Header: model description, tensor table, texts, provenance, quality report.
    pub header: u64,
    /// Superblock, footer and padding between parts.
    pub container: u64,
}

impl PartBytes {
    /// Their sum: the bytes of the file.
    pub fn total(&self) -> u64 {
        self.embeddings
            + self.head
            + self.linears
            + self.vectors
            + self.scales
            + self.tokenizer
            + self.header
            + self.container
    }
}

/// Plans a file from the model's description alone: without tokenizer and texts.
///
/// # Errors
/// As [`Recipe::resolve`].
pub fn plan(spec: &ModelSpec, recipe: &Recipe) -> Result<Plan> {
    Plan::build(&header_template(spec, recipe), 0, recipe)
}

/// Plans the file that [`crate::quantize`] would make from a source.
///
/// # Errors
/// As [`Recipe::resolve`], and when the source's tokenizer cannot be read.
pub fn plan_source(source: &dyn ModelSource, recipe: &Recipe, metadata: &Metadata) -> Result<Plan> {
    let tokenizer = source.tokenizer()?.map_or(0, |t| t.to_section().len() as u64);
    Plan::build(&header_for(source, recipe, metadata), tokenizer, recipe)
}

fn header_template(spec: &ModelSpec, recipe: &Recipe) -> Header {
    Header {
        model: spec.clone(),
        tensors: Vec::new(),
        tokenizer: None,
        text: TextAssets::default(),
        generation: GenerationDefaults::default(),
        provenance: Provenance { recipe: recipe.to_string(), ..Provenance::default() },
        quality: None,
    }
}

/// The header of the file that will be made from a source, but for what the tensors determine.
pub(crate) fn header_for(source: &dyn ModelSource, recipe: &Recipe, metadata: &Metadata) -> Header {
    let mut header = header_template(source.spec(), recipe);
    header.text = source.text().clone();
    header.generation = source.generation().clone();
    let recipe = std::mem::take(&mut header.provenance.recipe);
    header.provenance = Provenance { recipe, ..metadata.provenance.clone() };
    if header.provenance.tool.is_empty() {
        header.provenance.tool = concat!("gristmill ", env!("CARGO_PKG_VERSION")).into();
    }
    header
}

impl Plan {
    pub(crate) fn build(template: &Header, tokenizer_bytes: u64, recipe: &Recipe) -> Result<Self> {
        let resolved = recipe.resolve(&template.model)?;
        let tied = template.model.tied_head;
        let mut bytes = PartBytes { tokenizer: tokenizer_bytes, ..PartBytes::default() };
        let mut tensors = Vec::with_capacity(resolved.len());
        let mut bytes_per_token = 0;
        for (tensor, codec) in resolved {
            let size = codec.tensor_bytes(&tensor.shape)?;
            let scales = scale_bytes(&codec, &tensor.shape);
            bytes.scales += scales;
            bytes_per_token += size;
            match tensor.role {
                TensorRole::Embedding => {
                    bytes.embeddings += size - scales;
                    if !tied {
                        // One row is its share of one panel.
                        bytes_per_token -= size;
                        let panels = panel_count(tensor.shape[0] as usize) as u64;
                        bytes_per_token += size / panels / PANEL_ROWS as u64;
                    }
                }
                TensorRole::Head => bytes.head += size - scales,
                TensorRole::Linear => bytes.linears += size - scales,
                TensorRole::Vector => bytes.vectors += size - scales,
            }
            let elements: u64 = tensor.shape.iter().product();
            tensors.push(TensorPlan {
                name: tensor.name,
                shape: tensor.shape,
                codec: codec.id(),
                bytes: size,
                bits_per_weight: size as f64 * 8.0 / elements as f64,
                encoding: codec,
            });
        }
        let mut plan = Self {
            recipe: recipe.to_string(),
            tensors,
            parameters: template.model.parameter_count(),
            bytes,
            file_bytes: 0,
            bits_per_weight: 0.0,
            bytes_per_token,
        };
        let header = plan.typical_header(template, recipe.epochs > 0).to_bytes()?.len() as u64;
        plan.set_sizes(tokenizer_bytes, header);
        Ok(plan)
    }

    /// Recomputes what depends on the sizes of tokenizer section and header.
    pub(crate) fn set_sizes(&mut self, tokenizer_bytes: u64, header_bytes: u64) {
        self.bytes.tokenizer = tokenizer_bytes;
        self.bytes.header = header_bytes;
        let align = |position: u64| position.next_multiple_of(PANEL_ALIGN as u64);
        let tensors_end = self.tensors.iter().fold(SECTION_ALIGN, |end, t| align(end) + t.bytes);
        let tokenizer_end =
            if tokenizer_bytes == 0 { tensors_end } else { align(tensors_end) + tokenizer_bytes };
        let header_end = align(tokenizer_end) + header_bytes;
        self.file_bytes = align(header_end) + FOOTER_BYTES as u64;
        self.bytes.container = 0;
        self.bytes.container = self.file_bytes - self.bytes.total();
        self.bits_per_weight = self.file_bytes as f64 * 8.0 / self.parameters as f64;
    }

    /// A header of about the length that the real one will have; with `tuned` tables, at most that.
    fn typical_header(&self, template: &Header, tuned: bool) -> Header {
        let longest = |value: i8| if tuned { -i8::MAX } else { value };
        let digest = "0".repeat(64);
        let mut header = template.clone();
        let mut offset = SECTION_ALIGN;
        let mut errors = Vec::new();
        for t in &self.tensors {
            let grid = t.encoding.grid();
            header.tensors.push(TensorEntry {
                name: t.name.clone(),
                shape: t.shape.clone(),
                codec: t.codec,
                table: grid.map(|grid| grid.values().iter().map(|&v| longest(v)).collect()),
                table_shift: grid.map(|grid| longest(grid.shift())),
                offset,
                bytes: t.bytes,
                blake3: digest.clone(),
            });
            offset += t.bytes;
            if t.codec != CodecId::F32 {
                errors.push(TensorQuality {
                    name: t.name.clone(),
                    codec: t.codec,
                    relative_error: 0.005_432_1,
                });
            }
        }
        if self.bytes.tokenizer > 0 {
            let bytes = self.bytes.tokenizer;
            header.tokenizer = Some(SectionEntry { offset, bytes, blake3: digest });
        }
        header.quality = Some(QualityReport {
            bits_per_weight: 4.321,
            bytes_per_token: self.bytes_per_token,
            tensors: errors,
            ..QualityReport::default()
        });
        header
    }
}

/// Bytes of a tensor that are not codes: row scales, block scales and the padding after them.
fn scale_bytes(codec: &Codec, shape: &[u64]) -> u64 {
    if codec.id().is_dense() {
        return 0;
    }
    let (rows, cols) = (shape[0] as usize, shape[1] as usize);
    let codes = block_count(cols) * BLOCK_COLS * PANEL_ROWS * codec.id().code_bits() as usize / 8;
    panel_count(rows) as u64 * (codec.panel_bytes(cols) - codes) as u64
}
