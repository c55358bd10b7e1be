//! The superblock types of GGUF as grids. What spans groups is half-precision: the factors of the
//! groups' integer scales (and mins). They are chosen for the row as it is; error feedback then moves
//! the integers only.

use gristmill_formats::gguf::{GgmlType, SUPERBLOCK, SuperBlock};
use half::f16;

use super::RowGrid;
use super::gguf::{GgufGrid, stored, weights};
use super::gguf_search::{Best, Codes, Line, LineSums, Offset, error, lines, scales};

/// Largest scale and min of a group in Q4_K and Q5_K.
const MOST: f32 = 63.0;
/// Steps that a group's integers are moved at most, one at a time, towards less error.
const DESCENTS: usize = 8;

/// Q4_K and Q5_K: groups of 32 with a 6-bit scale and a 6-bit min that is subtracted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MinGrid {
    ty: GgmlType,
    codes: Codes,
}

/// A group's integers.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Steps {
    scale: f32,
    min: f32,
}

/// Factors of a superblock's integers.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Factors {
    scale: f16,
    min: f16,
}

impl Factors {
    fn line(self, steps: Steps) -> Line {
        Line { scale: self.scale.to_f32() * steps.scale, offset: -(self.min.to_f32() * steps.min) }
    }
}

/// A group, its weights and the lines it would like best.
struct Group {
    x: [f32; MinGrid::GROUP],
    w: [f32; MinGrid::GROUP],
    ideals: Best<Line>,
}

impl Group {
    fn new(x: &[f32], importance: &[f32], codes: Codes) -> Self {
        let w = weights(x, importance);
        let ideals = lines(x, &w, codes, Offset::NotPositive);
        let x = x.try_into().expect("superblocks consist of whole groups");
        Self { x, w, ideals }
    }

    /// The best integers under given factors, and their error.
    fn fit(&self, codes: Codes, factors: Factors) -> (f32, Steps) {
        let error = |steps| error(&self.x, &self.w, codes, factors.line(steps));
        let zero = Steps { scale: 0.0, min: 0.0 };
        let mut best = (error(zero), zero);
        let steps = |ideal: f32, factor: f16| {
            let factor = factor.to_f32();
            if factor > 0.0 { (ideal / factor).round().clamp(0.0, MOST) } else { 0.0 }
        };
        for ideal in self.ideals.iter() {
            let mut at = Steps {
                scale: steps(ideal.scale, factors.scale),
                min: steps(-ideal.offset, factors.min),
            };
            let mut here = error(at);
            for _ in 0..DESCENTS {
                let mut next = (here, at);
                for (scale, min) in NEIGHBOURS {
                    let near = Steps { scale: at.scale + scale, min: at.min + min };
                    let valid = |x: f32| (0.0..=MOST).contains(&x);
                    if valid(near.scale) && valid(near.min) {
                        let found = error(near);
                        if found < next.0 {
                            next = (found, near);
                        }
                    }
                }
                if next.1 == at {
                    break;
                }
                (here, at) = next;
            }
            if here < best.0 {
                best = (here, at);
            }
        }
        best
    }
}

/// A larger scale wants a larger min: the diagonal that opposes them is left out.
const NEIGHBOURS: [(f32, f32); 6] =
    [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 1.0), (-1.0, -1.0)];

/// Factors at which the ideal values are nearly integers, by the weighted squares of what is left.
/// `wanted` has ideal values and how much a deviation from them costs.
fn factors(wanted: &[(f32, f32)], most: f32) -> Best<f16> {
    const STEPS: i32 = 48;
    let mut best = Best::new();
    let largest = wanted.iter().fold(0.0f32, |m, (v, _)| if v.abs() > m.abs() { *v } else { m });
    for i in -2..STEPS {
        let factor = stored(largest / (most - 0.25 * i as f32));
        if factor == f16::ZERO {
            break;
        }
        let value = factor.to_f32();
        let cost = |(v, cost): &(f32, f32)| {
            let off = v - value * (v / value).round().clamp(-most, most);
            cost * off * off
        };
        best.offer(wanted.iter().map(cost).sum(), factor);
    }
    best
}

impl MinGrid {
    pub(super) fn new(ty: GgmlType) -> Self {
        let high = if ty == GgmlType::Q4_K { 15.0 } else { 31.0 };
        Self { ty, codes: Codes { low: 0.0, high } }
    }

