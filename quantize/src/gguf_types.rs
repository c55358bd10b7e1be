//! Which type each tensor of a GGUF file gets: llama.cpp's own choices, so that files of one name have
//! one size and differ in rounding only (`llama-quant.cpp`, `llama_tensor_get_type_impl` and
//! `tensor_type_fallback`).

use std::fmt;
use std::str::FromStr;

use gristmill_formats::FormatError;
use gristmill_formats::gguf::{GgmlType, GgufModel, GgufTensor, TensorInfo};
use gristmill_formats::model::TensorRole;

/// What a GGUF file is called by the type of most of its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum GgufFileType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q8_0,
    Q4_K_S,
}

impl GgufFileType {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::F32, Self::F16, Self::Bf16, Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::Q4_K_S];

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        if self == Self::Q4_K_S { "q4_k_s" } else { self.matrices().name() }
    }

    /// Its number in the file (`enum llama_ftype`).
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q4_K_S => 14,
            Self::Bf16 => 32,
        }
    }

    /// Type of most matrices.
    pub fn matrices(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Bf16 => GgmlType::Bf16,
            Self::Q4_0 => GgmlType::Q4_0,
            Self::Q4_1 => GgmlType::Q4_1,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4_K_S => GgmlType::Q4_K,
        }
    }

    /// The tensors of a file with their types. llama.cpp gives some tensors more bits when it is given
    /// activation statistics (`calibrated`), so a fair comparison does the same.
    pub fn tensors(self, model: &GgufModel, calibrated: bool) -> Vec<TensorInfo> {
        let tensors = model.tensors.iter().map(|tensor| TensorInfo {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            ty: self.tensor_type(model, tensor, calibrated),
        });
        tensors.collect()
    }

    fn tensor_type(self, model: &GgufModel, tensor: &GgufTensor, calibrated: bool) -> GgmlType {
        let (base, cols) = (self.matrices(), tensor.cols());
        let wanted = match tensor.role {
            TensorRole::Vector => return GgmlType::F32,
            _ if base.is_dense() => return base,
            TensorRole::Embedding if !model.tied_head => base,
            TensorRole::Embedding | TensorRole::Head => {
                if base == GgmlType::Q8_0 || !cols.is_multiple_of(base.block_len()) {
                    GgmlType::Q8_0
                } else {
                    GgmlType::Q6_K
                }
            }
            TensorRole::Linear => self.linear_type(model, tensor, calibrated).unwrap_or(base),
        };
        fit_width(wanted, cols)
    }

    /// Exceptions among the layers' matrices.
    fn linear_type(
        self,
        model: &GgufModel,
        tensor: &GgufTensor,
        calibrated: bool,
    ) -> Option<GgmlType> {
        /// First layers whose value projection gets more bits in Q4_K_S.
        const FIRST_VALUES: usize = 4;
        /// Number of layers of the 70B models, whose value projection is small.
        const LAYERS_OF_70B: usize = 80;
        let (layer, part) = tensor.name.strip_prefix("blk.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let first_eighth = layer < model.layers / 8;
        let small_values = model.layers == LAYERS_OF_70B && tensor.rows() < tensor.cols();
        match (self, part) {
            (Self::Q4_K_S, "attn_v.weight") if layer < FIRST_VALUES || small_values => {
                Some(GgmlType::Q5_K)
            }
            (Self::Q4_K_S, "ffn_down.weight") if first_eighth => Some(GgmlType::Q5_K),
            (Self::Q4_0, "ffn_down.weight") if first_eighth && calibrated => Some(GgmlType::Q4_1),
            _ => None,
        }
    }
}

/// The type itself, or what stands in for it where rows are no whole number of its blocks.
fn fit_width(ty: GgmlType, cols: usize) -> GgmlType {
    let fits = |ty: GgmlType| cols.is_multiple_of(ty.block_len());
    if fits(ty) {
        return ty;
    }
    let smaller = match ty {
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        _ => GgmlType::F16,
    };
    if fits(smaller) { smaller } else { GgmlType::F16 }
}

