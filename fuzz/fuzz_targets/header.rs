//! Any text as a header. The first eight bytes are where the header is said to lie.
#![no_main]

use gristmill_formats::container::Header;
use gristmill_fuzz::budget;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((offset, json)) = data.split_first_chunk::<8>() else { return };
    let offset = u64::from_le_bytes(*offset);
    budget::within(json.len(), 64, || {
        let Ok(header) = Header::parse(json, offset) else { return };
        header.model.validate().expect("a parsed description is valid");
        let bytes = header.to_bytes().expect("what was read is written");
        assert_eq!(Header::parse(&bytes, offset).expect("and read again"), header);
        for (entry, spec) in header.tensors.iter().zip(header.model.tensors()) {
            assert!(entry.offset + entry.bytes <= offset);
            assert_eq!(entry.shape, spec.shape);
        }
    });
});
