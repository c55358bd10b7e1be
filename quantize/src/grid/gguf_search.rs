//! Scales for small groups of weights: what the GGUF grids search before a scale is rounded to what
//! the format stores. Errors are weighted squares.
//!
//! For given codes `q`, the best scale is a least-squares solution in closed form, and its error
//! follows from the same sums. So candidates need one pass each: round at a trial scale, solve.
//! Trial scales lie around the one at which the largest weight just fits; a little clipping often pays.

/// Solutions that are kept for refinement on stored values.
pub(super) const KEPT: usize = 3;
/// `1.5 * 2^23`: adding and subtracting it rounds to the nearest integer without a call.
const TO_INTEGER: f32 = 12_582_912.0;

/// The codes of a grid, as numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes {
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Codes {
    /// The code nearest to `x`, which is finite.
    #[inline(always)]
    pub(super) fn nearest(self, x: f32) -> f32 {
        (x.clamp(self.low, self.high) + TO_INTEGER) - TO_INTEGER
    }

    /// Levels beyond the ends at which trial scales stop, and the step between them: finer codes gain
    /// less from clipping, and their error jumps about more between neighbouring scales.
    fn trials(self) -> impl Iterator<Item = f32> {
        const STEPS: i32 = 20;
        let levels = (self.high - self.low) / 2.0;
        let most = (0.45 * levels).min(6.0);
        (0..=STEPS).map(move |i| levels - 0.95 + (most + 0.95) * i as f32 / STEPS as f32)
    }
}

/// Sums of `K` terms over a group. Eight partial sums each let the compiler use vectors: it must not
/// reorder a plain sum.
#[inline(always)]
fn sums<const K: usize>(x: &[f32], w: &[f32], terms: impl Fn(f32, f32) -> [f32; K]) -> [f32; K] {
    const LANES: usize = 8;
    assert!(x.len() == w.len() && x.len().is_multiple_of(LANES), "groups are whole");
    let mut partial = [[0.0f32; LANES]; K];
    for (x, w) in x.chunks_exact(LANES).zip(w.chunks_exact(LANES)) {
        for i in 0..LANES {
            let terms = terms(x[i], w[i]);
            for k in 0..K {
                partial[k][i] += terms[k];
            }
        }
    }
    partial.map(|lanes| lanes.iter().sum())
}

/// The best solutions met so far, best first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best<T> {
    list: [Option<(f32, T)>; KEPT],
}

impl<T: Copy + PartialEq> Best<T> {
    pub(super) fn new() -> Self {
        Self { list: [None; KEPT] }
    }

