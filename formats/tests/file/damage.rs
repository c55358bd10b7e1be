//! Any flipped bit is found, by opening or by verifying; any cut is an error.

use gristmill_formats::container::{Damage, verify};
use gristmill_formats::source::ModelSource;
use gristmill_formats::{FormatError, Silent};

use crate::sample::{self, Rng};

/// What finds a file damaged.
fn found(bytes: &[u8]) -> Result<Vec<Damage>, FormatError> {
    sample::open(bytes).map(|file| verify(&file, &Silent))
}

#[test]
fn any_flipped_bit_is_found() {
    let good = sample::bytes();
    let parts = sample::parts(&sample::open(&good).unwrap());
    assert_eq!(parts.first().unwrap().1.start, 0);
    assert_eq!(parts.last().unwrap().1.end, good.len());
    assert!(parts.windows(2).all(|p| p[0].1.end == p[1].1.start), "parts cover the file");
    assert_eq!(found(&good).unwrap(), []);

    let mut rng = Rng::new(2);
    let mut bytes = good.clone();
    for (name, range) in parts {
        let mut places: Vec<(usize, u32)> =
            (0..60).map(|_| (range.start + rng.below(range.len()), rng.below(8) as u32)).collect();
        places.extend((0..8).flat_map(|bit| [(range.start, bit), (range.end - 1, bit)]));
        if range.len() <= 144 {
            places.extend(range.clone().map(|at| (at, rng.below(8) as u32)));
        }
        for (at, bit) in places {
            bytes[at] ^= 1 << bit;
            match found(&bytes) {
                Err(_) => {}
                Ok(damage) => {
                    assert!(!damage.is_empty(), "bit {bit} of byte {at} in {name} was not found");
                    assert_eq!(damage.len(), 1, "one bit in {name}: {damage:?}");
                }
            }
            bytes[at] ^= 1 << bit;
        }
    }
    assert!(bytes == good);
}

#[test]
fn damage_is_reported_where_it_is() {
    let good = sample::bytes();
    let file = sample::open(&good).unwrap();
    for (name, range) in sample::parts(&file) {
        let mut bytes = good.clone();
        let at = range.end - 1;
        bytes[at] ^= 0x10;
        let opened = found(&bytes);
        match name.as_str() {
            "superblock" | "header" | "footer" => {
                let error = opened.unwrap_err().to_string();
                assert!(error.contains(&name), "{error}");
            }
            _ => {
                let damage = opened.unwrap();
                let part = &damage[0].part;
                if name.starts_with("padding") {
                    assert!(part.starts_with("padding before"), "{part} for {name}");
                    assert_eq!(damage[0].offset, at as u64);
                } else {
                    assert!(part.contains(&name), "{part} for {name}");
                    assert_eq!(damage[0].offset, range.start as u64);
                }
            }
        }
    }
}

#[test]
fn several_damaged_parts_are_all_reported() {
    let mut bytes = sample::bytes();
    let parts = sample::parts(&sample::open(&bytes).unwrap());
    let tensors: Vec<_> = parts.iter().filter(|(name, _)| name.starts_with("layers.")).collect();
    for (_, range) in &tensors {
        bytes[range.start] ^= 1;
    }
    assert_eq!(found(&bytes).unwrap().len(), tensors.len());
}

#[test]
fn a_damaged_tokenizer_is_an_error_when_it_is_read() {
    let mut bytes = sample::bytes();
    let section = sample::open(&bytes).unwrap().header().tokenizer.clone().unwrap();
    bytes[section.offset as usize + 50] ^= 1;
    let file = sample::open(&bytes).unwrap();
    assert!(matches!(file.tokenizer(), Err(FormatError::Corrupt { .. })));
}

#[test]
fn a_cut_anywhere_is_an_error() {
    let good = sample::bytes();
    let parts = sample::parts(&sample::open(&good).unwrap());
    let mut cuts: Vec<usize> = parts
        .iter()
        .flat_map(|(_, range)| [range.start, range.end])
        .flat_map(|at| [at.saturating_sub(1), at, at + 1])
        .chain([0, 1, 7, 8, 9, 127, 128, 129])
        .filter(|&at| at < good.len())
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    for cut in cuts {
        let error = sample::open(&good[..cut]).unwrap_err();
        assert!(matches!(error, FormatError::Truncated { .. }), "cut at {cut}: {error}");
    }
}

#[test]
fn bytes_after_the_end_are_an_error() {
    let good = sample::bytes();
    for extra in [&[0u8][..], &[0; 64], &[0xff; 4096], b"gristmill-commit"] {
        let longer = [&good[..], extra].concat();
        assert!(matches!(sample::open(&longer), Err(FormatError::Corrupt { .. })));
    }
    // Even a second copy of the whole file.
    assert!(sample::open(&good.repeat(2)).is_err());
}

#[test]
fn other_files_are_told_apart_from_damaged_ones() {
    let not_ours: [&[u8]; 5] =
        [b"GGUF\x03\0\0\0", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"{\"a\":1}", &[0; 4096]];
    for bytes in not_ours {
        assert!(matches!(sample::open(bytes), Err(FormatError::BadMagic { .. })));
    }
    // A line ending that was translated on the way.
    let mut mangled = sample::bytes();
    mangled.remove(6);
    assert!(matches!(sample::open(&mangled), Err(FormatError::BadMagic { .. })));
    assert!(matches!(sample::open(b""), Err(FormatError::Truncated { .. })));
    assert!(matches!(sample::open(b"\x89GRI"), Err(FormatError::Truncated { .. })));
}

#[test]
fn random_bytes_in_place_of_any_part_are_found() {
    let good = sample::bytes();
    let parts = sample::parts(&sample::open(&good).unwrap());
    let mut rng = Rng::new(3);
    for (name, range) in parts {
        let mut bytes = good.clone();
        let noise = rng.bytes(range.len());
        bytes[range].copy_from_slice(&noise);
        assert!(found(&bytes).map_or(true, |damage| !damage.is_empty()), "noise in {name}");
    }
}
