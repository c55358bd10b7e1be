//! Bit layouts: what is packed is decoded, every byte is where the documentation says, and sizes follow
//! from shapes.

use gristmill_formats::codec::{
    BLOCK_COLS, Codec, CodecId, Grid, NamedGrid, PANEL_ROWS, PanelHeader, QuantizedRow,
    block_count, panel_count,
};
use gristmill_formats::source::{Layout, TensorData};
use gristmill_formats::{FormatError, SharedBytes};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::sample::Rng;

const COLS: [usize; 9] = [1, 4, 31, 32, 33, 48, 63, 64, 576];

fn random_row(codec: &Codec, cols: usize, rng: &mut Rng) -> QuantizedRow {
    let blocks = block_count(cols);
    let mask = 0xff >> (8 - codec.id().code_bits());
    QuantizedRow {
        row_scale: bf16::from_f32(rng.unit()),
        block_scales: rng.bytes(blocks),
        codes: rng.bytes(blocks * BLOCK_COLS).into_iter().map(|c| c & mask).collect(),
    }
}

fn grids() -> Vec<Grid> {
    let mut grids: Vec<_> = NamedGrid::ALL.iter().map(|g| g.grid()).collect();
    grids.push(
        Grid::new(&[-128, -127, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 0, 0, 1, 2], 125).unwrap(),
    );
    grids.push(Grid::new(&[0, 0, 0, 127], -128).unwrap());
    grids
}

fn block_codecs() -> Vec<Codec> {
    std::iter::once(Codec::Q8).chain(grids().into_iter().map(Codec::Table)).collect()
}

/// The weight that a code means.
fn weight(codec: &Codec, row: &QuantizedRow, col: usize) -> f32 {
    let (scale, code) = (row.block_scales[col / BLOCK_COLS], row.codes[col]);
    let (scale, value) = match codec {
        Codec::Table(grid) => {
            let shift = if scale & 0x80 == 0 { 0 } else { i32::from(grid.shift()) };
            (scale & 0x7f, i32::from(grid.values()[usize::from(code)]) + shift)
        }
        _ => (scale, i32::from(code as i8)),
    };
    row.row_scale.to_f32() * f32::from(scale) * value as f32
}

#[test]
fn packed_rows_decode_to_their_weights() {
    let mut rng = Rng::new(1);
    for codec in block_codecs() {
        for cols in COLS {
            for count in [0, 1, 2, 15, 16] {
                let rows: Vec<_> = (0..count).map(|_| random_row(&codec, cols, &mut rng)).collect();
                let mut panel = vec![0xee; codec.panel_bytes(cols)];
                codec.pack_panel(&rows, cols, &mut panel);
                let (header, _) = PanelHeader::split(&panel, cols);
                for r in 0..PANEL_ROWS {
                    let mut got = vec![f32::NAN; cols];
                    codec.decode_row(&panel, r, &mut got);
                    let Some(row) = rows.get(r) else {
                        assert!(got.iter().all(|&w| w == 0.0), "missing rows are zero");
                        continue;
                    };
                    assert_eq!(header.row_scale(r), row.row_scale.to_f32());
                    for (b, &scale) in row.block_scales.iter().enumerate() {
                        assert_eq!(header.block_scale(b, r), scale);
                    }
                    let want: Vec<f32> = (0..cols).map(|c| weight(&codec, row, c)).collect();
                    assert_eq!(got, want, "{codec:?} row {r} of {cols}");
                    assert_eq!(codec.unpack_row(&panel, r, cols), *row, "{codec:?}");
                }
            }
        }
    }
}

/// Where the documentation says that a bit of a code is: vector of the block and bit of its byte, for
/// unpacked vector `v`.
fn place(bits: usize, v: usize, bit: usize) -> (usize, usize) {
    match (bits, bit) {
        (8, _) => (v, bit),
        (2, _) => (v / 4, v % 4 * 2 + bit),
        (3, _) if v >= 6 => (bit, 3 + v % 2 * 4),
        (6, 4..) => (4 + v / 4, v % 4 * 2 + bit - 4),
        (5, 4) => (4, v),
        _ => (v / 2, v % 2 * 4 + bit),
    }
}

