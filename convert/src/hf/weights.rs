//! The weights of a checkpoint: one safetensors file, or shards with an index.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use gristmill_formats::codec::Codec;
use gristmill_formats::model::ModelSpec;
use gristmill_formats::source::{Layout, TensorData};
use gristmill_formats::{FormatError, SharedBytes};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::arch::Architecture;
use super::files::{file_size, parse_json, read_optional};
use super::safetensors::Shard;
use super::tensors::{HARMLESS_SUFFIX, Prefix};
use crate::limits::{MAX_INDEX_BYTES, MAX_SHARDS};
use crate::{ConvertError, Result};

const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Files that tell what kind of directory was given, when there are no safetensors in it.
const HINTS: &[(&str, &str)] = &[
    (
        "pytorch_model.bin",
        "the weights are in PyTorch's pickle format: save the model as safetensors with transformers' \
         save_pretrained",
    ),
    (
        "pytorch_model.bin.index.json",
        "the weights are in PyTorch's pickle format: save the model as safetensors with transformers' \
         save_pretrained",
    ),
    (
        "adapter_model.safetensors",
        "this is a LoRA adapter: merge it into its base model first (merge_and_unload in peft)",
    ),
    (
        "consolidated.safetensors",
        "this is the vendor's own layout: use the repository's Hugging Face files",
    ),
];

#[derive(Deserialize)]
struct Index {
    weight_map: Map<String, Value>,
}

/// The mapped files and what is in them.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) shards: Vec<Shard>,
    /// The index, when there is one.
    pub(super) index: Option<Vec<u8>>,
    /// By name in the checkpoint: the shard and what its header says.
    tensors: HashMap<String, (usize, TensorInfo)>,
}

