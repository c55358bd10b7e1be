//! A coarse copy of the output head, and how far its products are from the real head's.
//!
//! Which tokens are likely can mostly be told from 6 bits of each weight: the copy is multiplied first, and
//! the real head only where that leaves doubt (`engine/two_stage.rs`). For this every row has a *radius*, the
//! most by which a logit can differ from the coarse one, for activations `x` of norm 1.
//!
//! Let F be a row of the real head, C its coarse copy, r = F - C, x̂ the 16-bit activations that C is
//! multiplied with (and F, too, when it is in a block codec), u = 2⁻²⁴ and γₙ = nu / (1 - nu) (Higham 2002,
//! section 3.1). Then
//!
//! * |F·x - C·x̂| ≤ |r||x| + |C||x - x̂| and |F·x̂ - C·x̂| ≤ |r||x̂| by Cauchy and Schwarz;
//! * |x - x̂| ≤ δ|x| with δ = 2⁻¹³: a code is off by half a fine step, so a block of 32 by at most
//!   √32 / (2 · 127 · 254) = 8.8e-5 of its largest element, and the roundings on the way are below 1e-6;
//! * a chain of n multiply-adds is off by at most γₙ times the norms of its factors: n is the number of
//!   columns for a dense row, and 3 more than the blocks for a row of a block codec (conversion of the dot
//!   product, product of the scales, row scale).
//!
//! With |C| ≤ |F| + |r| all of it is at most |x| (1 + δ) (|r| + (|F| + |r|) (δ + γ + γ')); what applying the radius
//! rounds in f32 is added as 2⁻²⁰. Underflow is bounded where the radius is applied; overflow is excluded
//! by [`MAX_NORM`]: rows beyond it have an infinite radius.

use std::fmt;
use std::time::Instant;

use gristmill_formats::codec::{
    BLOCK_COLS, Codec, Grid, NamedGrid, PANEL_ROWS, QuantizedRow, block_count, panel_count,
};
use gristmill_formats::source::{Layout, TensorData};
use gristmill_formats::{HugeBuffer, SharedBytes};
use half::bf16;

use crate::error::{Result, RuntimeError};
use crate::model::Model;

/// The grid of the copy. With 5 bits, five to forty times as many rows stay in doubt.
const GRID: NamedGrid = NamedGrid::Int6;
/// Bits of a head that a coarse copy is worth having beside.
const MIN_HEAD_BITS: u32 = 8;
/// Largest norm of a row, and of activations, whose products are bounded: none of their parts can
/// overflow.
pub(crate) const MAX_NORM: f32 = 1e15;
/// δ above.
const ACTIVATION_ERROR: f64 = 1.0 / (1 << 13) as f64;
/// Roundings of f32 where a radius is applied, as a share of the norms.
const BOUND_ERROR: f64 = 1.0 / (1 << 20) as f64;
/// u above.
const UNIT_ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// How the output head is computed when only the largest logits matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Head {
    /// Every row.
    #[default]
    Full,
    /// A coarse copy, then the rows that may still be among the largest.
    TwoStage,
}

impl Head {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Full, Self::TwoStage];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::TwoStage => "two-stage",
        }
    }
}

/// A coarse copy of the output head.
#[derive(Debug)]
pub struct CoarseHead {
    pub(crate) matrix: TensorData,
    /// Per row of the panels; NaN beyond the matrix.
    pub(crate) radii: Vec<f32>,
    seconds: f64,
}

impl CoarseHead {
    /// Rounds a head, on some threads.
    fn new(head: &TensorData, threads: usize) -> Result<Self> {
        let id = head.codec.id();
        if id.code_bits() < MIN_HEAD_BITS {
            return Err(RuntimeError::Config(format!(
                "a two-stage head pays for output heads of {MIN_HEAD_BITS} bits and more, this model's \
                 is {id}; use `--head full`"
            )));
        }
        let start = Instant::now();
        let (cols, panels) = (head.cols(), panel_count(head.rows()));
        let codec = Codec::Table(GRID.grid());
        let panel_bytes = codec.panel_bytes(cols);
        let len = panels * panel_bytes;
        let refused = |error| RuntimeError::Memory { bytes: len as u64, error };
        let mut buffer = HugeBuffer::new(len).map_err(refused)?;
        let mut radii = vec![f32::NAN; panels * PANEL_ROWS];
        let share = panels.div_ceil(threads.max(1));
        std::thread::scope(|scope| {
            let bytes = buffer.bytes_mut()[..len].chunks_mut(share * panel_bytes);
            let radii = radii.chunks_mut(share * PANEL_ROWS);
            for (t, (bytes, radii)) in bytes.zip(radii).enumerate() {
                let codec = &codec;
                scope.spawn(move || {
                    let mut rounder = Rounder::new(cols);
                    let panels = bytes.chunks_exact_mut(panel_bytes);
                    for (p, (panel, radii)) in panels.zip(radii.chunks_mut(PANEL_ROWS)).enumerate()
                    {
                        rounder.panel(head, t * share + p, radii);
                        codec.pack_panel(&rounder.rows, cols, panel);
                    }
                });
            }
        });
        let bytes: SharedBytes = buffer.share().slice(0..len).expect("the buffer has room");
        let matrix = TensorData { shape: head.shape.clone(), codec, layout: Layout::Panels, bytes };
        Ok(Self { matrix, radii, seconds: start.elapsed().as_secs_f64() })
    }

    /// Bytes that a token reads of it: codes, scales and radii.
    pub fn bytes(&self) -> u64 {
        (self.matrix.bytes.len() + 4 * self.radii.len()) as u64
    }