    /// Chooses the factors of a superblock.
    fn start_superblock(&self, x: &[f32], importance: &[f32]) -> SuperBlock {
        let chunks = x.chunks_exact(Self::GROUP).zip(importance.chunks_exact(Self::GROUP));
        let groups: Vec<Group> = chunks.map(|(x, w)| Group::new(x, w, self.codes)).collect();
        let (mut wanted_scales, mut wanted_mins) = (Vec::new(), Vec::new());
        for (group, importance) in groups.iter().zip(importance.chunks_exact(Self::GROUP)) {
            let Some(line) = group.ideals.iter().next() else { continue };
            let sums = LineSums::of(&group.x, &group.w, self.codes, line);
            let (scale_cost, min_cost) = sums.curvatures();
            // Weights are relative to the group's largest; between groups that counts.
            let matter = importance.iter().fold(0.0f32, |m, &w| m.max(w));
            wanted_scales.push((line.scale, matter * scale_cost));
            wanted_mins.push((-line.offset, matter * min_cost));
        }
        let mut best: Option<(f32, Factors)> = None;
        for scale in factors(&wanted_scales, MOST).iter() {
            let mins = factors(&wanted_mins, MOST);
            for min in mins.iter().chain(mins.iter().next().is_none().then_some(f16::ZERO)) {
                let candidate = Factors { scale, min };
                let limit = best.map_or(f32::INFINITY, |(error, _)| error);
                if let Some(error) = self.superblock_error(&groups, importance, candidate, limit) {
                    best = Some((error, candidate));
                }
            }
        }
        let mut block = SuperBlock::zero();
        if let Some((_, factors)) = best {
            (block.scale, block.min_scale) = (factors.scale, factors.min);
        }
        block
    }

    /// Error of all groups under some factors; `None` when it is not below `limit`.
    fn superblock_error(
        &self,
        groups: &[Group],
        importance: &[f32],
        factors: Factors,
        limit: f32,
    ) -> Option<f32> {
        let mut total = 0.0;
        for (group, importance) in groups.iter().zip(importance.chunks_exact(Self::GROUP)) {
            let matter = importance.iter().fold(0.0f32, |m, &w| m.max(w));
            total += matter * group.fit(self.codes, factors).0;
            if total >= limit {
                return None;
            }
        }
        Some(total)
    }
}

impl RowGrid for MinGrid {
    type Row = Vec<SuperBlock>;

    fn start(&self, row: &[f32], importance: &[f32]) -> Self::Row {
        let chunks = row.chunks_exact(SUPERBLOCK).zip(importance.chunks_exact(SUPERBLOCK));
        chunks.map(|(x, importance)| self.start_superblock(x, importance)).collect()
    }

    fn fit(&self, row: &mut Self::Row, group: usize, x: &[f32], importance: &[f32]) {
        let groups = SUPERBLOCK / Self::GROUP;
        let block = &mut row[group / groups];
        let factors = Factors { scale: block.scale, min: block.min_scale };
        let (_, steps) = Group::new(x, importance, self.codes).fit(self.codes, factors);
        block.scales[group % groups] = steps.scale as i8;
        block.mins[group % groups] = steps.min as u8;
    }

    fn round(&self, row: &mut Self::Row, col: usize, x: f32) -> f32 {
        let (block, at) = (&mut row[col / SUPERBLOCK], col % SUPERBLOCK);
        let (factors, group) =
            (Factors { scale: block.scale, min: block.min_scale }, at / Self::GROUP);
        let steps =
            Steps { scale: f32::from(block.scales[group]), min: f32::from(block.mins[group]) };
        let line = factors.line(steps);
        let code = if line.scale == 0.0 {
            0.0
        } else {
            self.codes.nearest((x - line.offset) / line.scale)
        };
        block.codes[at] = code as u8;
        block.value(self.ty, at)
    }

    fn value(&self, row: &Self::Row, col: usize) -> f32 {
        row[col / SUPERBLOCK].value(self.ty, col % SUPERBLOCK)
    }
}

impl GgufGrid for MinGrid {
    fn pack(&self, row: &Self::Row, bytes: &mut Vec<u8>) {
        row.iter().for_each(|block| block.pack(self.ty, bytes));
    }
}

/// Q6_K: groups of 16 with a signed 8-bit scale.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignedGrid;

