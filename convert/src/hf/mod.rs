//! A Hugging Face directory as a model source.

mod arch;
mod arch_gemma3;
mod arch_llama;
mod arch_qwen;
mod config;
mod files;
mod policy;
mod provenance;
mod rope;
mod safetensors;
mod tensors;
mod text;
mod vocabulary;
mod weights;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use gristmill_formats::container::Provenance;
use gristmill_formats::model::ModelSpec;
use gristmill_formats::source::{GenerationDefaults, ModelSource, TensorData, TextAssets};
use gristmill_formats::tokenizer::TokenizerData;
use gristmill_formats::{FormatError, Progress};

pub use arch::SUPPORTED_MODEL_TYPES;
pub use provenance::Licence;

use crate::limits::MAX_CONFIG_BYTES;
use crate::{ConvertError, Result};
use config::CONFIG_FILE;
use files::{file_size, read_optional};
use text::TextFiles;
use weights::Weights;

/// Tokenizers in forms that are not read.
const OTHER_TOKENIZERS: &[&str] = &["tokenizer.model", "vocab.json", "tekken.json"];

/// The model that a `config.json` describes, without its weights.
///
/// # Errors
/// When it is not JSON, its architecture is not supported, or a key is unknown or has a value that is
/// not supported; the error names the key.
pub fn spec_from_config(json: &[u8]) -> Result<ModelSpec> {
    Ok(arch::import(json)?.spec)
}

/// An unpacked checkpoint: `config.json`, safetensors weights and, where present, tokenizer, chat
/// template and generation defaults. Weights are mapped and handed out in place; the files must not be
/// changed while they are open.
#[derive(Debug)]
pub struct HfCheckpoint {
    dir: PathBuf,
    config: Vec<u8>,
    spec: ModelSpec,
    weights: Weights,
    tensors: HashMap<String, TensorData>,
    tokenizer: Option<Vec<u8>>,
    text: TextAssets,
    generation: GenerationDefaults,
    licence: Licence,
    name_or_path: Option<String>,
    notes: Vec<String>,
    files: Vec<String>,
    file_bytes: u64,
}

impl HfCheckpoint {
    /// Opens a directory and checks all of it but the values of the weights: after this, every tensor
    /// of the model is there in the right shape.
    ///
    /// # Errors
    /// [`ConvertError`] naming the file, key or tensor, what was expected and found, and what to do.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(ConvertError::NotADirectory { path: dir.into() });
        }
        let path = dir.join(CONFIG_FILE);
        let config = read_optional(&path, MAX_CONFIG_BYTES)?.ok_or_else(|| {
            let remedy = "give the directory of a Hugging Face checkpoint, with config.json in it";
            ConvertError::MissingFile { path, remedy: remedy.into() }
        })?;
        let model = arch::import(&config)?;
        let weights = Weights::open(dir)?;
        let tensors = weights.resolve(&model.spec, model.architecture)?;

        let mut notes = Vec::new();
        notes.extend(model.architecture.wrapper.map(|wrapper| wrapper.note.to_string()));
        let text_files = TextFiles::read(dir)?;
        if text_files.tokenizer.is_none() {
            let other = OTHER_TOKENIZERS.iter().find(|name| file_size(&dir.join(name)).is_some());
            notes.extend(other.map(|name| {
                format!(
                    "{name} is not read: save the tokenizer as tokenizer.json with transformers"
                )
            }));
        }
        let text = text_files.assets(&model, &mut notes)?;
        let generation = text_files.generation(&mut notes)?;

        let mut files = vec![CONFIG_FILE.to_string()];
        files.extend(text::FILES.iter().map(|name| name.to_string()));
        files.extend(weights.index.as_ref().map(|_| weights::INDEX_FILE.to_string()));
        files.extend(
            weights
                .shards
                .iter()
                .filter_map(|shard| Some(shard.path.file_name()?.to_string_lossy().into_owned())),
        );
        files.retain(|name| file_size(&dir.join(name)).is_some());
        let file_bytes = files.iter().filter_map(|name| file_size(&dir.join(name))).sum();
        Ok(Self {
            dir: dir.into(),
            config,
            spec: model.spec,
            weights,
            tensors,
            tokenizer: text_files.tokenizer,
            text,
            generation,
            licence: Licence::read(dir)?,
            name_or_path: model.name_or_path,
            notes,
            files,
            file_bytes,
        })
    }

    /// What the user should know about the import, such as parts that were left out.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The licence that the checkpoint states.
    pub fn licence(&self) -> &Licence {
        &self.licence
    }

    /// `_name_or_path` of `config.json`: what the checkpoint was made from or saved as, by its own
    /// account. It may be a path on its author's machine.
    pub fn name_or_path(&self) -> Option<&str> {
        self.name_or_path.as_deref()
    }

    /// Names of the files that were used, within the directory.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Name, revision, licence, and the digest of every file that was used. Reads the weights in full.
    /// `tool`, `recipe` and `calibration_blake3` are left empty for the writer.
    ///
    /// # Errors
    /// [`ConvertError::Cancelled`], or what reading a file met.
    pub fn provenance(&self, progress: &dyn Progress) -> Result<Provenance> {
        provenance::provenance(&self.dir, &self.files, &self.licence, progress)
    }
}

impl ModelSource for HfCheckpoint {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, name: &str) -> gristmill_formats::Result<TensorData> {
        self.tensors.get(name).cloned().ok_or_else(|| FormatError::MissingTensor(name.into()))
    }

    fn tokenizer(&self) -> gristmill_formats::Result<Option<TokenizerData>> {
        self.tokenizer.as_deref().map(TokenizerData::from_json).transpose()
    }

    fn text(&self) -> &TextAssets {
        &self.text
    }

    fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    fn fingerprint(&self) -> String {
        provenance::fingerprint(&self.config, &self.weights)
    }
}
