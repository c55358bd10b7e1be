//! The kernels of each instruction-set class, and the safe way to call them.

use std::ops::Range;

use gristmill_formats::codec::{Codec, CodecId, Grid, PANEL_ROWS, block_count, panel_count};
use gristmill_formats::source::Layout;

use crate::act::{ActBuffer, ActViewMut, FewTokens, GROUP, MAX_GEMV_TOKENS};
use crate::attention::{
    AttentionScratch, Coded, Float, KvHead, KvType, KvView, KvViewMut, MAX_QUERY_ROWS, ScoreRule,
    ScratchView, Span, result_width,
};
use crate::block::{MAX_TILE_PANELS, Panels, TILE_BLOCKS, UNPACKED_BLOCK_BYTES, Unpacked};
use crate::dense::DensePanels;
use crate::isa::Isa;
use crate::{arch, attention, block, dense, peak, vecmath};

/// A matrix in place.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// Its codec.
    pub codec: &'a Codec,
    /// Order of its elements.
    pub layout: Layout,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Output rows.
    pub rows: usize,
    /// Input columns.
    pub cols: usize,
}

/// A cache line: vectors that lie across two take two loads.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Line {
    /// Zeroed lines for so many bytes.
    fn vec(bytes: usize) -> Vec<Self> {
        vec![Self([0; 64]); bytes.div_ceil(64)]
    }
}

/// Memory that products of several tokens need; one per thread.
#[derive(Debug, Clone)]
pub struct Scratch {
    /// Bytes.
    weights: Vec<Line>,
    /// f32.
    scales: Vec<Line>,
    /// f32.
    panel: Vec<Line>,
    shifted: Vec<i32>,
}

impl Scratch {
    /// Room for matrices of up to `max_cols` columns.
    pub fn new(max_cols: usize) -> Self {
        let blocks = block_count(max_cols);
        Self {
            weights: Line::vec(MAX_TILE_PANELS * TILE_BLOCKS * UNPACKED_BLOCK_BYTES),
            scales: Line::vec(MAX_TILE_PANELS * TILE_BLOCKS * PANEL_ROWS * 4),
            panel: Line::vec(max_cols * PANEL_ROWS * 4),
            shifted: vec![0; 2 * MAX_GEMV_TOKENS * blocks],
        }
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        let lines = self.weights.len() + self.scales.len() + self.panel.len();
        (64 * lines + 4 * self.shifted.len()) as u64
    }

    /// Bytes that [`Self::new`] allocates.
    pub fn bytes_for(max_cols: usize) -> u64 {
        let unpacked = UNPACKED_BLOCK_BYTES + PANEL_ROWS * 4;
        let shifted = 4 * 2 * MAX_GEMV_TOKENS * block_count(max_cols);
        (MAX_TILE_PANELS * TILE_BLOCKS * unpacked + max_cols * PANEL_ROWS * 4 + shifted) as u64
    }
}

type Gemv = unsafe fn(Panels, FewTokens, *mut f32);
type Unpack = unsafe fn(*const u8, usize, Range<usize>, *mut u8, *mut f32);
type GemvTable = unsafe fn(&Grid, Panels, FewTokens, *mut f32);
type UnpackTable = unsafe fn(&Grid, *const u8, usize, Range<usize>, *mut u8, *mut f32);
type BlockGemm = unsafe fn(Unpacked, &[ActBuffer], usize, *mut f32);
type DenseGemv = unsafe fn(DensePanels, FewTokens, *mut f32);
type DenseGemm = unsafe fn(*const u8, usize, &[ActBuffer], usize, *mut f32);
type Gather = unsafe fn(*const u8, usize, usize, *mut f32);
type Attend = unsafe fn(KvView, &[&[f32]], &[Span], ScoreRule, Range<usize>, ScratchView, *mut f32);
type WriteKv = unsafe fn(KvViewMut, usize, *mut f32, *mut f32);
type Gate = unsafe fn(*mut f32, *const f32, usize);
type Peak = unsafe fn(usize) -> u64;

