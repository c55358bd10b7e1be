//! The checkpoint inside the program, so that `demo` needs no download and no repository.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Name of the model and of its directory.
pub(crate) const NAME: &str = "tiny-shakespeare";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$((
            $name,
            include_bytes!(concat!("../examples/models/tiny-shakespeare/", $name)) as &[u8],
        )),*]
    };
}

const FILES: [(&str, &[u8]); 6] = files![
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Text that the model was not trained on.
pub(crate) const HELDOUT: &[u8] = include_bytes!("../examples/models/tiny-shakespeare/heldout.txt");

/// Writes the checkpoint below `dir`; returns its directory.
pub(crate) fn extract(dir: &Path) -> Result<PathBuf> {
    let model = dir.join(NAME);
    fs::create_dir_all(&model).with_context(|| format!("cannot create {}", model.display()))?;
    for (name, bytes) in FILES.into_iter().chain([("heldout.txt", HELDOUT)]) {
        let path = model.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(model)
}
