//! Files that are replaced as a whole, and sections of documents between markers.

use std::fs::{self, Permissions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::error::WithHint;

/// Writes a file under its name complete or not at all: the old one stays until then.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let permissions = fs::metadata(path).ok().map(|meta| meta.permissions());
    write(path, text, permissions).with_context(|| format!("cannot write {}", path.display()))
}

fn write(path: &Path, text: &str, permissions: Option<Permissions>) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".partial-");
    // As any file of the user's, less what their mask takes away.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    if let Some(permissions) = permissions {
        file.as_file().set_permissions(permissions)?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// A section of a document between two markers.
#[derive(Debug)]
pub(crate) struct Section {
    /// What the name stands for, so that a link stays one.
    path: PathBuf,
    /// Up to the section, with the marker, and from its end.
    around: [String; 2],
}

impl Section {
    /// The section between `<!-- name:begin -->` and `<!-- name:end -->`.
    pub(crate) fn open(path: &Path, name: &str) -> Result<Self> {
        let cannot = || format!("cannot update {}", path.display());
        let path = fs::canonicalize(path).with_context(cannot)?;
        let text = fs::read_to_string(&path).with_context(cannot)?;
        let [begin, end] = markers(name);
        let around = split(&text, name)
            .with_context(cannot)
            .hint(format!("put `{begin}` and after it `{end}` where the tables are to stand"))?;
        Ok(Self { path, around: around.map(str::to_owned) })
    }

    /// Puts the section in.
    pub(crate) fn update(&self, section: &str) -> Result<()> {
        let [before, after] = &self.around;
        let permissions = fs::metadata(&self.path).ok().map(|meta| meta.permissions());
        write(&self.path, &format!("{before}\n{section}{after}"), permissions)
            .with_context(|| format!("cannot update {}", self.path.display()))
    }
}

fn markers(name: &str) -> [String; 2] {
    ["begin", "end"].map(|end| format!("<!-- {name}:{end} -->"))
}

/// What stands before the section, with its first marker, and after it, with its last.
fn split<'a>(text: &'a str, name: &str) -> Result<[&'a str; 2]> {
    let [begin_marker, end_marker] = markers(name);
    let once = |marker: &str| match text.matches(marker).count() {
        1 => Ok(text.find(marker).unwrap_or_default()),
        count => Err(anyhow::anyhow!("it has the marker `{marker}` {count} times, expected once")),
    };
    let (begin, end) = (once(&begin_marker)? + begin_marker.len(), once(&end_marker)?);
    anyhow::ensure!(begin <= end, "the marker `{end_marker}` stands before `{begin_marker}`");
    Ok([&text[..begin], &text[end..]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("page.md");
        let [begin, end] = markers("a");
        fs::write(&path, format!("# a\n{begin}\nold\nolder\n{end}\nb\n")).unwrap();
        let expected = format!("# a\n{begin}\nnew\n{end}\nb\n");
        for _ in 0..2 {
            Section::open(&path, "a").unwrap().update("new\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn markers_must_stand_once_and_in_order() {
        let [begin, end] = markers("a");
        let error = |text: &str| split(text, "a").unwrap_err().to_string();
        assert!(error("nothing").contains("0 times"));
        assert!(error(&begin).contains("a:end"));
        assert!(error(&format!("{begin}{end}{begin}{end}")).contains("2 times"));
        assert!(error(&format!("{end}{begin}")).contains("before"));
        assert!(error("<!-- b:begin --><!-- b:end -->").contains("a:begin"));
    }

    #[test]
    fn a_file_is_replaced_or_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        for text in ["first", "second"] {
            replace(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let error = replace(&path.join("b.json"), "c").unwrap_err();
        assert!(error.to_string().contains("b.json"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