#[test]
fn every_bit_of_a_code_has_a_place_of_its_own() {
    // One bit at a time: the one that it sets is its place.
    let (cols, blocks) = (64, 2);
    for bits in [8, 6, 5, 4, 3, 2] {
        let codec = match bits {
            8 => Codec::Q8,
            _ => Codec::Table(NamedGrid::default_for(bits).grid()),
        };
        let bits = bits as usize;
        let mut taken = vec![0u8; codec.panel_bytes(cols)];
        let header = taken.len() - blocks * bits * 64;
        for (r, c, bit) in
            (0..PANEL_ROWS * cols * bits).map(|i| (i / cols / bits, i / bits % cols, i % bits))
        {
            let empty = QuantizedRow {
                row_scale: bf16::ZERO,
                block_scales: vec![0; blocks],
                codes: vec![0; cols],
            };
            let mut rows = vec![empty; PANEL_ROWS];
            rows[r].codes[c] = 1 << bit;
            let mut panel = vec![0; taken.len()];
            codec.pack_panel(&rows, cols, &mut panel);
            let set: Vec<usize> = (0..panel.len()).filter(|&i| panel[i] != 0).collect();
            let (b, in_block) = (c / BLOCK_COLS, c % BLOCK_COLS);
            let (vector, in_byte) = place(bits, in_block / 4, bit);
            let at = header + (b * bits + vector) * 64 + r * 4 + in_block % 4;
            assert_eq!(set, [at], "q{bits}: bit {bit} of row {r}, column {c}");
            assert_eq!(panel[at], 1 << in_byte, "q{bits}: bit {bit} of row {r}, column {c}");
            taken[at] |= panel[at];
        }
        // As many bits as places: each has its own.
        assert!(taken[header..].iter().all(|&byte| byte == 0xff), "q{bits}");
    }
}

#[test]
fn scales_lie_before_the_codes() {
    let codec = Codec::Q8;
    let rows: Vec<_> = (0..16u8)
        .map(|r| QuantizedRow {
            row_scale: bf16::from_bits(0x4000 + u16::from(r)),
            block_scales: vec![r, 100 + r, 200 + r],
            codes: vec![0x55; 96],
        })
        .collect();
    let mut panel = vec![0xee; codec.panel_bytes(70)];
    codec.pack_panel(&rows, 70, &mut panel);
    for r in 0..16 {
        assert_eq!(panel[2 * r..2 * r + 2], [r as u8, 0x40]);
        for (b, first) in [0, 100, 200].into_iter().enumerate() {
            assert_eq!(panel[32 + 16 * b + r], first + r as u8);
        }
    }
    // 32 + 48 bytes of scales, padded with zeros to 128.
    assert!(panel[80..128].iter().all(|&b| b == 0));
    assert!(panel[128..].iter().all(|&b| b == 0x55));
    assert_eq!(panel.len(), 128 + 3 * 512);
}

