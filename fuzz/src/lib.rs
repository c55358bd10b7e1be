//! What the fuzz targets share: a small packed file made in memory, and a bound on memory.

pub mod budget;
pub mod sample;

/// Panel bytes of a codec and a width out of fuzz input: the first byte is the width.
pub fn panel(data: &[u8], codec: &gristmill_formats::codec::Codec) -> Option<(usize, Vec<u8>)> {
    let (&cols, bytes) = data.split_first()?;
    let cols = usize::from(cols);
    let mut panel = bytes.to_vec();
    // Short inputs reach wide panels too.
    panel.resize(codec.panel_bytes(cols), bytes.last().copied().unwrap_or_default());
    Some((cols, panel))
}

/// Equal to the last bit, or both not a number.
pub fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}
