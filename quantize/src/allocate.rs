//! Which codec each matrix gets when only the size of the file is given.
//!
//! Rounding matrix t to codec c adds, to second order, a divergence `d(t, c)` that does not depend on the
//! other matrices, so the best choice under a budget is that of Lagrange: each matrix takes the codec
//! that minimises `d + λ bytes`, and λ is what spends the budget (Shoham and Gersho 1988). What whole
//! steps of λ leave over is spent greedily.

use gristmill_formats::codec::CodecId;

/// One codec that a matrix could have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    /// The codec.
    pub(crate) codec: CodecId,
    /// Bytes of the matrix in it.
    pub(crate) bytes: u64,
    /// Predicted divergence, nats per token.
    pub(crate) loss: f64,
}

/// Bisections of λ: more than the digits of a double.
const BISECTIONS: usize = 80;

/// Chooses a candidate per matrix so that the bytes are at most `budget` and the losses small; `None`
/// when even the smallest candidates are too large.
pub(crate) fn allocate(matrices: &[Vec<Candidate>], budget: u64) -> Option<Vec<Candidate>> {
    let hulls: Vec<Vec<Candidate>> = matrices.iter().map(|m| hull(m)).collect();
    let choose =
        |lambda: f64| -> Vec<usize> { hulls.iter().map(|hull| cheapest(hull, lambda)).collect() };
    let bytes = |choice: &[usize]| -> u64 {
        choice.iter().zip(&hulls).map(|(&i, hull)| hull[i].bytes).sum()
    };
    // Hulls are in ascending order of bytes.
    let mut best: Vec<usize> = vec![0; hulls.len()];
    if bytes(&best) > budget {
        return None;
    }
    // In the logarithm, as slopes range over many orders of magnitude.
    let (mut low, mut high) = (-80.0f64, 20.0f64);
    for _ in 0..BISECTIONS {
        let middle = 0.5 * (low + high);
        let choice = choose(middle.exp());
        if bytes(&choice) <= budget {
            (high, best) = (middle, choice);
        } else {
            low = middle;
        }
    }
    let mut left = budget - bytes(&best);
    // Steps up that still fit, the best gain per byte first.
    loop {
        let step = |t: usize| {
            let (from, to) = (hulls[t][best[t]], *hulls[t].get(best[t] + 1)?);
            let cost = to.bytes - from.bytes;
            (cost <= left).then(|| ((from.loss - to.loss) / cost as f64, t, cost))
        };
        let steps = (0..hulls.len()).filter_map(step);
        let Some((_, t, cost)) = steps.max_by(|a, b| a.0.total_cmp(&b.0)) else { break };
        best[t] += 1;
        left -= cost;
    }
    Some(best.into_iter().zip(&hulls).map(|(i, hull)| hull[i]).collect())
}

fn cheapest(hull: &[Candidate], lambda: f64) -> usize {
    let cost = |c: &Candidate| c.loss + lambda * c.bytes as f64;
    (0..hull.len()).min_by(|&a, &b| cost(&hull[a]).total_cmp(&cost(&hull[b]))).unwrap_or(0)
}

/// The lower convex hull of loss over bytes, in ascending order of bytes and descending order of loss.
fn hull(candidates: &[Candidate]) -> Vec<Candidate> {
    let mut sorted = candidates.to_vec();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
    let mut hull: Vec<Candidate> = Vec::new();
    for candidate in sorted {
        if hull.last().is_some_and(|last| candidate.loss >= last.loss) {
            continue;
        }
        let slope = |a: &Candidate, b: &Candidate| (b.loss - a.loss) / (b.bytes - a.bytes) as f64;
        while let [.., a, b] = hull[..]
            && slope(&a, &b) >= slope(&b, &candidate)
        {
            hull.pop();
        }
        hull.push(candidate);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(bytes: u64, loss: f64) -> Candidate {
        Candidate { codec: CodecId::Q4, bytes, loss }
    }

    /// All choices, one by one.
    fn exhaustive(matrices: &[Vec<Candidate>], budget: u64) -> Option<f64> {
        let count: usize = matrices.iter().map(Vec::len).product();
        let total = |mut index: usize| {
            let mut sum = (0, 0.0);
            for m in matrices {
                let c = m[index % m.len()];
                index /= m.len();
                sum = (sum.0 + c.bytes, sum.1 + c.loss);
            }
            sum
        };
        let fitting = (0..count).map(total).filter(|(bytes, _)| *bytes <= budget);
        fitting.map(|(_, loss)| loss).min_by(f64::total_cmp)
    }

    #[test]
    fn the_hull_is_convex_and_descending() {
        let points = [(10, 8.0), (20, 5.0), (30, 4.9), (40, 1.0), (50, 1.5), (60, 0.5)];
        let hull = hull(&points.map(|(b, l)| candidate(b, l)));
        let bytes: Vec<u64> = hull.iter().map(|c| c.bytes).collect();
        assert_eq!(bytes, [10, 20, 40, 60]);
    }

    #[test]
    fn choices_fit_and_are_near_the_best() {
        let mut seed = 1u64;
        let mut next = move || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f64 / (1u64 << 24) as f64
        };
        for _ in 0..200 {
            let matrices: Vec<Vec<Candidate>> = (0..5)
                .map(|_| {
                    let (size, weight) = (1.0 + 9.0 * next(), next().powi(3));
                    let rungs = [2.25f64, 3.25, 4.25, 5.25];
                    rungs
                        .map(|b| candidate((size * b * 100.0) as u64, weight * 4f64.powf(-b)))
                        .to_vec()
                })
                .collect();
            let smallest: u64 = matrices.iter().map(|m| m[0].bytes).sum();
            let budget = (smallest as f64 * (1.0 + 1.5 * next())) as u64;
            let chosen = allocate(&matrices, budget).expect("the smallest fit");
            assert!(chosen.iter().map(|c| c.bytes).sum::<u64>() <= budget);
            let loss: f64 = chosen.iter().map(|c| c.loss).sum();
            let best = exhaustive(&matrices, budget).expect("the smallest fit");
            assert!(loss <= best * 2.0, "{loss} is not near {best}");
        }
    }

    #[test]
    fn what_cannot_fit_is_none() {
        assert_eq!(allocate(&[vec![candidate(10, 1.0)]], 9), None);
        assert_eq!(allocate(&[vec![candidate(10, 1.0)]], 10).map(|c| c.len()), Some(1));
    }
}
