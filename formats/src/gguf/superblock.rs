//! Superblocks of 256 elements ("k-quants"): small integer scales under half-precision ones.
//!
//! | type | groups | bytes | value of code `c` |
//! |---|---|---|---|
//! | Q4_K | 8 of 32 | scale, min scale, 12 of 6-bit scales and mins, nibbles | `scale * s * c - min_scale * m` |
//! | Q5_K | 8 of 32 | the same with 32 of fifth bits before the nibbles | the same |
//! | Q6_K | 16 of 16 | nibbles, 64 of high bit pairs, 16 signed scales, scale | `scale * s * (c - 32)` |
//!
//! Products fit into the 24 bits of an f32, as in the small blocks.

use half::f16;

use super::types::GgmlType;

/// Elements of a superblock.
pub const SUPERBLOCK: usize = 256;
const GROUPS: usize = 8;
const SIX_BITS: u8 = 63;

/// A superblock before it is packed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SuperBlock {
    /// Factor of the groups' scales.
    pub scale: f16,
    /// Factor of the groups' mins; not stored in Q6_K.
    pub min_scale: f16,
    /// Scale of each group: 8 of 0..=63, or Q6_K's 16 of -128..=127.
    pub scales: [i8; 2 * GROUPS],
    /// Min of each group, 0..=63; not stored in Q6_K.
    pub mins: [u8; GROUPS],
    /// Codes: 0..=15, 0..=31 or 0..=63.
    pub codes: [u8; SUPERBLOCK],
}

impl SuperBlock {
    /// A superblock whose values are all zero.
    pub fn zero() -> Self {
        let (scales, mins, codes) = ([0; 2 * GROUPS], [0; GROUPS], [0; SUPERBLOCK]);
        Self { scale: f16::ZERO, min_scale: f16::ZERO, scales, mins, codes }
    }

    /// The value of an element.
    #[inline]
    pub fn value(&self, ty: GgmlType, at: usize) -> f32 {
        let code = f32::from(self.codes[at]);
        if ty == GgmlType::Q6_K {
            return self.scale.to_f32() * f32::from(self.scales[at / 16]) * (code - 32.0);
        }
        let group = at / 32;
        let scale = self.scale.to_f32() * f32::from(self.scales[group]);
        scale * code - self.min_scale.to_f32() * f32::from(self.mins[group])
    }

    /// Appends the bytes of the superblock.
    ///
    /// # Panics
    /// When the type has other blocks.
    pub fn pack(&self, ty: GgmlType, bytes: &mut Vec<u8>) {
        match ty {
            GgmlType::Q4_K | GgmlType::Q5_K => {
                bytes.extend_from_slice(&self.scale.to_le_bytes());
                bytes.extend_from_slice(&self.min_scale.to_le_bytes());
                bytes.extend_from_slice(&self.pack_six_bits());
                if ty == GgmlType::Q5_K {
                    // Bit `g` of byte `i` belongs to element `i` of group `g`.
                    let bit = |g: usize, i: usize| (self.codes[32 * g + i] >> 4 & 1) << g;
                    bytes.extend((0..32).map(|i| (0..GROUPS).map(|g| bit(g, i)).sum::<u8>()));
                }
                for pair in self.codes.chunks_exact(64) {
                    bytes.extend((0..32).map(|i| pair[i] & 15 | pair[32 + i] << 4));
                }
            }
            GgmlType::Q6_K => {
                for half in self.codes.chunks_exact(128) {
                    bytes.extend((0..64).map(|i| half[i] & 15 | half[64 + i] << 4));
                }
                for half in self.codes.chunks_exact(128) {
                    let pair = |i: usize, q: usize| (half[32 * q + i] >> 4 & 3) << (2 * q);
                    bytes.extend((0..32).map(|i| (0..4).map(|q| pair(i, q)).sum::<u8>()));
                }
                bytes.extend(self.scales.iter().map(|&s| s as u8));
                bytes.extend_from_slice(&self.scale.to_le_bytes());
            }
            _ => panic!("{ty} has no superblocks"),
        }
    }

    /// Reads a superblock back.
    ///
    /// # Panics
    /// When the type has other blocks or the number of bytes is another.
    pub fn unpack(ty: GgmlType, bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), ty.block_bytes(), "a superblock of {ty}");
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut block = Self::zero();
        match ty {
            GgmlType::Q4_K | GgmlType::Q5_K => {
                (block.scale, block.min_scale) = (half(0), half(2));
                block.unpack_six_bits(&bytes[4..16]);
                let nibbles = &bytes[bytes.len() - SUPERBLOCK / 2..];
                for (at, code) in block.codes.iter_mut().enumerate() {
                    let (group, i) = (at / 32, at % 32);
                    *code = nibbles[group / 2 * 32 + i] >> (4 * (group % 2)) & 15;
                    if ty == GgmlType::Q5_K {
                        *code |= (bytes[16 + i] >> group & 1) << 4;
                    }
                }
            }
            GgmlType::Q6_K => {
                let (low, high) = (&bytes[..128], &bytes[128..192]);
                for (at, code) in block.codes.iter_mut().enumerate() {
                    let (half, i) = (at / 128, at % 128);
                    let nibble = low[64 * half + i % 64] >> (4 * (i / 64)) & 15;
                    *code = nibble | (high[32 * half + i % 32] >> (2 * (i / 32)) & 3) << 4;
                }
                for (scale, &byte) in block.scales.iter_mut().zip(&bytes[192..208]) {
                    *scale = byte as i8;
                }
                block.scale = half(208);
            }
            _ => panic!("{ty} has no superblocks"),
        }
        block
    }

    /// Scales and mins of the first four groups take a byte each; their top two bits are those of the
    /// last four, whose low nibbles share the last four bytes.
    fn pack_six_bits(&self) -> [u8; 12] {
        let mut packed = [0u8; 12];
        for i in 0..4 {
            let (scale, min) = (self.scales[4 + i] as u8, self.mins[4 + i]);
            packed[i] = self.scales[i] as u8 & SIX_BITS | scale >> 4 << 6;
            packed[4 + i] = self.mins[i] & SIX_BITS | min >> 4 << 6;
            packed[8 + i] = scale & 15 | min << 4;
        }
        packed
    }

    fn unpack_six_bits(&mut self, packed: &[u8]) {
        for i in 0..4 {
            let (first, second, low) = (packed[i], packed[4 + i], packed[8 + i]);
            self.scales[i] = (first & SIX_BITS) as i8;
            self.mins[i] = second & SIX_BITS;
            self.scales[4 + i] = (low & 15 | first >> 6 << 4) as i8;
            self.mins[4 + i] = low >> 4 | second >> 6 << 4;
        }
    }
}
