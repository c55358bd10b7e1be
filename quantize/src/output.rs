//! Checks of the place where the file will appear, before any work.

use std::path::{Path, PathBuf};

use gristmill_formats::FormatError;

use crate::{QuantizeError, Result};

/// Checks that a file can be made at `path` without destroying a source.
pub(crate) fn check(path: &Path, source_paths: &[PathBuf]) -> Result<()> {
    let refuse = |reason: String| Err(QuantizeError::Output { path: path.into(), reason });
    let Some(name) = path.file_name() else {
        return refuse("it does not name a file".into());
    };
    if path.is_dir() {
        return refuse("it is a directory; name a file in it".into());
    }
    let directory = directory_of(path);
    match std::fs::metadata(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return refuse(format!("directory {} does not exist", directory.display()));
        }
        Err(e) => return refuse(format!("directory {}: {e}", directory.display())),
        Ok(m) if !m.is_dir() => {
            return refuse(format!("{} is not a directory", directory.display()));
        }
        Ok(m) if m.permissions().readonly() => {
            return refuse(format!("directory {} is not writable", directory.display()));
        }
        Ok(_) => {}
    }
    let mut partial = name.to_os_string();
    partial.push(".partial");
    for written in [path.to_path_buf(), path.with_file_name(partial)] {
        let Ok(written) = written.canonicalize() else { continue };
        if source_paths.iter().any(|s| s.canonicalize().is_ok_and(|s| s == written)) {
            return Err(QuantizeError::OutputIsSource { path: written });
        }
    }
    Ok(())
}

/// Turns a refusal to create the partial file into one that names the place the user chose.
pub(crate) fn explain_create(path: &Path, error: FormatError) -> QuantizeError {
    match &error {
        FormatError::Io { source, .. }
            if matches!(
                source.kind(),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            let directory = directory_of(path).display().to_string();
            let reason = format!("directory {directory} is not writable ({source})");
            QuantizeError::Output { path: path.into(), reason }
        }
        _ => error.into(),
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Fails when fewer than `needed` bytes are free beside `path`. A file that will be replaced does not
/// count as free: both exist until the rename.
pub(crate) fn check_space(path: &Path, needed: u64) -> Result<()> {
    compare_space(path, needed, free_bytes(directory_of(path)))
}

fn compare_space(path: &Path, needed: u64, available: Option<u64>) -> Result<()> {
    match available {
        Some(available) if available < needed => {
            Err(FormatError::NoSpace { path: path.into(), needed, available }.into())
        }
        _ => Ok(()),
    }
}

/// Bytes free for this user on the filesystem of a directory; `None` when the system does not say.
fn free_bytes(directory: &Path) -> Option<u64> {
    fs4::available_space(directory).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_space_is_refused_and_unknown_space_is_not() {
        let path = Path::new("model.grist");
        assert!(compare_space(path, 10, Some(10)).is_ok());
        assert!(compare_space(path, 10, None).is_ok());
        let error = compare_space(path, 10, Some(9)).expect_err("too little").to_string();
        assert!(error.contains("needs 10 bytes, 9 are free"), "{error}");
    }

    #[test]
    fn the_system_says_how_much_is_free() {
        assert!(free_bytes(Path::new(".")).is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_bare_file_name_lies_in_the_current_directory() {
        assert_eq!(directory_of(Path::new("model.grist")), Path::new("."));
        assert_eq!(directory_of(Path::new("out/model.grist")), Path::new("out"));
    }

    #[test]
    fn a_refused_creation_names_the_directory() {
        let io = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = FormatError::Io { path: "out/model.grist.partial".into(), source: io };
        let text = explain_create(Path::new("out/model.grist"), error).to_string();
        assert!(text.contains("directory out is not writable"), "{text}");
    }
}
