//! Any bytes as a superblock and as a whole file; then the same with a digest that fits.
#![no_main]

use gristmill_formats::container::{SUPERBLOCK_BYTES, Superblock};
use gristmill_fuzz::{budget, sample};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    budget::within(data.len(), 16, || {
        let _ = Superblock::parse(data);
        let _ = sample::exercise(data.to_vec());
        let Some(record) = data.first_chunk::<SUPERBLOCK_BYTES>() else { return };
        let mut bytes = *record;
        let digest = blake3::hash(&bytes[..96]);
        bytes[96..].copy_from_slice(digest.as_bytes());
        if let Ok(superblock) = Superblock::parse(&bytes) {
            assert!(
                superblock.header_offset + superblock.header_bytes <= superblock.footer_offset()
            );
            let again =
                Superblock::parse(&superblock.to_bytes()).expect("what was read is written");
            assert_eq!(again, superblock);
        }
        let _ = sample::exercise([&bytes[..], &data[SUPERBLOCK_BYTES..]].concat());
    });
});
