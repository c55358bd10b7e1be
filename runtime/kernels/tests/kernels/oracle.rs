//! What kernels are compared with, written naively, and the inputs they are compared on.

use gristmill_formats::SharedBytes;
use gristmill_formats::codec::{
    BLOCK_COLS, Codec, CodecId, Grid, NamedGrid, PANEL_ROWS, QuantizedRow, block_count, panel_count,
};
use gristmill_formats::source::{Layout, TensorData};
use gristmill_kernels::{ActBuffer, GROUP, Isa, Kernels, MatrixView, Scratch};
use half::{bf16, f16};

/// Below this a block of activations is zero for every purpose.
pub(crate) const TINY: f32 = 1e-30;

/// Splitmix64: the same inputs in every run.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(crate) fn byte(&mut self) -> u8 {
        (self.bits() >> 56) as u8
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn vector(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }

    /// Mostly moderate values, with the outliers and the tiny ones that real activations have.
    pub(crate) fn activations(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| match self.below(40) {
                0 => self.unit() * 1e3,
                1 => self.unit() * 1e-4,
                2 => 0.0,
                _ => self.unit(),
            })
            .collect()
    }
}

/// The kernels of every class that this CPU has.
pub(crate) fn all_kernels() -> Vec<&'static Kernels> {
    Isa::available().map(|isa| Kernels::for_isa(isa).expect("an available class")).collect()
}

/// A table of random values, sorted, with room for a random shift.
pub(crate) fn random_grid(bits: u32, rng: &mut Rng) -> Grid {
    let shift = (rng.below(61) as i32 - 30) as i8;
    let low = i32::from(i8::MIN) - i32::from(shift.min(0));
    let high = i32::from(i8::MAX) - i32::from(shift.max(0));
    let value = |_| (low + rng.below((high - low + 1) as usize) as i32) as i8;
    let mut values: Vec<i8> = (0..1 << bits).map(value).collect();
    values.sort_unstable();
    Grid::new(&values, shift).expect("values are sorted and stay in int8")
}

/// Every codec with every kind of parameters.
pub(crate) fn all_codecs(rng: &mut Rng) -> Vec<Codec> {
    let mut codecs = vec![Codec::F32, Codec::Bf16, Codec::F16, Codec::Q8];
    for bits in Grid::MIN_BITS..=Grid::MAX_BITS {
        codecs.push(Codec::Table(NamedGrid::default_for(bits).grid()));
        codecs.push(Codec::Table(random_grid(bits, rng)));
    }
    codecs
}

/// Every block codec, the table codecs with random tables.
pub(crate) fn block_codecs(rng: &mut Rng) -> Vec<Codec> {
    let tables = (Grid::MIN_BITS..=Grid::MAX_BITS).map(|bits| Codec::Table(random_grid(bits, rng)));
    [Codec::Q8].into_iter().chain(tables).collect()
}

/// A matrix and what it means, kept apart from the bytes that kernels read.
pub(crate) struct Matrix {
    pub(crate) codec: Codec,
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// One byte more than the matrix has: it starts at an odd address.
    bytes: Vec<u8>,
    weights: Weights,
}

enum Weights {
    /// Rounded to the codec, row after row.
    Dense(Vec<f32>),
    Quantized(Vec<QuantizedRow>),
}

impl Matrix {
    /// Random weights. Padding columns get codes too: activations there are zero, so that they must
    /// not matter.
    pub(crate) fn random(
        codec: &Codec,
        layout: Layout,
        rows: usize,
        cols: usize,
        rng: &mut Rng,
    ) -> Self {
        if codec.id().is_dense() {
            let values = rng.vector(rows * cols);
            return Self::dense(codec, layout, rows, cols, &values);
        }
        let rows = (0..rows).map(|_| random_row(codec, cols, rng)).collect();
        Self::quantized(codec, cols, rows)
    }

    pub(crate) fn dense(
        codec: &Codec,
        layout: Layout,
        rows: usize,
        cols: usize,
        values: &[f32],
    ) -> Self {
        let round = |v: &f32| match codec.id() {
            CodecId::F32 => *v,
            CodecId::Bf16 => bf16::from_f32(*v).to_f32(),
            _ => f16::from_f32(*v).to_f32(),
        };
        let rounded: Vec<f32> = values.iter().map(round).collect();
        let mut bytes = vec![0xa5];
        match layout {
            Layout::RowMajor => bytes.extend(codec.encode_linear(values)),
            Layout::Panels => {
                for rows in values.chunks(PANEL_ROWS * cols) {
                    let mut panel = vec![0xff; codec.panel_bytes(cols)];
                    codec.encode_dense_panel(rows, cols, &mut panel);
                    bytes.extend(panel);
                }
            }
        }
        let weights = Weights::Dense(rounded);
        Self { codec: codec.clone(), layout, rows, cols, bytes, weights }
    }

