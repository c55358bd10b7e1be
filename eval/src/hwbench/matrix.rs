//! Products with a matrix that fills the large buffer.

use std::ops::Range;

use gristmill_formats::SharedBytes;
use gristmill_formats::codec::{Codec, PANEL_ROWS};
use gristmill_formats::source::Layout;
use gristmill_kernels::{ActBuffer, GROUP, Isa, Kernels, MatrixView, Scratch};
use gristmill_runtime::Pool;

use super::case::{Case, Family, Origin, Subject};
use super::workload::{CACHE_PASSES, Sizes, Workload, everywhere, piece_bytes};
use crate::stats::SplitMix64;
use crate::synthetic::PanelSource;

/// Columns: the width of a model of a billion parameters.
const COLS: usize = 2048;
/// Numbers of tokens that count as few.
const FEW_TOKENS: [usize; 3] = [2, 4, 8];
/// Panels per thread of a prompt's product, so that it takes a fraction of a millisecond.
const GEMM_PANELS: usize = 16;
/// Shares per thread that a product is handed out in.
const UNITS_PER_THREAD: usize = 4;

/// A matrix of one codec with activations for it.
pub(crate) struct Matrix {
    codec: Codec,
    memory: SharedBytes,
    panels: usize,
    /// First panel that was not read last.
    cursor: usize,
    token: [ActBuffer; 1],
    prompt: Vec<ActBuffer>,
    prompts: &'static [usize],
    workers: Vec<Worker>,
    out: Vec<f32>,
}

struct Worker {
    scratch: Scratch,
    /// A few panels of this thread alone.
    cache: Vec<u8>,
    out: Vec<f32>,
}

impl Matrix {
    pub(crate) fn new(codec: Codec, sizes: &Sizes) -> Self {
        let mut source = PanelSource::new(&codec, COLS, 0);
        let panel = source.panel(PANEL_ROWS).to_vec();
        let count = |bytes: usize, least: usize| (bytes / panel.len()).max(least);
        let panels = count(sizes.memory_bytes, sizes.most_threads * GEMM_PANELS);
        let cache_panels = count(sizes.cache_bytes, 1);

        let longest = sizes.prompts.iter().chain(&FEW_TOKENS).copied().max().unwrap_or(1);
        let mut token = [ActBuffer::new(1, COLS)];
        let mut prompt = vec![ActBuffer::new(GROUP, COLS); longest.div_ceil(GROUP)];
        let kernels = Kernels::for_isa(Isa::detect()).expect("the class was detected");
        let mut random = SplitMix64::new(1);
        for act in token.iter_mut().chain(&mut prompt) {
            act.set_cols(COLS);
            for t in 0..act.width() {
                let x: Vec<f32> = (0..COLS).map(|_| random.symmetric()).collect();
                if codec.id().is_dense() {
                    kernels.interleave(&x, act, t);
                } else {
                    kernels.quantize(&x, act, t, Kernels::takes_fine(codec.id()));
                }
            }
        }
        let worker = || Worker {
            scratch: Scratch::new(COLS),
            cache: panel.repeat(cache_panels),
            out: vec![0.0; cache_panels * PANEL_ROWS],
        };
        Self {
            memory: sizes.fill(&panel, panels),
            panels,
            cursor: 0,
            token,
            prompt,
            prompts: sizes.prompts,
            workers: (0..sizes.most_threads).map(|_| worker()).collect(),
            out: Vec::new(),
            codec,
        }
    }

    /// The next panels of the buffer: as many as a piece of the class has.
    fn piece(&mut self, isa: Isa, threads: usize) -> Range<usize> {
        let panel_bytes = self.memory.len() / self.panels;
        let wanted = (piece_bytes(isa) / panel_bytes).max(1) * threads;
        let count = wanted.min(self.panels);
        let first = if self.cursor + count > self.panels { 0 } else { self.cursor };
        self.cursor = first + count;
        first..first + count
    }

    fn multiply_cached(&mut self, kernels: &'static Kernels, pool: &mut Pool) -> u64 {
        let (codec, token) = (&self.codec, &self.token);
        let done = (self.workers[0].cache.len() * pool.threads() * CACHE_PASSES) as u64;
        everywhere(pool, &mut self.workers, |w| {
            let rows = w.out.len();
            let matrix = view(codec, &w.cache, rows);
            for _ in 0..CACHE_PASSES {
                let panels = 0..rows / PANEL_ROWS;
                kernels.matmul(matrix, panels, token, 1, &mut w.scratch, &mut w.out);
            }
        });
        done
    }

    fn multiply(
        &mut self,
        panels: Range<usize>,
        tokens: usize,
        kernels: &'static Kernels,
        pool: &mut Pool,
    ) {
        let matrix = view(&self.codec, &self.memory, self.panels * PANEL_ROWS);
        let acts = match tokens {
            1 => &self.token[..],
            _ => &self.prompt[..tokens.div_ceil(GROUP)],
        };
        let unit = panels.len().div_ceil(pool.threads() * UNITS_PER_THREAD);
        let panel_out = tokens * PANEL_ROWS;
        self.out.resize(panels.len() * panel_out, 0.0);
        pool.for_each(&mut self.workers, &mut self.out, unit * panel_out, |w, i, out| {
            let first = panels.start + i * unit;
            let panels = first..first + out.len() / panel_out;
            kernels.matmul(matrix, panels, acts, tokens, &mut w.scratch, out);
        });
    }
}

fn view<'a>(codec: &'a Codec, bytes: &'a [u8], rows: usize) -> MatrixView<'a> {
    MatrixView { codec, layout: Layout::Panels, bytes, rows, cols: COLS }
}

impl Workload for Matrix {
    fn cases(&self) -> Vec<Case> {
        let subject = Subject::Codec(self.codec.id());
        let case = |family, tokens, from| Case { family, subject, tokens, depth: None, from };
        let gemv = [Origin::Memory, Origin::Cache].map(|from| case(Family::Gemv, 1, from));
        let few = FEW_TOKENS.map(|tokens| case(Family::SmallM, tokens, Origin::Memory));
        let prompts = self.prompts.iter().map(|&m| case(Family::Gemm, m, Origin::Cache));
        gemv.into_iter().chain(few).chain(prompts).collect()
    }

    fn memory(&self) -> &[u8] {
        &self.memory
    }

    fn run(&mut self, case: &Case, kernels: &'static Kernels, pool: &mut Pool) -> u64 {
        let threads = pool.threads();
        match (case.family, case.from) {
            (Family::Gemm, _) => {
                let each = if kernels.isa() == Isa::Scalar { 1 } else { GEMM_PANELS };
                let panels = 0..each * threads;
                let products = panels.len() * PANEL_ROWS * COLS * case.tokens;
                self.multiply(panels, case.tokens, kernels, pool);
                products as u64
            }
            (_, Origin::Cache) => self.multiply_cached(kernels, pool),
            (_, Origin::Memory) => {
                let panels = self.piece(kernels.isa(), threads);
                let bytes = panels.len() * (self.memory.len() / self.panels);
                self.multiply(panels, case.tokens, kernels, pool);
                bytes as u64
            }
        }
    }
}