/// Rounds as the codec does.
fn rounded(codec: &Codec, x: f32) -> f32 {
    match codec {
        Codec::Bf16 => bf16::from_f32(x).to_f32(),
        Codec::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

fn special(rng: &mut Rng, n: usize) -> Vec<f32> {
    let special =
        [0.0, -0.0, f32::INFINITY, -f32::INFINITY, 1e-42, 65504.0, 65519.0, 65520.0, 3.4e38];
    (0..n)
        .map(|i| match rng.below(4) {
            0 => special[i % special.len()],
            _ => rng.unit(),
        })
        .collect()
}

#[test]
fn dense_codecs_round_to_nearest_and_keep_the_sign_of_zero() {
    let mut rng = Rng::new(2);
    for codec in [Codec::F32, Codec::Bf16, Codec::F16] {
        for cols in COLS {
            for count in [1, 15, 16] {
                let values = special(&mut rng, count * cols);
                let want: Vec<u32> = values.iter().map(|&x| rounded(&codec, x).to_bits()).collect();

                let linear = codec.encode_linear(&values);
                let mut got = vec![f32::NAN; values.len()];
                codec.decode_linear(&linear, 0, &mut got);
                assert_eq!(got.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), want);

                let mut panel = vec![0xee; codec.panel_bytes(cols)];
                codec.encode_dense_panel(&values, cols, &mut panel);
                for r in 0..PANEL_ROWS {
                    let mut got = vec![f32::NAN; cols];
                    codec.decode_row(&panel, r, &mut got);
                    let got: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
                    let row = want.get(r * cols..(r + 1) * cols);
                    assert_eq!(got, row.unwrap_or(&vec![0; cols]), "{codec:?} row {r} of {cols}");
                }
            }
        }
    }
}

#[test]
fn a_nan_stays_one_in_dense_codecs() {
    for codec in [Codec::F32, Codec::Bf16, Codec::F16] {
        let mut got = [0.0];
        codec.decode_linear(&codec.encode_linear(&[f32::NAN]), 0, &mut got);
        assert!(got[0].is_nan());
    }
}

#[test]
fn both_layouts_of_a_tensor_decode_to_the_same_rows() {
    let mut rng = Rng::new(3);
    let (rows, cols) = (37, 21);
    for codec in [Codec::F32, Codec::Bf16, Codec::F16] {
        let values: Vec<f32> = (0..rows * cols).map(|_| rng.unit()).collect();
        let mut panels = Vec::new();
        for rows in values.chunks(PANEL_ROWS * cols) {
            let mut panel = vec![0; codec.panel_bytes(cols)];
            codec.encode_dense_panel(rows, cols, &mut panel);
            panels.extend(panel);
        }
        let shape = vec![rows as u64, cols as u64];
        assert_eq!(codec.tensor_bytes(&shape).unwrap(), panels.len() as u64);
        let tensor = |layout, bytes| TensorData {
            shape: shape.clone(),
            codec: codec.clone(),
            layout,
            bytes: SharedBytes::from_vec(bytes),
        };
        let linear = tensor(Layout::RowMajor, codec.encode_linear(&values));
        let panels = tensor(Layout::Panels, panels);
        assert_eq!((linear.rows(), linear.cols()), (rows, cols));
        for r in 0..rows {
            let (mut a, mut b) = (vec![0.0; cols], vec![1.0; cols]);
            linear.decode_row(r, &mut a);
            panels.decode_row(r, &mut b);
            assert_eq!(a, b);
            assert_eq!(a[0], rounded(&codec, values[r * cols]));
        }
    }
}

#[test]
fn sizes_follow_from_the_shape() {
    for cols in 1..200usize {
        let blocks = cols.div_ceil(32);
        let header = (32 + 16 * blocks).next_multiple_of(64);
        assert_eq!(Codec::F32.panel_bytes(cols), cols * 64);
        assert_eq!(Codec::Bf16.panel_bytes(cols), (cols * 32).next_multiple_of(64));
        assert_eq!(Codec::F16.panel_bytes(cols), (cols * 32).next_multiple_of(64));
        assert_eq!(Codec::Q8.panel_bytes(cols), header + blocks * 512);
        for bits in Grid::MIN_BITS..=Grid::MAX_BITS {
            let table = Codec::Table(NamedGrid::default_for(bits).grid());
            assert_eq!(table.panel_bytes(cols), header + blocks * 64 * bits as usize);
        }
    }
    for codec in block_codecs().into_iter().chain([Codec::F32, Codec::Bf16, Codec::F16]) {
        for rows in [1u64, 15, 16, 17, 32, 1000] {
            for cols in [1u64, 33, 576] {
                let panels = panel_count(rows as usize) as u64;
                let want = panels * codec.panel_bytes(cols as usize) as u64;
                assert_eq!(codec.tensor_bytes(&[rows, cols]).unwrap(), want);
                assert_eq!(want % 64, 0);
            }
        }
    }
}

#[test]
fn nominal_bits_are_those_of_a_wide_matrix() {
    for codec in block_codecs().into_iter().chain([Codec::F32, Codec::Bf16, Codec::F16]) {
        let (rows, cols) = (1u64 << 14, 1u64 << 14);
        let bits = codec.tensor_bytes(&[rows, cols]).unwrap() as f64 * 8.0 / (rows * cols) as f64;
        let nominal = codec.id().nominal_bits();
        assert!((nominal..nominal + 0.01).contains(&bits), "{codec:?}: {bits} for {nominal}");
    }
}

#[test]
fn impossible_shapes_have_no_size() {
    let big = 1u64 << 31;
    for codec in block_codecs().into_iter().chain([Codec::F32, Codec::Bf16, Codec::F16]) {
        let shapes: [&[u64]; 9] = [
            &[],
            &[0],
            &[0, 5],
            &[5, 0],
            &[1, 2, 3],
            &[big + 1],
            &[5, big + 1],
            &[u64::MAX, u64::MAX],
            &[big + 1, 1],
        ];
        for shape in shapes {
            let error = codec.tensor_bytes(shape).unwrap_err();
            assert!(matches!(error, FormatError::InvalidHeader(_)), "{shape:?}: {error}");
        }
        // The largest shape is 2^62 elements: 2^64 bytes do not fit, half of that does.
        let most = codec.tensor_bytes(&[big, big]);
        assert_eq!(most.is_ok(), codec.id() != CodecId::F32, "{codec:?}: {most:?}");
        assert_eq!(codec.tensor_bytes(&[7]).is_ok(), codec.id().is_dense());
    }
}

#[test]
fn names_of_codecs_are_read_back() {
    for id in CodecId::ALL {
        assert_eq!(id.name().parse::<CodecId>().unwrap(), id);
        assert_eq!(format!("{id:>6}"), format!("{:>6}", id.name()));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{}\"", id.name()));
        assert_eq!(serde_json::from_str::<CodecId>(&json).unwrap(), id);
    }
    for name in ["", "Q4", "q4_0", "f64", "q4 "] {
        let error = name.parse::<CodecId>().unwrap_err().to_string();
        assert!(CodecId::ALL.iter().all(|id| error.contains(id.name())), "{error}");
    }
}