    pub(crate) fn quantized(codec: &Codec, cols: usize, rows: Vec<QuantizedRow>) -> Self {
        let mut bytes = vec![0xa5];
        for sixteen in rows.chunks(PANEL_ROWS) {
            let mut panel = vec![0xff; codec.panel_bytes(cols)];
            codec.pack_panel(sixteen, cols, &mut panel);
            bytes.extend(panel);
        }
        let layout = Layout::Panels;
        let n = rows.len();
        let weights = Weights::Quantized(rows);
        Self { codec: codec.clone(), layout, rows: n, cols, bytes, weights }
    }

    pub(crate) fn view(&self) -> MatrixView<'_> {
        MatrixView {
            codec: &self.codec,
            layout: self.layout,
            bytes: &self.bytes[1..],
            rows: self.rows,
            cols: self.cols,
        }
    }

    pub(crate) fn panels(&self) -> usize {
        panel_count(self.rows)
    }

    /// The documented result to the last bit: an exact integer per block and a chain of fused
    /// multiply-adds over blocks, or a chain over columns.
    pub(crate) fn exact_dot(&self, row: usize, x: &[f32]) -> f32 {
        match &self.weights {
            Weights::Dense(weights) => {
                let row = &weights[row * self.cols..(row + 1) * self.cols];
                row.iter().zip(x).fold(0.0f32, |sum, (w, x)| w.mul_add(*x, sum))
            }
            Weights::Quantized(rows) => {
                let row = &rows[row];
                let mut sum = 0.0f32;
                for (b, &scale_byte) in row.block_scales.iter().enumerate() {
                    let block = QuantizedBlock::of(&x[b * BLOCK_COLS..]);
                    let codes = &row.codes[b * BLOCK_COLS..(b + 1) * BLOCK_COLS];
                    let dot = |plane: &[i8]| -> i32 {
                        let pairs = codes.iter().zip(plane);
                        pairs.map(|(&w, &a)| self.value(w, scale_byte) * i32::from(a)).sum()
                    };
                    let (dot, act_scale) = if Kernels::takes_fine(self.codec.id()) {
                        (254 * dot(&block.codes) + dot(&block.fine), block.scale * (1.0 / 254.0))
                    } else {
                        (dot(&block.codes), block.scale)
                    };
                    let scale = self.block_scale(scale_byte) * act_scale;
                    sum = (dot as f32).mul_add(scale, sum);
                }
                sum * row.row_scale.to_f32()
            }
        }
    }

    /// The product in double precision through `decode_row` and the dequantized activations, and the
    /// sum of the magnitudes of its terms.
    pub(crate) fn f64_dot(&self, row: usize, x: &[f32]) -> (f64, f64) {
        let tensor = TensorData {
            shape: vec![self.rows as u64, self.cols as u64],
            codec: self.codec.clone(),
            layout: self.layout,
            bytes: SharedBytes::from_vec(self.bytes[1..].to_vec()),
        };
        let mut weights = vec![0.0; self.cols];
        tensor.decode_row(row, &mut weights);
        let mut dequantized = x.to_vec();
        if !self.codec.id().is_dense() {
            for block in dequantized.chunks_mut(BLOCK_COLS) {
                let quantized = QuantizedBlock::of(block);
                let fine = Kernels::takes_fine(self.codec.id());
                for (i, x) in block.iter_mut().enumerate() {
                    let rest = if fine { f32::from(quantized.fine[i]) / 254.0 } else { 0.0 };
                    *x = (f32::from(quantized.codes[i]) + rest) * quantized.scale;
                }
            }
        }
        let terms = weights.iter().zip(&dequantized).map(|(w, x)| f64::from(*w) * f64::from(*x));
        terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
    }

    fn value(&self, code: u8, scale_byte: u8) -> i32 {
        match &self.codec {
            Codec::Table(grid) => {
                let shift = if scale_byte >= 128 { i32::from(grid.shift()) } else { 0 };
                i32::from(grid.values()[usize::from(code)]) + shift
            }
            _ => i32::from(code as i8),
        }
    }

    fn block_scale(&self, byte: u8) -> f32 {
        match &self.codec {
            Codec::Table(_) => f32::from(byte % 128),
            _ => f32::from(byte),
        }
    }
}

