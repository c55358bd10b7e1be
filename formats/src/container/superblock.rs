//! The fixed-size records at both ends of a file.

use crate::limits::{MAX_HEADER_BYTES, SECTION_ALIGN};
use crate::{FormatError, Result};

/// First eight bytes: a byte with the top bit set and a line ending, so that a file mangled as text is
/// recognised.
pub const MAGIC: [u8; 8] = *b"\x89GRIST\r\n";
/// Version written: a reader refuses a newer major and reads any minor.
pub const VERSION: (u16, u16) = (1, 0);
/// Size of the superblock.
pub const SUPERBLOCK_BYTES: usize = 128;
/// Last sixteen bytes of a complete file.
pub(super) const COMMIT_MARK: [u8; 16] = *b"gristmill-commit";
/// Size of the footer.
pub const FOOTER_BYTES: usize = SUPERBLOCK_BYTES + COMMIT_MARK.len();

/// Required-feature bit of a quality report with details (see `FORMAT.md`): header members that a reader
/// without this bit would refuse with a message about JSON.
pub(super) const QUALITY_DETAILS: u64 = 1;
/// Names of the required-feature bits, lowest first.
const REQUIRED_FEATURES: [&str; 1] = ["quality details"];

const DIGEST_START: usize = 96;

/// What a reader needs to find and trust the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Format version, major and minor.
    pub version: (u16, u16),
    /// Features without which the file cannot be read rightly.
    pub required_features: u64,
    /// Features that may be ignored.
    pub optional_features: u64,
    /// Where the header starts.
    pub header_offset: u64,
    /// Its length.
    pub header_bytes: u64,
    /// Length of the whole file.
    pub file_bytes: u64,
    /// BLAKE3 of the header.
    pub header_blake3: [u8; 32],
}

impl Superblock {
    /// The record as bytes, sealed with its own digest.
    pub fn to_bytes(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut out = [0u8; SUPERBLOCK_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&self.version.0.to_le_bytes());
        out[10..12].copy_from_slice(&self.version.1.to_le_bytes());
        out[12..16].copy_from_slice(&(SUPERBLOCK_BYTES as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.required_features.to_le_bytes());
        out[24..32].copy_from_slice(&self.optional_features.to_le_bytes());
        out[32..40].copy_from_slice(&self.header_offset.to_le_bytes());
        out[40..48].copy_from_slice(&self.header_bytes.to_le_bytes());
        out[48..56].copy_from_slice(&self.file_bytes.to_le_bytes());
        out[64..96].copy_from_slice(&self.header_blake3);
        let digest = blake3::hash(&out[..DIGEST_START]);
        out[DIGEST_START..].copy_from_slice(digest.as_bytes());
        out
    }

    /// Reads the record at the start of a file.
    ///
    /// # Errors
    /// When it is too short, of another kind, damaged, of a newer version, requires an unknown feature
    /// or points outside the limits.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let len = bytes.len() as u64;
        let Some(bytes) = bytes.first_chunk::<SUPERBLOCK_BYTES>() else {
            if !MAGIC.starts_with(&bytes[..bytes.len().min(8)]) {
                return Err(bad_magic(bytes));
            }
            let end = SUPERBLOCK_BYTES as u64;
            return Err(FormatError::Truncated { what: "the superblock", start: 0, end, len });
        };
        if bytes[..8] != MAGIC {
            return Err(bad_magic(bytes));
        }
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u64_at = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes of a fixed array"))
        };
        let digest = blake3::hash(&bytes[..DIGEST_START]);
        if digest.as_bytes()[..] != bytes[DIGEST_START..] {
            return Err(FormatError::Corrupt {
                what: "superblock".into(),
                detail: "it does not match its own digest".into(),
            });
        }
        let superblock = Self {
            version: (u16_at(8), u16_at(10)),
            required_features: u64_at(16),
            optional_features: u64_at(24),
            header_offset: u64_at(32),
            header_bytes: u64_at(40),
            file_bytes: u64_at(48),
            header_blake3: bytes[64..96].try_into().expect("32 bytes of a fixed array"),
        };
        if superblock.version.0 > VERSION.0 || superblock.version.0 == 0 {
            let (major, minor) = superblock.version;
            return Err(FormatError::UnsupportedVersion { major, minor, supported: VERSION.0 });
        }
        let unknown = superblock.required_features >> REQUIRED_FEATURES.len();
        if unknown != 0 {
            let bit = unknown.trailing_zeros() as usize + REQUIRED_FEATURES.len();
            return Err(FormatError::UnknownFeature(format!("required bit {bit}")));
        }
        superblock.check_extents()?;
        Ok(superblock)
    }

    /// Header and footer lie where a complete file has them, with nothing between or after.
    fn check_extents(&self) -> Result<()> {
        let invalid = |what: &str| Err(FormatError::InvalidHeader(format!("superblock: {what}")));
        if self.header_bytes > MAX_HEADER_BYTES {
            return invalid("the header is longer than its limit");
        }
        if self.header_offset < SECTION_ALIGN || !self.header_offset.is_multiple_of(64) {
            return invalid("the header is misplaced");
        }
        let end = self.header_offset.checked_add(self.header_bytes);
        let footer = end.and_then(|end| super::align_up(end, 64));
        match footer.and_then(|at| at.checked_add(FOOTER_BYTES as u64)) {
            Some(len) if len == self.file_bytes => Ok(()),
            _ => invalid("header and file length do not agree"),
        }
    }

    /// Where the footer starts.
    pub fn footer_offset(&self) -> u64 {
        self.file_bytes - FOOTER_BYTES as u64
    }

    /// The footer that belongs to this superblock.
    pub fn footer(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0u8; FOOTER_BYTES];
        out[..SUPERBLOCK_BYTES].copy_from_slice(&self.to_bytes());
        out[SUPERBLOCK_BYTES..].copy_from_slice(&COMMIT_MARK);
        out
    }
}

fn bad_magic(bytes: &[u8]) -> FormatError {
    let mut found = [0u8; 8];
    let n = bytes.len().min(8);
    found[..n].copy_from_slice(&bytes[..n]);
    FormatError::BadMagic { found, expected: MAGIC }
}