#[test]
fn grids_are_known_by_their_values() {
    for named in NamedGrid::ALL {
        let grid = named.grid();
        assert_eq!(grid.name(), Some(named.name()));
        assert_eq!(Grid::new(grid.values(), grid.shift()).unwrap(), grid);
        assert_eq!(grid.values().len(), 1 << grid.bits());
        assert!(grid.values().windows(2).all(|pair| pair[0] < pair[1]));
        for code in 0..=255u8 {
            let value = grid.value(code, false);
            assert_eq!(value, grid.values()[usize::from(code) % grid.values().len()]);
            assert_eq!(value, grid.repeated()[usize::from(code) % 64]);
            let shifted = i32::from(value) + i32::from(grid.shift());
            assert_eq!(i32::from(grid.value(code, true)), shifted);
        }
    }
    assert_eq!(grids().last().unwrap().name(), None);
    for bits in Grid::MIN_BITS..=Grid::MAX_BITS {
        let grid = NamedGrid::default_for(bits).grid();
        assert_eq!(grid.bits(), bits);
        assert_eq!(Codec::Table(grid).id().name(), format!("q{bits}"));
    }
}

proptest! {
    #[test]
    fn a_grid_is_accepted_exactly_when_it_increases_within_int8(
        mut values in prop::collection::vec(any::<i8>(), 1usize..70),
        width in 0u32..8, shift in any::<i8>(), sorted in any::<bool>()
    ) {
        if let Some(bits) = width.checked_sub(1) {
            values.resize(1 << bits, 0);
        }
        if sorted {
            values.sort_unstable();
        }
        let count = [4, 8, 16, 32, 64].contains(&values.len());
        let increases = values.windows(2).all(|pair| pair[0] <= pair[1]);
        let fits = values.iter().all(|&v| (-128..=127).contains(&(i32::from(v) + i32::from(shift))));
        prop_assert_eq!(Grid::new(&values, shift).is_ok(), count && increases && fits);
    }

    #[test]
    fn any_bytes_of_the_right_length_decode_without_panic(
        cols in 0usize..150, seed in any::<u64>(), which in any::<prop::sample::Index>()
    ) {
        let dense = [Codec::F32, Codec::Bf16, Codec::F16];
        let codecs: Vec<_> = dense.into_iter().chain(block_codecs()).collect();
        let codec = which.get(&codecs);
        let panel = Rng::new(seed).bytes(codec.panel_bytes(cols));
        for row in 0..PANEL_ROWS {
            codec.decode_row(&panel, row, &mut vec![0.0; cols]);
        }
    }

    #[test]
    fn slices_of_shared_bytes_are_slices(
        bytes in prop::collection::vec(any::<u8>(), 0..50),
        (a, b, c, d) in (0usize..60, 0usize..60, 0usize..60, 0usize..60)
    ) {
        let shared = SharedBytes::from_vec(bytes.clone());
        let outer = shared.slice(a..b);
        prop_assert_eq!(outer.as_deref(), bytes.get(a..b));
        if let Some(outer) = outer {
            let inner = outer.slice(c..d);
            prop_assert_eq!(inner.as_deref(), bytes[a..b].get(c..d));
        }
    }
}