/// The kernels of one instruction-set class. A reference to one is proof that the CPU has the class.
pub struct Kernels {
    isa: Isa,
    /// For 1, 4 and 8 tokens.
    gemv_q8: [Gemv; 3],
    unpack_q8: Unpack,
    /// For 1, 4 and 8 tokens, by bits: 2 to 6.
    gemv_table: [[GemvTable; 5]; 3],
    /// By bits.
    unpack_table: [UnpackTable; 5],
    /// With one and with two planes of activations, and how many panels they take at once.
    gemm_coarse: (BlockGemm, usize),
    gemm_fine: (BlockGemm, usize),
    /// For 1, 4 and 8 tokens, by element: f32, bf16, f16.
    dense_gemv: [[DenseGemv; 3]; 3],
    /// By element.
    dense_gemm: [DenseGemm; 3],
    gather: [Gather; 3],
    quantize: unsafe fn(*const f32, usize, ActViewMut, usize, bool),
    rms_norm: unsafe fn(*const f32, *const f32, f32, usize, *mut f32),
    silu_mul: Gate,
    gelu_tanh_mul: Gate,
    max: unsafe fn(*const f32, usize) -> f32,
    exp_sum: unsafe fn(*const f32, usize, f32) -> f64,
    softcap: unsafe fn(*mut f32, usize, f32),
    /// By KV type: f32, f16, int8, int4.
    attend: [Attend; 4],
    write_kv: [WriteKv; 4],
    finish: [unsafe fn(*mut f32, usize); 4],
    fold: unsafe fn(*mut f32, *const f32, usize),
    peak_int8: Peak,
    peak_f32: Peak,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.isa.name())
    }
}