    /// What making it took.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }
}

impl fmt::Display for CoarseHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mb, ms) = (self.bytes() as f64 / 1e6, self.seconds * 1e3);
        write!(f, "{mb:.1} MB of coarse head made in {ms:.0} ms")
    }
}

impl Model {
    /// Chooses how the output head is computed; a coarse copy is made on `threads` threads.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when the head has too few bits for a coarse copy to pay, and
    /// [`RuntimeError::Memory`] when the system refuses memory for it.
    pub fn set_head(&mut self, head: Head, threads: usize) -> Result<()> {
        self.coarse = match head {
            Head::Full => None,
            Head::TwoStage => Some(CoarseHead::new(&self.head, threads)?),
        };
        Ok(())
    }

    /// The coarse copy of the head if it is computed in two stages.
    pub fn coarse_head(&self) -> Option<&CoarseHead> {
        self.coarse.as_ref()
    }
}

/// Rounds rows of one width.
struct Rounder {
    grid: Grid,
    row: Vec<f32>,
    rows: Vec<QuantizedRow>,
    /// See the head of this file: δ + γ + γ' and the f32 roundings.
    error: f64,
}

impl Rounder {
    fn new(cols: usize) -> Self {
        let blocks = block_count(cols);
        Self {
            grid: GRID.grid(),
            row: vec![0.0; cols],
            rows: Vec::with_capacity(PANEL_ROWS),
            error: ACTIVATION_ERROR + gamma(cols + 3) + gamma(blocks + 3) + BOUND_ERROR,
        }
    }

    /// Rounds the rows of a panel and finds their radii.
    fn panel(&mut self, head: &TensorData, panel: usize, radii: &mut [f32]) {
        let first = panel * PANEL_ROWS;
        self.rows.clear();
        for (row, radius) in (first..head.rows()).zip(radii) {
            head.decode_row(row, &mut self.row);
            let norm = norm_above(self.row.iter().map(|&x| f64::from(x)));
            // A NaN is not within the limit either.
            let bounded = norm <= MAX_NORM;
            if !bounded {
                self.row.fill(0.0);
            }
            let coarse = self.round();
            let rest = norm_above(self.rest(&coarse));
            self.rows.push(coarse);
            let (norm, rest) = (f64::from(norm), f64::from(rest));
            *radius = if bounded {
                above((1.0 + ACTIVATION_ERROR) * (rest + (norm + rest) * self.error))
            } else {
                f32::INFINITY
            };
        }
    }

    /// Rounds `row`: the largest magnitude of each block becomes an end of the grid.
    fn round(&self) -> QuantizedRow {
        let (step, ends) = (f32::from(self.grid.shift()), -f32::from(self.grid.values()[0]));
        let middle = self.grid.values().len() as i32 / 2;
        let most = f32::from(Grid::MAX_BLOCK_SCALE);
        let peak = |values: &[f32]| {
            values.iter().fold(0.0f32, |peak, &x| if x.abs() > peak.abs() { x } else { peak })
        };
        let row_scale = bf16::from_f32(peak(&self.row).abs() / (ends * most));
        let unit = row_scale.to_f32();
        let mut block_scales = Vec::with_capacity(block_count(self.row.len()));
        let mut codes = Vec::with_capacity(block_count(self.row.len()) * BLOCK_COLS);
        for block in self.row.chunks(BLOCK_COLS) {
            let peak = peak(block);
            // The unshifted grid reaches further below zero, the shifted one above.
            let shifted = peak > 0.0;
            // A unit of zero makes no number of these, and the casts and limits a code of whatever.
            let scale = (peak.abs() / (ends * unit)).round().clamp(1.0, most);
            let inverse = 1.0 / (unit * scale * step);
            block_scales.push(scale as u8 | if shifted { Grid::SHIFT_BIT } else { 0 });
            let zero = middle - i32::from(shifted);
            let code =
                |x: f32| ((x * inverse).round() as i32 + zero).clamp(0, 2 * middle - 1) as u8;
            codes.extend(block.iter().map(|&x| code(x)));
            codes.resize(block_scales.len() * BLOCK_COLS, zero as u8);
        }
        QuantizedRow { row_scale, block_scales, codes }
    }

    /// What rounding leaves of `row`.
    fn rest(&self, coarse: &QuantizedRow) -> impl Iterator<Item = f64> {
        let unit = f64::from(coarse.row_scale.to_f32());
        self.row.iter().zip(&coarse.codes).enumerate().map(move |(col, (&x, &code))| {
            let scale = coarse.block_scales[col / BLOCK_COLS];
            let value = self.grid.value(code, scale & Grid::SHIFT_BIT != 0);
            let scale = unit * f64::from(scale & Grid::MAX_BLOCK_SCALE);
            f64::from(x) - scale * f64::from(value)
        })
    }
}

/// γₙ of f32.
fn gamma(n: usize) -> f64 {
    let error = n as f64 * UNIT_ROUNDOFF;
    if error < 1.0 { error / (1.0 - error) } else { f64::INFINITY }
}

/// An f32 that is no less.
fn above(x: f64) -> f32 {
    (x as f32).next_up()
}

/// The Euclidean norm, or a little more.
pub(crate) fn norm_above(values: impl Iterator<Item = f64>) -> f32 {
    let squares: f64 = values.map(|x| x * x).sum();
    // A sum of 2³¹ squares in f64 is off by less than this.
    above(squares.sqrt() * (1.0 + 1e-6))
}