impl SignedGrid {
    const CODES: Codes = Codes { low: -32.0, high: 31.0 };
    const MOST: f32 = 127.0;
    const TY: GgmlType = GgmlType::Q6_K;

    /// The best integer scale of a group under a factor, and its error.
    fn fit_group(x: &[f32], w: &[f32], ideals: &Best<f32>, factor: f16) -> (f32, f32) {
        let factor = factor.to_f32();
        let error =
            |steps: f32| error(x, w, Self::CODES, Line { scale: factor * steps, offset: 0.0 });
        let mut best = (error(0.0), 0.0);
        if factor == 0.0 {
            return best;
        }
        for ideal in ideals.iter() {
            let nearest = (ideal / factor).round();
            for steps in [nearest - 1.0, nearest, nearest + 1.0] {
                let steps = steps.clamp(-Self::MOST, Self::MOST);
                let found = error(steps);
                if found < best.0 {
                    best = (found, steps);
                }
            }
        }
        best
    }

    fn start_superblock(x: &[f32], importance: &[f32]) -> SuperBlock {
        struct Group {
            x: [f32; SignedGrid::GROUP],
            w: [f32; SignedGrid::GROUP],
            ideals: Best<f32>,
            matter: f32,
        }
        let chunks = x.chunks_exact(Self::GROUP).zip(importance.chunks_exact(Self::GROUP));
        let groups: Vec<Group> = chunks
            .map(|(x, importance)| {
                let w: [f32; Self::GROUP] = weights(x, importance);
                let ideals = scales(x, &w, Self::CODES);
                let matter = importance.iter().fold(0.0f32, |m, &w| m.max(w));
                let x = x.try_into().expect("superblocks consist of whole groups");
                Group { x, w, ideals, matter }
            })
            .collect();
        let wanted: Vec<(f32, f32)> = groups
            .iter()
            .filter_map(|group| {
                let scale = group.ideals.iter().next()?;
                let codes = group.x.iter().map(|x| Self::CODES.nearest(x / scale));
                let cost: f32 = codes.zip(&group.w).map(|(q, w)| w * q * q).sum();
                Some((scale, group.matter * cost))
            })
            .collect();
        let mut best = (f32::INFINITY, f16::ZERO);
        for factor in factors(&wanted, Self::MOST).iter() {
            let error = |g: &Group| g.matter * Self::fit_group(&g.x, &g.w, &g.ideals, factor).0;
            let total: f32 = groups.iter().map(error).sum();
            if total < best.0 {
                best = (total, factor);
            }
        }
        SuperBlock { scale: best.1, codes: [32; SUPERBLOCK], ..SuperBlock::zero() }
    }
}

impl RowGrid for SignedGrid {
    type Row = Vec<SuperBlock>;
    const GROUP: usize = 16;

    fn start(&self, row: &[f32], importance: &[f32]) -> Self::Row {
        let chunks = row.chunks_exact(SUPERBLOCK).zip(importance.chunks_exact(SUPERBLOCK));
        chunks.map(|(x, importance)| Self::start_superblock(x, importance)).collect()
    }

    fn fit(&self, row: &mut Self::Row, group: usize, x: &[f32], importance: &[f32]) {
        let groups = SUPERBLOCK / Self::GROUP;
        let block = &mut row[group / groups];
        let w: [f32; Self::GROUP] = weights(x, importance);
        let ideals = scales(x, &w, Self::CODES);
        let (_, steps) = Self::fit_group(x, &w, &ideals, block.scale);
        block.scales[group % groups] = steps as i8;
    }

    fn round(&self, row: &mut Self::Row, col: usize, x: f32) -> f32 {
        let (block, at) = (&mut row[col / SUPERBLOCK], col % SUPERBLOCK);
        let scale = block.scale.to_f32() * f32::from(block.scales[at / Self::GROUP]);
        let code = if scale == 0.0 { 0.0 } else { Self::CODES.nearest(x / scale) };
        block.codes[at] = (code - Self::CODES.low) as u8;
        block.value(Self::TY, at)
    }

    fn value(&self, row: &Self::Row, col: usize) -> f32 {
        row[col / SUPERBLOCK].value(Self::TY, col % SUPERBLOCK)
    }
}

impl GgufGrid for SignedGrid {
    fn pack(&self, row: &Self::Row, bytes: &mut Vec<u8>) {
        row.iter().for_each(|block| block.pack(Self::TY, bytes));
    }
}
