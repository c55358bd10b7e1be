//! The system's cache of file pages.

use std::fs::File;

/// Asks the system to forget what it holds of a file; false where it cannot be asked. Pages that are
/// mapped or not yet written stay.
#[cfg(target_os = "linux")]
pub fn drop_pages(file: &File) -> bool {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).is_ok()
}

/// See the other.
#[cfg(not(target_os = "linux"))]
pub fn drop_pages(_file: &File) -> bool {
    false
}