    pub(super) fn offer(&mut self, error: f32, solution: T) {
        if matches!(self.list.last(), Some(Some((worst, _))) if error >= *worst) {
            return;
        }
        // Two trials often end in the same codes.
        if self.list.iter().flatten().any(|(_, known)| *known == solution) {
            return;
        }
        let mut new = Some((error, solution));
        for slot in &mut self.list {
            let better = match (&new, &*slot) {
                (Some((a, _)), Some((b, _))) => a < b,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if better {
                std::mem::swap(slot, &mut new);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> {
        self.list.iter().flatten().map(|(_, solution)| *solution)
    }
}

/// Weighted square of all weights: the error of a group of zeros.
pub(super) fn squared_norm(x: &[f32], w: &[f32]) -> f32 {
    let [norm] = sums(x, w, |x, w| [w * x * x]);
    norm
}

/// The best scales of `x ≈ scale * q`, of either sign.
pub(super) fn scales(x: &[f32], w: &[f32], codes: Codes) -> Best<f32> {
    let mut best = Best::new();
    let norm = squared_norm(x, w);
    let (min, max) = extremes(x);
    let largest = max.max(-min);
    if norm == 0.0 || largest == 0.0 {
        return best;
    }
    let sign = if max > -min { -1.0 } else { 1.0 };
    // The end with more codes is the lower one: the largest weight goes there first.
    let asymmetric = codes.low + codes.high != 0.0;
    for sign in [sign, -sign].into_iter().take(1 + usize::from(asymmetric)) {
        for levels in codes.trials() {
            let (xq, qq) = scale_sums(x, w, codes, sign * levels / largest);
            if qq > 0.0 {
                best.offer(norm - xq * xq / qq, xq / qq);
            }
        }
    }
    best
}

/// `(Σ w x q, Σ w q²)` for the codes that `x` gets at a scale, given its inverse.
#[inline]
pub(super) fn scale_sums(x: &[f32], w: &[f32], codes: Codes, inverse: f32) -> (f32, f32) {
    let [xq, qq] = sums(x, w, |x, w| {
        let q = codes.nearest(x * inverse);
        [w * x * q, w * q * q]
    });
    (xq, qq)
}

/// Error of `x ≈ scale * q + offset` with the nearest codes.
#[inline]
pub(super) fn error(x: &[f32], w: &[f32], codes: Codes, line: Line) -> f32 {
    let inverse = if line.scale == 0.0 { 0.0 } else { 1.0 / line.scale };
    let [error] = sums(x, w, |x, w| {
        let q = codes.nearest((x - line.offset) * inverse);
        let off = x - (line.scale * q + line.offset);
        [w * off * off]
    });
    error
}

/// Smallest and largest, with zero between them.
fn extremes(x: &[f32]) -> (f32, f32) {
    x.iter().fold((0.0, 0.0), |(low, high), &x| (f32::min(low, x), f32::max(high, x)))
}

/// `scale * q + offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Line {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// Whether an offset may be positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offset {
    /// Any.
    Free,
    /// At most zero, so that zero lies within the codes' range.
    NotPositive,
}

/// Weighted sums over codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineSums {
    w: f32,
    q: f32,
    qq: f32,
    x: f32,
    xq: f32,
    xx: f32,
}

impl LineSums {
    /// The sums for the codes that `x` gets on a line.
    pub(super) fn of(x: &[f32], w: &[f32], codes: Codes, line: Line) -> Self {
        let inverse = 1.0 / line.scale;
        let [w, q, qq, x, xq, xx] = sums(x, w, |x, w| {
            let q = codes.nearest((x - line.offset) * inverse);
            let (wq, wx) = (w * q, w * x);
            [w, wq, wq * q, wx, wx * q, wx * x]
        });
        Self { w, q, qq, x, xq, xx }
    }

    /// The best line for these codes and its error. The error is a difference of large sums: good for
    /// ranking, not for the last digit.
    pub(super) fn solve(&self, offset: Offset) -> Option<(f32, Line)> {
        let determinant = self.w * self.qq - self.q * self.q;
        // Equal codes leave scale and offset undetermined, up to rounding.
        if determinant <= self.w * self.qq * 1e-6 {
            return None;
        }
        let mut line = Line {
            scale: (self.w * self.xq - self.x * self.q) / determinant,
            offset: (self.qq * self.x - self.q * self.xq) / determinant,
        };
        if offset == Offset::NotPositive && line.offset > 0.0 {
            line = Line { scale: self.xq / self.qq, offset: 0.0 };
        }
        (line.scale > 0.0).then_some((self.error(line), line))
    }

    /// Error of a line with these codes.
    fn error(&self, Line { scale: s, offset: m }: Line) -> f32 {
        self.xx - 2.0 * (s * self.xq + m * self.x)
            + s * s * self.qq
            + 2.0 * s * m * self.q
            + m * m * self.w
    }

    /// How fast the error grows off the best scale when the offset follows, and off the best offset
    /// when the scale stays.
    pub(super) fn curvatures(&self) -> (f32, f32) {
        (self.qq - self.q * self.q / self.w, self.w)
    }
}

/// The best lines `x ≈ scale * q + offset`, scale positive.
pub(super) fn lines(x: &[f32], w: &[f32], codes: Codes, offset: Offset) -> Best<Line> {
    const REFINEMENTS: usize = 2;
    let mut best = Best::new();
    let (min, max) = match offset {
        Offset::NotPositive => extremes(x),
        Offset::Free => x
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x))),
    };
    let range = max - min;
    if range <= 0.0 {
        return best;
    }
    let (middle, half) = (min + range / 2.0, codes.high / 2.0);
    // `trials` counts from the middle of the codes to their end.
    for levels in codes.trials().step_by(2) {
        let scale = range / (2.0 * levels);
        // Where the codes are too few for the range, they miss the top, both ends, or the bottom.
        for start in [min, middle - scale * half, max - scale * codes.high] {
            let start = if offset == Offset::NotPositive { start.min(0.0) } else { start };
            let mut line = Line { scale, offset: start };
            for _ in 0..REFINEMENTS {
                let Some((error, solved)) = LineSums::of(x, w, codes, line).solve(offset) else {
                    break;
                };
                best.offer(error, solved);
                line = solved;
            }
        }
    }
    best
}
