//! Throughput of the matrix kernels, per codec, token count and instruction set:
//! `cargo bench -p gristmill-kernels`.
//!
//! The matrix (about 40 MB in q8) does not fit most second-level caches; on machines with a large
//! last-level cache the figures are that cache's.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use gristmill_formats::codec::{BLOCK_COLS, Codec, NamedGrid, QuantizedRow, block_count};
use gristmill_formats::source::Layout;
use gristmill_kernels::{ActBuffer, GROUP, Isa, Kernels, MatrixView, Scratch};
use half::bf16;

const ROWS: usize = 16 * 1024;
const COLS: usize = 2304;

fn main() {
    divan::main();
}

fn codecs() -> Vec<Codec> {
    let tables = [2, 3, 4, 5, 6].map(|bits| Codec::Table(NamedGrid::default_for(bits).grid()));
    tables.into_iter().chain([Codec::Q8, Codec::Bf16]).collect()
}

struct Case {
    isa: Isa,
    codec: Codec,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.isa.name(), self.codec.id())
    }
}

fn cases() -> Vec<Case> {
    let isas = Isa::available().filter(|&isa| isa != Isa::Scalar);
    isas.flat_map(|isa| codecs().into_iter().map(move |codec| Case { isa, codec })).collect()
}

/// The matrix: one random-looking panel, repeated.
fn matrix(codec: &Codec) -> Vec<u8> {
    let mut panel = vec![0; codec.panel_bytes(COLS)];
    if codec.id().is_dense() {
        let rows: Vec<f32> = (0..16 * COLS).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
        codec.encode_dense_panel(&rows, COLS, &mut panel);
    } else {
        let row = |r: usize| QuantizedRow {
            row_scale: bf16::from_f32(0.01),
            block_scales: (0..block_count(COLS)).map(|b| (40 + (r * 7 + b) % 80) as u8).collect(),
            codes: (0..block_count(COLS) * BLOCK_COLS).map(|c| (c * 31 + r) as u8).collect(),
        };
        codec.pack_panel(&(0..16).map(row).collect::<Vec<_>>(), COLS, &mut panel);
    }
    panel.repeat(ROWS / 16)
}

fn run(bencher: Bencher, case: &Case, tokens: usize) {
    let kernels = Kernels::for_isa(case.isa).expect("the class is available");
    let bytes = matrix(&case.codec);
    let width = if tokens == 1 { 1 } else { GROUP };
    let mut acts = vec![ActBuffer::new(width, COLS); tokens.div_ceil(width)];
    let x: Vec<f32> = (0..COLS).map(|i| (i as f32 * 0.37).sin()).collect();
    for act in &mut acts {
        act.set_cols(COLS);
        for t in 0..width {
            kernels.quantize(&x, act, t, true);
            kernels.interleave(&x, act, t);
        }
    }
    let mut scratch = Scratch::new(COLS);
    let mut out = vec![0.0; ROWS * tokens];
    let bencher = bencher
        .counter(BytesCount::new(bytes.len()))
        .counter(ItemsCount::new(ROWS * COLS * tokens));
    bencher.bench_local(|| {
        let matrix = MatrixView {
            codec: &case.codec,
            layout: Layout::Panels,
            bytes: &bytes,
            rows: ROWS,
            cols: COLS,
        };
        kernels.matmul(matrix, 0..ROWS / 16, &acts, tokens, &mut scratch, &mut out);
        black_box(&mut out);
    });
}

/// One token: bytes per second are the figure.
#[divan::bench(args = cases())]
fn gemv(bencher: Bencher, case: &Case) {
    run(bencher, case, 1);
}

/// A few tokens: the cost over one token is the figure.
#[divan::bench(args = cases())]
fn gemm_4(bencher: Bencher, case: &Case) {
    run(bencher, case, 4);
}

/// A prompt: items (multiply-accumulates) per second are the figure.
#[divan::bench(args = cases(), sample_count = 10)]
fn gemm_96(bencher: Bencher, case: &Case) {
    run(bencher, case, 96);
}