impl fmt::Display for GgufFileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GgufFileType {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            FormatError::Unsupported(format!("no GGUF file type `{name}`; there are {known}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gristmill_formats::gguf::{GgufData, Metadata, RowOrder};

    use super::*;

    fn model(layers: usize, width: u64, inner: u64, tied_head: bool) -> GgufModel {
        let tensor = |name: String, shape: &[u64], role| {
            let data = GgufData::Source { name: name.clone(), order: RowOrder::Same, add: 0.0 };
            GgufTensor { name, shape: shape.into(), role, data }
        };
        let mut tensors =
            vec![tensor("token_embd.weight".into(), &[1000, width], TensorRole::Embedding)];
        for i in 0..layers {
            let mut linear = |part: &str, shape: &[u64]| {
                tensors.push(tensor(format!("blk.{i}.{part}.weight"), shape, TensorRole::Linear));
            };
            linear("attn_q", &[width, width]);
            linear("attn_k", &[width / 3, width]);
            linear("attn_v", &[width / 3, width]);
            linear("attn_output", &[width, width]);
            linear("ffn_gate", &[inner, width]);
            linear("ffn_up", &[inner, width]);
            linear("ffn_down", &[width, inner]);
            let norm = format!("blk.{i}.attn_norm.weight");
            tensors.push(tensor(norm, &[width], TensorRole::Vector));
        }
        if !tied_head {
            tensors.push(tensor("output.weight".into(), &[1000, width], TensorRole::Head));
        }
        GgufModel { metadata: Metadata::default(), tensors, layers, tied_head }
    }

    /// How many tensors have each part of a name and type.
    fn counts(
        file_type: GgufFileType,
        model: &GgufModel,
        calibrated: bool,
    ) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for info in file_type.tensors(model, calibrated) {
            let part = info.name.trim_end_matches(".weight").rsplit('.').next().expect("a part");
            *counts.entry(format!("{part} {}", info.ty)).or_default() += 1;
        }
        counts
    }

    fn expect(found: &BTreeMap<String, usize>, expected: &[(&str, usize)]) {
        for (what, count) in expected {
            assert_eq!(found.get(*what), Some(count), "{what} of {found:?}");
        }
    }

    // The counts are those of files that llama.cpp made of SmolLM2-135M.
    #[test]
    fn widths_that_are_no_multiple_of_a_superblock_fall_back() {
        let model = model(30, 576, 1536, true);
        expect(
            &counts(GgufFileType::Q4_K_S, &model, false),
            &[
                ("attn_k q5_0", 30),
                ("attn_v q5_0", 26),
                ("attn_v q5_1", 4),
                ("ffn_down q4_k", 27),
                ("ffn_down q5_k", 3),
                ("ffn_gate q5_0", 30),
                ("attn_norm f32", 30),
                ("token_embd q8_0", 1),
            ],
        );
        for file_type in [GgufFileType::Q4_0, GgufFileType::Q4_1] {
            let ty = file_type.matrices();
            expect(
                &counts(file_type, &model, false),
                &[(&format!("ffn_down {ty}"), 30), ("token_embd q8_0", 1)],
            );
        }
        let calibrated = counts(GgufFileType::Q4_0, &model, true);
        expect(&calibrated, &[("ffn_down q4_1", 3), ("ffn_down q4_0", 27), ("attn_v q4_0", 30)]);
    }

    #[test]
    fn the_head_has_more_bits_and_an_embedding_of_its_own_has_not() {
        let untied = counts(GgufFileType::Q4_K_S, &model(16, 768, 2048, false), false);
        expect(&untied, &[("output q6_k", 1), ("token_embd q4_k", 1), ("attn_v q5_k", 4)]);
        let tied = counts(GgufFileType::Q4_0, &model(16, 768, 2048, true), false);
        expect(&tied, &[("token_embd q6_k", 1)]);
    }

    #[test]
    fn rows_of_no_whole_block_are_half_precision() {
        let odd = counts(GgufFileType::Q8_0, &model(2, 48, 96, true), false);
        expect(&odd, &[("token_embd f16", 1), ("attn_q f16", 2), ("ffn_down q8_0", 2)]);
    }

    #[test]
    fn names_are_read_back() {
        for file_type in GgufFileType::ALL {
            assert_eq!(file_type.name().parse::<GgufFileType>().expect("a name"), file_type);
        }
        assert!(
            "q3_k".parse::<GgufFileType>().expect_err("unknown").to_string().contains("q4_k_s")
        );
    }
}
