//! Files that look like those of a system.

use std::fs;
use std::path::Path;

/// Writes a file and the directories that it lies in.
pub(crate) fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, text).expect("written");
}

/// A directory with files in it.
pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    files.iter().for_each(|(name, text)| write(root.path(), name, text));
    root
}