pub(crate) fn random_row(codec: &Codec, cols: usize, rng: &mut Rng) -> QuantizedRow {
    let blocks = block_count(cols);
    let mask = 0xff >> (8 - codec.id().code_bits());
    QuantizedRow {
        row_scale: bf16::from_f32(rng.unit() * 0.01),
        // One block in eight is zero; in table codecs the top bit selects the shifted table.
        block_scales: (0..blocks).map(|_| if rng.below(8) == 0 { 0 } else { rng.byte() }).collect(),
        codes: (0..blocks * BLOCK_COLS).map(|_| rng.byte() & mask).collect(),
    }
}

/// 32 activations as the documentation says they are quantized.
pub(crate) struct QuantizedBlock {
    pub(crate) codes: Vec<i8>,
    pub(crate) scale: f32,
    pub(crate) sum: i32,
    pub(crate) fine: Vec<i8>,
    pub(crate) fine_sum: i32,
}

impl QuantizedBlock {
    /// The first 32 of `x`, zeros after its end.
    pub(crate) fn of(x: &[f32]) -> Self {
        let block: [f32; BLOCK_COLS] =
            std::array::from_fn(|i| x.get(i).copied().unwrap_or_default());
        let absmax = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let inverse = if absmax > TINY { 127.0 / absmax } else { 0.0 };
        let code = |x: f32| x.clamp(-127.0, 127.0).round_ties_even() as i8;
        let codes: Vec<i8> = block.iter().map(|x| code(x * inverse)).collect();
        let rest = block.iter().zip(&codes).map(|(x, &c)| (x * inverse - f32::from(c)) * 254.0);
        let fine: Vec<i8> = rest.map(code).collect();
        let total = |codes: &[i8]| codes.iter().map(|&c| i32::from(c)).sum();
        let (sum, fine_sum) = (total(&codes), total(&fine));
        Self { codes, scale: absmax / 127.0, sum, fine, fine_sum }
    }
}

/// Activations of `tokens`, padded with zeros to whole blocks.
pub(crate) fn padded_tokens(tokens: usize, cols: usize, rng: &mut Rng) -> Vec<Vec<f32>> {
    (0..tokens).map(|_| padded(rng.activations(cols))).collect()
}

pub(crate) fn padded(mut x: Vec<f32>) -> Vec<f32> {
    x.resize(x.len().next_multiple_of(BLOCK_COLS), 0.0);
    x
}

/// How tokens are given to a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// One token, on its own.
    One,
    /// Groups of four.
    Groups,
}

/// Prepares activations. The buffers are larger than needed and have been used before: nothing may
/// depend on what they held.
pub(crate) fn prepare(
    kernels: &Kernels,
    codec: &Codec,
    xs: &[Vec<f32>],
    cols: usize,
    width: Width,
) -> Vec<ActBuffer> {
    let size = if width == Width::One { 1 } else { GROUP };
    let fill = |buffer: &mut ActBuffer, x: &[f32], token: usize| {
        if codec.id().is_dense() {
            kernels.interleave(x, buffer, token);
        } else {
            kernels.quantize(x, buffer, token, Kernels::takes_fine(codec.id()));
        }
    };
    xs.chunks(size)
        .map(|group| {
            let mut buffer = ActBuffer::new(size, cols + 40);
            buffer.set_cols(cols + 40);
            for token in 0..size {
                fill(&mut buffer, &vec![7.0; (cols + 40).next_multiple_of(32)], token);
            }
            buffer.set_cols(cols);
            for (token, x) in group.iter().enumerate() {
                fill(&mut buffer, x, token);
            }
            buffer
        })
        .collect()
}

/// The product of some panels with some tokens: `[panels][tokens][16]`.
pub(crate) fn multiply(
    kernels: &Kernels,
    matrix: &Matrix,
    panels: std::ops::Range<usize>,
    xs: &[Vec<f32>],
    width: Width,
) -> Vec<f32> {
    let acts = prepare(kernels, &matrix.codec, xs, matrix.cols, width);
    let mut scratch = Scratch::new(matrix.cols);
    let mut out = vec![f32::NAN; panels.len() * xs.len() * PANEL_ROWS];
    kernels.matmul(matrix.view(), panels, &acts, xs.len(), &mut scratch, &mut out);
    out
}

/// Asserts that two vectors are the same to the last bit, and says where they are not.
#[track_caller]
pub(crate) fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(g.to_bits(), w.to_bits(), "{what}: element {i} is {g:e}, expected {w:e}");
    }
}