/// Compiles the generic kernels for one class. Everything below the `target_feature` functions is
/// inlined into them, which is what gives the primitives their instructions.
macro_rules! kernels_for {
    ($module:ident, $simd:ty, $isa:expr $(, #[$feature:meta])?) => {
        mod $module {
            use super::*;
            type S = $simd;

            $(#[$feature])?
            unsafe fn gemv_q8<const T: usize>(panels: Panels, tokens: FewTokens, out: *mut f32) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { block::gemv::<S, _, 2, T>(block::Q8, panels, tokens, out) }
            }
            $(#[$feature])?
            unsafe fn gemv_table<const BITS: usize, const P: usize, const T: usize>(
                grid: &Grid,
                panels: Panels,
                tokens: FewTokens,
                out: *mut f32,
            ) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe {
                    let codec = block::table::<S, BITS>(grid);
                    block::gemv::<S, _, P, T>(codec, panels, tokens, out);
                }
            }
            const fn gemv_tables<const T: usize>() -> [GemvTable; 5] {
                [
                    gemv_table::<2, 1, T>,
                    gemv_table::<3, 1, T>,
                    gemv_table::<4, 1, T>,
                    gemv_table::<5, 1, T>,
                    gemv_table::<6, 2, T>,
                ]
            }
            $(#[$feature])?
            unsafe fn unpack_q8(
                panel: *const u8,
                cols: usize,
                blocks: Range<usize>,
                w: *mut u8,
                scales: *mut f32,
            ) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { block::unpack::<S, _>(block::Q8, panel, cols, blocks, w, scales) }
            }
            $(#[$feature])?
            unsafe fn unpack_table<const BITS: usize>(
                grid: &Grid,
                panel: *const u8,
                cols: usize,
                blocks: Range<usize>,
                w: *mut u8,
                scales: *mut f32,
            ) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe {
                    let codec = block::table::<S, BITS>(grid);
                    block::unpack::<S, _>(codec, panel, cols, blocks, w, scales);
                }
            }
            $(#[$feature])?
            unsafe fn gemm_coarse(panel: Unpacked, groups: &[ActBuffer], m: usize, out: *mut f32) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { block::gemm::<S, 1>(panel, groups, m, out) }
            }
            $(#[$feature])?
            unsafe fn gemm_fine(panel: Unpacked, groups: &[ActBuffer], m: usize, out: *mut f32) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { block::gemm::<S, 2>(panel, groups, m, out) }
            }
            $(#[$feature])?
            unsafe fn dense_gemv<E: dense::Element, const T: usize>(
                panels: DensePanels,
                tokens: FewTokens,
                out: *mut f32,
            ) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { dense::gemv::<S, E, T>(panels, tokens, out) }
            }
            const fn dense_gemvs<const T: usize>() -> [DenseGemv; 3] {
                [
                    dense_gemv::<dense::F32, T>,
                    dense_gemv::<dense::Bf16, T>,
                    dense_gemv::<dense::F16, T>,
                ]
            }
            $(#[$feature])?
            unsafe fn dense_gemm<E: dense::Element>(
                panel: *const u8,
                cols: usize,
                groups: &[ActBuffer],
                m: usize,
                out: *mut f32,
            ) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { dense::gemm::<S, E>(panel, cols, groups, m, out) }
            }
            $(#[$feature])?
            unsafe fn gather<E: dense::Element>(p: *const u8, rows: usize, cols: usize, out: *mut f32) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { dense::gather_panel::<S, E>(p, rows, cols, out) }
            }
            $(#[$feature])?
            unsafe fn quantize(
                x: *const f32,
                blocks: usize,
                to: ActViewMut,
                token: usize,
                fine: bool,
            ) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { crate::act::quantize::<S>(x, blocks, to, token, fine) }
            }
            $(#[$feature])?
            unsafe fn rms_norm(x: *const f32, gain: *const f32, eps: f32, n: usize, out: *mut f32) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { vecmath::rms_norm::<S>(x, gain, eps, n, out) }
            }
            $(#[$feature])?
            unsafe fn silu_mul(gate: *mut f32, up: *const f32, n: usize) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { vecmath::silu_mul::<S>(gate, up, n) }
            }
            $(#[$feature])?
            unsafe fn gelu_tanh_mul(gate: *mut f32, up: *const f32, n: usize) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { vecmath::gelu_tanh_mul::<S>(gate, up, n) }
            }
            $(#[$feature])?
            unsafe fn max(x: *const f32, n: usize) -> f32 {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { vecmath::max::<S>(x, n) }
            }
            $(#[$feature])?
            unsafe fn exp_sum(x: *const f32, n: usize, max: f32) -> f64 {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { vecmath::exp_sum::<S>(x, n, max) }
            }
            $(#[$feature])?
            unsafe fn softcap(x: *mut f32, n: usize, cap: f32) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { vecmath::softcap::<S>(x, n, cap) }
            }
            $(#[$feature])?
            unsafe fn attend<K: attention::Family>(
                kv: KvView,
                queries: &[&[f32]],
                spans: &[Span],
                rule: ScoreRule,
                parts: Range<usize>,
                scratch: ScratchView,
                out: *mut f32,
            ) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe {
                    attention::attend::<S, K>(kv, queries, spans, rule, parts, scratch, out);
                }
            }
            $(#[$feature])?
            unsafe fn write_kv<K: attention::Family>(
                kv: KvViewMut,
                position: usize,
                k: *mut f32,
                v: *mut f32,
            ) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { K::write::<S>(kv, position, k, v) }
            }
            $(#[$feature])?
            unsafe fn fold(row: *mut f32, part: *const f32, padded: usize) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { attention::fold::<S>(row, part, padded) }
            }
            $(#[$feature])?
            unsafe fn finish<K: attention::Family>(row: *mut f32, padded: usize) {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { attention::finish::<S, K>(row, padded) }
            }
            $(#[$feature])?
            unsafe fn peak_int8(passes: usize) -> u64 {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { peak::int8::<S>(passes) }
            }
            $(#[$feature])?
            unsafe fn peak_f32(passes: usize) -> u64 {
                // SAFETY: the caller's contract is the generic kernel's.
                unsafe { peak::f32::<S>(passes) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                isa: $isa,
                gemv_q8: [gemv_q8::<1>, gemv_q8::<4>, gemv_q8::<8>],
                unpack_q8,
                gemv_table: [gemv_tables::<1>(), gemv_tables::<4>(), gemv_tables::<8>()],
                unpack_table: [
                    unpack_table::<2>,
                    unpack_table::<3>,
                    unpack_table::<4>,
                    unpack_table::<5>,
                    unpack_table::<6>,
                ],
                gemm_coarse: (gemm_coarse, block::tile_panels::<S, 1>()),
                gemm_fine: (gemm_fine, block::tile_panels::<S, 2>()),
                dense_gemv: [dense_gemvs::<1>(), dense_gemvs::<4>(), dense_gemvs::<8>()],
                dense_gemm: [
                    dense_gemm::<dense::F32>,
                    dense_gemm::<dense::Bf16>,
                    dense_gemm::<dense::F16>,
                ],
                gather: [gather::<dense::F32>, gather::<dense::Bf16>, gather::<dense::F16>],
                quantize,
                rms_norm,
                silu_mul,
                gelu_tanh_mul,
                max,
                exp_sum,
                softcap,
                attend: [
                    attend::<Float<dense::F32>>,
                    attend::<Float<dense::F16>>,
                    attend::<Coded<attention::Int8>>,
                    attend::<attention::Windowed>,
                ],
                write_kv: [
                    write_kv::<Float<dense::F32>>,
                    write_kv::<Float<dense::F16>>,
                    write_kv::<Coded<attention::Int8>>,
                    write_kv::<attention::Windowed>,
                ],
                finish: [
                    finish::<Float<dense::F32>>,
                    finish::<Float<dense::F16>>,
                    finish::<Coded<attention::Int8>>,
                    finish::<attention::Windowed>,
                ],
                fold,
                peak_int8,
                peak_f32,
            };
        }
    };
}

kernels_for!(scalar, arch::scalar::Scalar, Isa::Scalar);
#[cfg(target_arch = "x86_64")]
kernels_for!(avx2, arch::avx2::Avx2, Isa::Avx2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
kernels_for!(
    avx512,
    arch::avx512::Avx512<false>,
    Isa::Avx512Vnni,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
);
#[cfg(target_arch = "x86_64")]
kernels_for!(
    avx512_vbmi,
    arch::avx512::Avx512<true>,
    Isa::Avx512Vbmi,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
);

/// Position of a dense codec in the tables by element.
fn element_index(codec: CodecId) -> usize {
    match codec {
        CodecId::F32 => 0,
        CodecId::Bf16 => 1,
        CodecId::F16 => 2,
        _ => unreachable!("{codec} is not dense"),
    }
}

/// Position of a table's width in the tables by bits.
fn table_index(grid: &Grid) -> usize {
    (grid.bits() - Grid::MIN_BITS) as usize
}

/// Position of the kernels for these few tokens: one alone, one group, two.
fn size_index(acts: &[ActBuffer]) -> usize {
    if acts[0].width() == 1 { 0 } else { acts.len() }
}

fn kv_index(kind: KvType) -> usize {
    match kind {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Int8 => 2,
        KvType::Int4 => 3,
    }
}

impl Kernels {
    /// The kernels of a class; `None` when this CPU lacks it.
    pub fn for_isa(isa: Isa) -> Option<&'static Self> {
        if !isa.is_available() {
            return None;
        }
        Some(match isa {
            Isa::Scalar => &scalar::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => &avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vbmi => &avx512_vbmi::KERNELS,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512Vnni | Isa::Avx512Vbmi => return None,
        })
    }

    /// The class.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The name of the kernel that multiplies matrices of a codec, for one token or for several.
    pub fn matmul_name(&self, codec: CodecId, tokens: usize) -> String {
        let shape = if tokens <= MAX_GEMV_TOKENS { "gemv" } else { "gemm" };
        format!("{}-{shape}-{codec}", self.isa.name())
    }

    /// Prepares one token's activations in `act` for matrices in block codecs, with the fine plane that
    /// some take ([`Self::takes_fine`]) or without. All tokens of a buffer are prepared alike.
    ///
    /// # Panics
    /// When `x` is shorter than the columns of `act` rounded up to 32, or there is no such token.
    pub fn quantize(&self, x: &[f32], act: &mut ActBuffer, token: usize, fine: bool) {
        let blocks = block_count(act.cols());
        assert!(x.len() >= blocks * 32 && token < act.width());
        act.set_fine(fine);
        // SAFETY: the lengths were checked; `act` has room for its columns.
        unsafe { (self.quantize)(x.as_ptr(), blocks, act.view_mut(), token, fine) }
    }

    /// Whether matrices of a codec take fine activations: those whose own rounding is finer than what
    /// 8-bit activations cost.
    pub fn takes_fine(codec: CodecId) -> bool {
        matches!(codec, CodecId::Q8 | CodecId::Q6)
    }

    /// Prepares one token's activations in `act` for dense matrices.
    ///
    /// # Panics
    /// When `x` is shorter than the columns of `act`, or there is no such token.
    pub fn interleave(&self, x: &[f32], act: &mut ActBuffer, token: usize) {
        let cols = act.cols();
        assert!(x.len() >= cols && token < act.width());
        // SAFETY: the lengths were checked; `act` has room for its columns.
        unsafe { crate::act::interleave(x.as_ptr(), cols, act.view_mut(), token) }
    }

    /// Multiplies activations with some panels (16 rows each) of a matrix. `acts` is one buffer of
    /// width 1, or groups of width 4 that hold `tokens` tokens. `out` is `[panels][tokens][16]`; rows
    /// beyond the matrix come out zero.
    ///
    /// # Panics
    /// When panels, activations, scratch or output do not fit the matrix.
    pub fn matmul(
        &self,
        matrix: MatrixView<'_>,
        panels: Range<usize>,
        acts: &[ActBuffer],
        tokens: usize,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let MatrixView { codec, layout, bytes, rows, cols } = matrix;
        assert!(panels.start <= panels.end && panels.end <= panel_count(rows), "{panels:?}");
        // Shapes are the caller's: an overflow must not make a size look right.
        let size = panels.len().checked_mul(tokens).and_then(|n| n.checked_mul(PANEL_ROWS));
        assert_eq!(Some(out.len()), size, "output of {panels:?}");
        assert!(acts.iter().all(|a| a.cols() == cols), "activations of {cols} columns");
        let single = acts.len() == 1 && acts[0].width() == 1;
        if single {
            assert_eq!(tokens, 1);
        } else {
            assert!(acts.iter().all(|a| a.width() == GROUP) && tokens > 0);
            assert_eq!(acts.len(), tokens.div_ceil(GROUP), "groups of {tokens} tokens");
        }
        if layout == Layout::RowMajor {
            return self.matmul_row_major(matrix, panels, acts, tokens, scratch, out);
        }
        let stride = codec.panel_bytes(cols);
        let needed = panel_count(rows).checked_mul(stride);
        assert!(needed.is_some_and(|needed| bytes.len() >= needed), "bytes of the matrix");
        let first = bytes[panels.start * stride..].as_ptr();
        let count = panels.len();
        let out_ptr = out.as_mut_ptr();
        if codec.id().is_dense() {
            let run = DensePanels { first, count, stride, cols };
            // SAFETY: the panels are within `bytes`, the output has 16 values per panel and token.
            unsafe { self.multiply_dense(element_index(codec.id()), run, acts, tokens, out_ptr) }
            return;
        }
        let fine = Self::takes_fine(codec.id());
        assert!(
            !fine || acts.iter().all(ActBuffer::is_fine),
            "{} takes fine activations",
            codec.id()
        );
        let blocks = block_count(cols);
        assert!(
            scratch.shifted.len() >= 2 * MAX_GEMV_TOKENS * blocks,
            "scratch for {cols} columns"
        );
        // SAFETY: as above; the scratch has room for one unpacked panel of `cols` columns.
        unsafe {
            if tokens <= MAX_GEMV_TOKENS {
                let shifted = scratch.shifted.as_mut_ptr();
                let run = Panels { first, count, stride, cols, shifted };
                let (few, size) = (FewTokens::new(acts, tokens), size_index(acts));
                return match codec {
                    Codec::Table(grid) => {
                        (self.gemv_table[size][table_index(grid)])(grid, run, few, out_ptr)
                    }
                    _ => (self.gemv_q8[size])(run, few, out_ptr),
                };
            }
            let (gemm, tile) = if fine { self.gemm_fine } else { self.gemm_coarse };
            let weights = scratch.weights.as_mut_ptr().cast::<u8>();
            let scales = scratch.scales.as_mut_ptr().cast::<f32>();
            for p in (0..count).step_by(tile) {
                let (count, row_scales) = (tile.min(count - p), first.add(p * stride));
                for first in (0..blocks).step_by(TILE_BLOCKS) {
                    let some = first..blocks.min(first + TILE_BLOCKS);
                    for n in 0..count {
                        let panel = row_scales.add(n * stride);
                        let w = weights.add(n * TILE_BLOCKS * UNPACKED_BLOCK_BYTES);
                        let s = scales.add(n * TILE_BLOCKS * PANEL_ROWS);
                        match codec {
                            Codec::Table(grid) => {
                                let unpack = self.unpack_table[table_index(grid)];
                                unpack(grid, panel, cols, some.clone(), w, s);
                            }
                            _ => (self.unpack_q8)(panel, cols, some.clone(), w, s),
                        }
                    }
                    let unpacked = Unpacked {
                        weights,
                        scales,
                        row_scales,
                        stride,
                        count,
                        first,
                        blocks: some.len(),
                        last: some.end == blocks,
                    };
                    gemm(unpacked, acts, tokens, out_ptr.add(p * tokens * PANEL_ROWS));
                }
            }
        }
    }

    /// [`Self::matmul`] for panels of a dense codec, by the index of its element type.
    ///
    /// # Safety
    /// The panels and 16 outputs for each of them and of the tokens are valid; `acts` fit both.
    unsafe fn multiply_dense(
        &self,
        element: usize,
        panels: DensePanels,
        acts: &[ActBuffer],
        tokens: usize,
        out: *mut f32,
    ) {
        // SAFETY: the contract above.
        unsafe {
            if tokens <= MAX_GEMV_TOKENS {
                let gemv = self.dense_gemv[size_index(acts)][element];
                return gemv(panels, FewTokens::new(acts, tokens), out);
            }
            for p in 0..panels.count {
                let panel = panels.first.add(p * panels.stride);
                let out = out.add(p * tokens * PANEL_ROWS);
                self.dense_gemm[element](panel, panels.cols, acts, tokens, out);
            }
        }
    }

    /// [`Self::matmul`] for checkpoints as they are: each panel is gathered, then multiplied as one.
    fn matmul_row_major(
        &self,
        matrix: MatrixView<'_>,
        panels: Range<usize>,
        acts: &[ActBuffer],
        tokens: usize,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let MatrixView { codec, bytes, rows, cols, .. } = matrix;
        let e = element_index(codec.id());
        let row_bytes = cols * if e == 0 { 4 } else { 2 };
        let needed = rows.checked_mul(row_bytes);
        assert!(needed.is_some_and(|needed| bytes.len() >= needed), "bytes of the matrix");
        assert!(scratch.panel.len() * 64 >= cols * PANEL_ROWS * 4, "scratch for {cols} columns");
        for (p, out) in panels.zip(out.chunks_exact_mut(tokens * PANEL_ROWS)) {
            let count = (rows - p * PANEL_ROWS).min(PANEL_ROWS);
            let first = bytes[p * PANEL_ROWS * row_bytes..].as_ptr();
            let panel = scratch.panel.as_mut_ptr().cast::<f32>();
            // SAFETY: `count` rows from `first` are within `bytes`; the panel has room for 16.
            unsafe {
                (self.gather[e])(first, count, cols, panel);
                let stride = cols * PANEL_ROWS * 4;
                let run = DensePanels { first: panel.cast(), count: 1, stride, cols };
                self.multiply_dense(0, run, acts, tokens, out.as_mut_ptr());
            }
        }
    }

    /// `out = x / sqrt(mean(x²) + eps) * gain` over the first `n` values; buffers are padded with zeros
    /// to a multiple of 32.
    ///
    /// # Panics
    /// When a buffer is shorter than that.
    pub fn rms_norm(&self, x: &[f32], gain: &[f32], eps: f32, n: usize, out: &mut [f32]) {
        let padded = n.next_multiple_of(32);
        assert!(x.len() >= padded && gain.len() >= padded && out.len() >= padded);
        // SAFETY: the lengths were checked.
        unsafe { (self.rms_norm)(x.as_ptr(), gain.as_ptr(), eps, n, out.as_mut_ptr()) }
    }

    /// `gate = silu(gate) * up`.
    ///
    /// # Panics
    /// When the lengths differ or are no multiple of 16.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert!(gate.len() == up.len() && gate.len().is_multiple_of(16));
        // SAFETY: the lengths were checked.
        unsafe { (self.silu_mul)(gate.as_mut_ptr(), up.as_ptr(), gate.len()) }
    }

    /// `gate = gelu_tanh(gate) * up`.
    ///
    /// # Panics
    /// When the lengths differ or are no multiple of 16.
    pub fn gelu_tanh_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert!(gate.len() == up.len() && gate.len().is_multiple_of(16));
        // SAFETY: the lengths were checked.
        unsafe { (self.gelu_tanh_mul)(gate.as_mut_ptr(), up.as_ptr(), gate.len()) }
    }

    /// `x = cap * tanh(x / cap)`.
    ///
    /// # Panics
    /// When the length is no multiple of 16.
    pub fn softcap(&self, x: &mut [f32], cap: f32) {
        assert!(x.len().is_multiple_of(16));
        // SAFETY: the length was checked.
        unsafe { (self.softcap)(x.as_mut_ptr(), x.len(), cap) }
    }

    /// `ln Σ e^x`, computed around the largest value.
    pub fn log_sum_exp(&self, x: &[f32]) -> f64 {
        // SAFETY: pointer and length belong to one slice.
        unsafe {
            let max = (self.max)(x.as_ptr(), x.len());
            f64::from(max) + (self.exp_sum)(x.as_ptr(), x.len(), max).ln()
        }
    }

    /// Stores a key and a value, each `head_dim` rounded up to 16 values and zero beyond, at a position.
    /// Types that rotate them do so in place.
    ///
    /// # Panics
    /// When they are shorter.
    pub fn write_kv(&self, kv: &mut KvHead, position: usize, k: &mut [f32], v: &mut [f32]) {
        let padded = kv.head_dim().next_multiple_of(16);
        assert!(k.len() >= padded && v.len() >= padded);
        let kind = kv_index(kv.kind());
        // SAFETY: the lengths were checked; the ring takes any position.
        unsafe { (self.write_kv[kind])(kv.view_mut(), position, k.as_mut_ptr(), v.as_mut_ptr()) }
    }

    /// Attention of some queries over one head, as far as it sees positions of some parts; a query
    /// whose span covers none of them gets no weight. `queries` hold `head_dim` elements rounded up to
    /// 16 and zero beyond; `rows` gets [`result_width`] values each, which [`Self::fold_attention`]
    /// joins with those of later parts and [`Self::finish_attention`] makes the result. Every position
    /// in a span must have been written; what was never written counts as zero.
    ///
    /// # Panics
    /// When there are no queries or more than [`MAX_QUERY_ROWS`], buffers do not fit, or a span is empty
    /// or exceeds the ring.
    pub fn attend(
        &self,
        kv: &KvHead,
        queries: &[&[f32]],
        spans: &[Span],
        rule: ScoreRule,
        parts: Range<usize>,
        scratch: &mut AttentionScratch,
        rows: &mut [f32],
    ) {
        assert!((1..=MAX_QUERY_ROWS).contains(&spans.len()), "{} queries", spans.len());
        let padded = kv.head_dim().next_multiple_of(16);
        assert!(queries.len() == spans.len() && queries.iter().all(|q| q.len() >= padded));
        assert!(rows.len() >= spans.len() * result_width(kv.head_dim()), "rows of results");
        assert!(scratch.padded() >= padded, "scratch for heads of {}", kv.head_dim());
        let first = spans.iter().map(|s| s.first).min().unwrap_or(0) / 16;
        let last = spans.iter().map(|s| s.position).max().unwrap_or(0) / 16;
        assert!(spans.iter().all(|s| s.first <= s.position));
        assert!((last - first) * 16 < kv.capacity(), "spans {spans:?} exceed the ring");
        let positions = || spans.iter().map(|s| s.position);
        let (first, last) = (positions().min().unwrap_or(0), positions().max().unwrap_or(0));
        assert!(kv.holds_recent(first, last), "spans {spans:?} exceed the window");
        let kind = kv_index(kv.kind());
        let scratch = scratch.view(padded);
        // SAFETY: buffers were checked; every slot of the ring is initialised memory.
        unsafe {
            (self.attend[kind])(kv.view(), queries, spans, rule, parts, scratch, rows.as_mut_ptr());
        }
    }

    /// Adds what [`Self::attend`] found in later parts to a query's row. The order of parts is part of
    /// the result.
    ///
    /// # Panics
    /// When a row is shorter than [`result_width`].
    pub fn fold_attention(&self, head_dim: usize, row: &mut [f32], later: &[f32]) {
        let width = result_width(head_dim);
        assert!(row.len() >= width && later.len() >= width);
        let padded = head_dim.next_multiple_of(16);
        // SAFETY: the lengths were checked.
        unsafe { (self.fold)(row.as_mut_ptr(), later.as_ptr(), padded) }
    }

    /// Makes a query's row, all parts of its span folded, its attention: `head_dim` elements rounded up
    /// to 16.
    ///
    /// # Panics
    /// When the row is shorter than [`result_width`].
    pub fn finish_attention(&self, kind: KvType, head_dim: usize, row: &mut [f32]) {
        assert!(row.len() >= result_width(head_dim));
        let padded = head_dim.next_multiple_of(16);
        // SAFETY: the length was checked.
        unsafe { (self.finish[kv_index(kind)])(row.as_mut_ptr(), padded) }
    }

    /// Multiplies int8 weights with activations and does nothing else, to measure what bounds products
    /// with block codecs; returns the multiply-accumulates done. Passes take microseconds at most.
    pub fn peak_int8(&self, passes: usize) -> u64 {
        // SAFETY: no memory of the caller is touched.
        unsafe { (self.peak_int8)(passes) }
    }

    /// [`Self::peak_int8`] with fused multiply-adds in f32: what bounds products with dense codecs.
    pub fn peak_f32(&self, passes: usize) -> u64 {
        // SAFETY: no memory of the caller is touched.
        unsafe { (self.peak_f32)(passes) }
    }
}