impl Weights {
    /// Maps the weights of a directory.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let single = dir.join(SINGLE_FILE);
        if file_size(&single).is_some() {
            let mut weights = Self { shards: Vec::new(), index: None, tensors: HashMap::new() };
            weights.add(&single)?;
            return Ok(weights);
        }
        let Some(index) = read_optional(&dir.join(INDEX_FILE), MAX_INDEX_BYTES)? else {
            let hint = HINTS.iter().find(|(name, _)| file_size(&dir.join(name)).is_some());
            let remedy = hint.map_or("the directory has no safetensors weights", |(_, hint)| hint);
            return Err(ConvertError::MissingFile { path: single, remedy: remedy.into() });
        };
        Self::open_sharded(dir, index)
    }

    fn open_sharded(dir: &Path, index: Vec<u8>) -> Result<Self> {
        let Index { weight_map } = parse_json(INDEX_FILE, &index)?;
        let invalid =
            |detail: String| ConvertError::InvalidIndex { file: INDEX_FILE.into(), detail };
        let mut names = BTreeSet::new();
        for (tensor, file) in &weight_map {
            let Some(file) = file.as_str() else {
                return Err(invalid(format!("the file of tensor `{tensor}` is not a string")));
            };
            if !is_plain_file_name(file) {
                let name = file.chars().take(200).collect();
                return Err(ConvertError::UnsafePath { file: INDEX_FILE.into(), name });
            }
            names.insert(file);
            if names.len() > MAX_SHARDS {
                return Err(invalid(format!("more than {MAX_SHARDS} files")));
            }
        }
        let mut weights = Self { shards: Vec::new(), index: None, tensors: HashMap::new() };
        for name in &names {
            weights.add(&dir.join(name))?;
        }
        for (tensor, file) in &weight_map {
            let found = weights.tensors.get(tensor).map(|(shard, _)| &weights.shards[*shard].path);
            if found.and_then(|path| path.file_name()?.to_str()) != file.as_str() {
                let place = found.map_or("nowhere".into(), |path| format!("in {}", path.display()));
                return Err(invalid(format!(
                    "tensor `{tensor}` should be in {}, found {place}",
                    file.as_str().unwrap_or_default(),
                )));
            }
        }
        weights.index = Some(index);
        Ok(weights)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let (shard, tensors) = Shard::open(path)?;
        let index = self.shards.len();
        for (name, info) in tensors {
            if let Some((other, _)) = self.tensors.get(&name) {
                return Err(ConvertError::DuplicateTensor {
                    hf_name: name,
                    first: self.shards[*other].path.clone(),
                    second: path.into(),
                });
            }
            self.tensors.insert(name, (index, info));
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Finds every tensor of the model and checks that the checkpoint has no others.
    pub(super) fn resolve(
        &self,
        spec: &ModelSpec,
        architecture: &Architecture,
    ) -> Result<HashMap<String, TensorData>> {
        let prefix = Prefix::detect(|name| self.tensors.contains_key(name));
        let mut resolved = HashMap::new();
        let mut used = HashSet::new();
        for (tensor, hf_name) in prefix.map(spec, architecture.names) {
            let Some(hf_name) = hf_name else {
                let model_type = architecture.model_type;
                let name = tensor.name;
                return Err(ConvertError::Format(FormatError::Unsupported(format!(
                    "checkpoints of model type `{model_type}` have no name for tensor `{name}`"
                ))));
            };
            let Some((shard, info)) = self.tensors.get(&hf_name) else {
                return Err(missing(tensor.name, hf_name));
            };
            let shard = &self.shards[*shard];
            // First, because quantized checkpoints have other shapes too.
            let codec = codec(shard, &hf_name, info.dtype)?;
            let found: Vec<u64> = info.shape.iter().map(|&n| n as u64).collect();
            if found != tensor.shape {
                return Err(ConvertError::ShapeMismatch {
                    path: shard.path.clone(),
                    name: tensor.name,
                    hf_name,
                    expected: tensor.shape,
                    found,
                });
            }
            let data = TensorData {
                shape: found,
                codec,
                layout: Layout::RowMajor,
                bytes: view(shard, info)?,
            };
            resolved.insert(tensor.name, data);
            used.insert(hf_name);
        }
        if spec.tied_head {
            self.check_tied_head(prefix)?;
            used.insert(prefix.head());
        }
        self.check_unused(&used, architecture)?;
        Ok(resolved)
    }

    /// Some tied checkpoints store the head as well; then it must be the embedding.
    fn check_tied_head(&self, prefix: Prefix) -> Result<()> {
        let (head, embedding) = (prefix.head(), prefix.embedding());
        let (Some((head_shard, head_info)), Some((shard, info))) =
            (self.tensors.get(&head), self.tensors.get(&embedding))
        else {
            return Ok(());
        };
        let (head_shard, shard) = (&self.shards[*head_shard], &self.shards[*shard]);
        let same = head_info.dtype == info.dtype
            && head_info.shape == info.shape
            && *view(head_shard, head_info)? == *view(shard, info)?;
        if same {
            return Ok(());
        }
        Err(ConvertError::Contradiction {
            file: head_shard.path.display().to_string(),
            detail: format!(
                "`tie_word_embeddings` is true, but `{head}` differs from `{embedding}`; set \
                 `tie_word_embeddings` to false in config.json if the head is meant to be separate"
            ),
        })
    }

    fn check_unused(&self, used: &HashSet<String>, architecture: &Architecture) -> Result<()> {
        let other = architecture.wrapper.map_or(&[][..], |wrapper| wrapper.other_tensors);
        let mut unused: Vec<_> = self
            .tensors
            .iter()
            .filter(|(name, _)| {
                !used.contains(*name)
                    && !name.ends_with(HARMLESS_SUFFIX)
                    && !other.iter().any(|prefix| name.starts_with(prefix))
            })
            .collect();
        unused.sort_by_key(|(name, _)| *name);
        let Some((name, (shard, _))) = unused.first() else { return Ok(()) };
        Err(ConvertError::UnusedTensor {
            path: self.shards[*shard].path.clone(),
            hf_name: (*name).clone(),
            model_type: architecture.model_type.into(),
            more: match unused.len() - 1 {
                0 => String::new(),
                n => format!(" (and neither are {n} others)"),
            },
        })
    }
}

fn missing(name: String, hf_name: String) -> ConvertError {
    let remedy = if name == "head" {
        "set `tie_word_embeddings` to true in config.json if the embedding is the output head, else \
         download the checkpoint again"
    } else {
        "config.json is of another model, or the checkpoint is incomplete: download it again"
    };
    ConvertError::MissingTensor { name, hf_name, remedy: remedy.into() }
}

fn codec(shard: &Shard, hf_name: &str, dtype: Dtype) -> Result<Codec> {
    match dtype {
        Dtype::BF16 => Ok(Codec::Bf16),
        Dtype::F16 => Ok(Codec::F16),
        Dtype::F32 => Ok(Codec::F32),
        other => Err(ConvertError::UnsupportedDtype {
            path: shard.path.clone(),
            hf_name: hf_name.into(),
            dtype: format!("{other:?}"),
        }),
    }
}

/// The bytes of a tensor, in place.
fn view(shard: &Shard, info: &TensorInfo) -> Result<SharedBytes> {
    let (start, end) = info.data_offsets;
    let range = start.checked_add(shard.data_start).zip(end.checked_add(shard.data_start));
    range.and_then(|(start, end)| shard.bytes.slice(start..end)).ok_or_else(|| {
        ConvertError::InvalidSafetensors {
            path: shard.path.clone(),
            detail: format!("bytes {start}..{end} of a tensor are outside the file"),
        }
    })
}

/// A name without any path in it, on every system.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}
