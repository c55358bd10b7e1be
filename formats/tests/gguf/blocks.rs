use gristmill_formats::gguf::{BLOCK, Block, GgmlType, SUPERBLOCK, SuperBlock};
use proptest::prelude::*;
use serde_json::Value;

fn from_hex(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("text");
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[test]
fn blocks_decode_to_the_values_of_the_reference() {
    let golden: Value = serde_json::from_str(include_str!("blocks.json")).expect("JSON");
    let golden = golden.as_array().expect("a list");
    let blocks = GgmlType::ALL.into_iter().filter(|ty| !ty.is_dense());
    assert_eq!(golden.len(), blocks.count(), "every type with blocks has its golden");
    for entry in golden {
        let ty: GgmlType = entry["type"].as_str().expect("text").parse().expect("a type");
        let (bytes, values) = (from_hex(&entry["bytes"]), from_hex(&entry["values"]));
        let mut decoded = vec![0.0f32; values.len() / 4];
        ty.decode_row(&bytes, &mut decoded);
        let decoded: Vec<u8> = decoded.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(decoded, values, "{ty}, bit for bit");
    }
}

#[test]
fn dense_types_decode_what_they_encode() {
    let values = [0.0, -1.5, 3.25, 65504.0, -0.0];
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::Bf16] {
        let mut bytes = Vec::new();
        ty.encode_dense(&values[..3], &mut bytes);
        let mut decoded = [0.0f32; 3];
        ty.decode_row(&bytes, &mut decoded);
        assert_eq!(decoded, values[..3], "{ty}");
    }
}

#[test]
fn a_block_of_zeros_is_zero() {
    for ty in GgmlType::ALL.into_iter().filter(|ty| ty.block_len() == BLOCK) {
        let block = Block::zero(ty);
        assert!((0..BLOCK).all(|i| block.value(ty, i) == 0.0), "{ty}");
    }
    for ty in GgmlType::ALL.into_iter().filter(|ty| ty.block_len() == SUPERBLOCK) {
        assert!((0..SUPERBLOCK).all(|i| SuperBlock::zero().value(ty, i) == 0.0), "{ty}");
    }
}

proptest! {
    // Layouts have no unused bits, so that any bytes survive unpacking and packing.
    #[test]
    fn packing_undoes_unpacking(bytes in prop::collection::vec(any::<u8>(), SUPERBLOCK)) {
        for ty in GgmlType::ALL {
            let bytes = &bytes[..ty.block_bytes().min(bytes.len())];
            let mut packed = Vec::new();
            match ty.block_len() {
                BLOCK => Block::unpack(ty, bytes).pack(ty, &mut packed),
                SUPERBLOCK => SuperBlock::unpack(ty, bytes).pack(ty, &mut packed),
                _ => continue,
            }
            prop_assert_eq!(&packed[..], bytes, "{}", ty);
        }
    }
}
