//! Blocks of 32 elements: one scale, in some types an offset, and codes of 4, 5 or 8 bits.
//!
//! | type | bytes | value of code `c` |
//! |---|---|---|
//! | Q4_0 | scale, nibbles | `scale * (c - 8)` |
//! | Q4_1 | scale, offset, nibbles | `scale * c + offset` |
//! | Q5_0 | scale, fifth bits, nibbles | `scale * (c - 16)` |
//! | Q5_1 | scale, offset, fifth bits, nibbles | `scale * c + offset` |
//! | Q8_0 | scale, bytes | `scale * c`, `c` as a signed byte |
//!
//! Scale and offset are IEEE half precision. Nibble byte `j` has code `j` low and code `j + 16` high;
//! bit `i` of the little-endian word of fifth bits belongs to code `i`. Every product fits into the 24
//! bits of an f32, so that readers which fuse the addition get the same value.

use half::f16;

use super::types::GgmlType;

/// Elements of a block.
pub const BLOCK: usize = 32;
const HALF: usize = BLOCK / 2;

/// A block before it is packed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block {
    /// Factor of the codes; may be negative.
    pub scale: f16,
    /// Added to the product in Q4_1 and Q5_1; else not stored.
    pub offset: f16,
    /// Codes, unsigned but for Q8_0's.
    pub codes: [u8; BLOCK],
}

impl Block {
    /// A block whose values are all zero.
    pub fn zero(ty: GgmlType) -> Self {
        Self { scale: f16::ZERO, offset: f16::ZERO, codes: [(-lowest(ty)) as u8; BLOCK] }
    }

    /// The value of an element.
    #[inline]
    pub fn value(&self, ty: GgmlType, at: usize) -> f32 {
        let (code, scale) = (self.codes[at], self.scale.to_f32());
        match ty {
            GgmlType::Q8_0 => f32::from(code as i8) * scale,
            GgmlType::Q4_1 | GgmlType::Q5_1 => f32::from(code) * scale + self.offset.to_f32(),
            _ => (f32::from(code) + f32::from(lowest(ty))) * scale,
        }
    }

    /// Appends the bytes of the block.
    ///
    /// # Panics
    /// When the type has other blocks.
    pub fn pack(&self, ty: GgmlType, bytes: &mut Vec<u8>) {
        let parts = Parts::of(ty);
        bytes.extend_from_slice(&self.scale.to_le_bytes());
        if parts.offset {
            bytes.extend_from_slice(&self.offset.to_le_bytes());
        }
        if parts.fifth_bits {
            let bit = |(i, c): (usize, &u8)| u32::from(c >> 4 & 1) << i;
            let bits: u32 = self.codes.iter().enumerate().map(bit).sum();
            bytes.extend_from_slice(&bits.to_le_bytes());
        }
        if parts.nibbles {
            bytes.extend((0..HALF).map(|j| self.codes[j] & 15 | self.codes[j + HALF] << 4));
        } else {
            bytes.extend_from_slice(&self.codes);
        }
    }

    /// Reads a block back.
    ///
    /// # Panics
    /// When the type has other blocks or the number of bytes is another.
    pub fn unpack(ty: GgmlType, bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), ty.block_bytes(), "a block of {ty}");
        let parts = Parts::of(ty);
        let mut rest = bytes;
        let mut take = |n: usize| {
            let (part, after) = rest.split_at(n);
            rest = after;
            part
        };
        let half = |part: &[u8]| f16::from_le_bytes([part[0], part[1]]);
        let scale = half(take(2));
        let offset = if parts.offset { half(take(2)) } else { f16::ZERO };
        let fifth = if parts.fifth_bits { take(4) } else { &[0; 4] };
        let mut codes = [0u8; BLOCK];
        if parts.nibbles {
            let nibbles = take(HALF);
            for (i, code) in codes.iter_mut().enumerate() {
                let low = nibbles[i % HALF] >> (4 * (i / HALF)) & 15;
                *code = low | (fifth[i / 8] >> (i % 8) & 1) << 4;
            }
        } else {
            codes.copy_from_slice(take(BLOCK));
        }
        Self { scale, offset, codes }
    }
}

/// What code 0 stands for, in units of the scale.
fn lowest(ty: GgmlType) -> i8 {
    match ty {
        GgmlType::Q4_0 => -8,
        GgmlType::Q5_0 => -16,
        _ => 0,
    }
}

/// Which parts a block has beside its scale.
struct Parts {
    offset: bool,
    fifth_bits: bool,
    nibbles: bool,
}

impl Parts {
    fn of(ty: GgmlType) -> Self {
        let (offset, fifth_bits, nibbles) = match ty {
            GgmlType::Q4_0 => (false, false, true),
            GgmlType::Q4_1 => (true, false, true),
            GgmlType::Q5_0 => (false, true, true),
            GgmlType::Q5_1 => (true, true, true),
            GgmlType::Q8_0 => (false, false, false),
            _ => panic!("{ty} has no blocks of {BLOCK}"),
        };
        Self { offset, fifth_bits, nibbles }
    }
}
