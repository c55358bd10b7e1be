//! `verify`: is every byte of a packed file as it was written?

use std::path::PathBuf;

use anyhow::Result;
use gristmill_formats::container::{self, Damage, PackedFile};
use gristmill_formats::source::ModelSource;
use gristmill_formats::{FormatError, Progress};
use serde::Serialize;

use super::Session;
use crate::args::VerifyArgs;
use crate::error::{Interrupted, Outcome, Usage, WithHint};
use crate::progress::TerminalProgress;
use crate::render::{self, Render, SCHEMA_VERSION};
use crate::source::name_file;

#[derive(Debug, Serialize)]
struct Verification {
    schema_version: u32,
    file: PathBuf,
    ok: bool,
    /// Null when the metadata is damaged.
    file_bytes: Option<u64>,
    tensors: Option<usize>,
    fingerprint: Option<String>,
    damage: Vec<Damage>,
}

pub(super) fn run(session: Session, args: &VerifyArgs) -> Result<Outcome> {
    if args.file.is_dir() {
        let error = Usage(format!("{} is a directory", args.file.display()));
        return Err(error).hint("verify checks .grist files");
    }
    let result = match PackedFile::open(&args.file) {
        Ok(file) => check(&file, args)?,
        // What is of another version was not damaged, and what cannot be read was not checked.
        Err(
            error @ (FormatError::Io { .. }
            | FormatError::UnsupportedVersion { .. }
            | FormatError::UnknownFeature(_)),
        ) => return Err(name_file(&args.file, error)),
        Err(error) => Verification {
            schema_version: SCHEMA_VERSION,
            file: args.file.clone(),
            ok: false,
            file_bytes: None,
            tensors: None,
            fingerprint: None,
            damage: vec![metadata_damage(&error)],
        },
    };
    render::emit(&result, session.json)?;
    Ok(if result.ok { Outcome::Done } else { Outcome::CheckFailed })
}

fn check(file: &PackedFile, args: &VerifyArgs) -> Result<Verification> {
    let progress = TerminalProgress::new();
    let damage = container::verify(file, &progress);
    if progress.cancelled() {
        return Err(Interrupted.into());
    }
    Ok(Verification {
        schema_version: SCHEMA_VERSION,
        file: args.file.clone(),
        ok: damage.is_empty(),
        file_bytes: Some(file.file_bytes()),
        tensors: Some(file.header().tensors.len()),
        fingerprint: Some(file.fingerprint()),
        damage,
    })
}

/// What opening the file refused, as a damaged part.
fn metadata_damage(error: &FormatError) -> Damage {
    let (part, offset) = match error {
        FormatError::Corrupt { what, .. } => (what.clone(), 0),
        FormatError::Truncated { start, .. } => ("end of file".into(), *start),
        FormatError::BadMagic { .. } => ("first eight bytes".into(), 0),
        _ => ("header".into(), 0),
    };
    let detail = match error {
        FormatError::Corrupt { detail, .. } => detail.clone(),
        other => other.to_string(),
    };
    Damage { part, offset, detail }
}

impl Render for Verification {
    fn text(&self) -> String {
        let file = self.file.display();
        if let (true, Some(bytes), Some(tensors)) = (self.ok, self.file_bytes, self.tensors) {
            return format!("{file}: intact, {tensors} tensors, {}\n", render::bytes(bytes));
        }
        let damage = self.damage.iter();
        damage.map(|d| format!("{file}: damaged: {}: {}\n", d.part, d.detail)).collect()
    }
}
