//! Comparison of two models' distributions at one token.
//!
//! Sums are in double precision with an exponential of its own: differences of logits as small as those
//! of 8-bit weights would drown in the rounding of single precision. The loops are plain arithmetic on
//! arrays, which the compiler turns into vector code on every target.

use gristmill_runtime::Kernels;

/// Elements that are summed side by side.
const LANES: usize = 8;

/// What one token contributes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct TokenComparison {
    /// Loss of the model.
    pub(super) nll: f64,
    /// Loss of the reference.
    pub(super) reference_nll: f64,
    /// Divergence of the model from the reference.
    pub(super) kld: f64,
    /// Whether both find the same token likeliest.
    pub(super) same_top1: bool,
    /// Probability of the token that follows: the model's less the reference's.
    pub(super) delta_p: f64,
}

impl TokenComparison {
    pub(super) fn is_finite(&self) -> bool {
        self.nll.is_finite() && self.reference_nll.is_finite() && self.kld.is_finite()
    }
}

/// Compares logits of `student` and `reference`; `target` is the token that follows.
pub(super) fn compare(
    kernels: &Kernels,
    reference: &[f32],
    student: &[f32],
    target: u32,
) -> TokenComparison {
    let target = target as usize;
    let nll = kernels.log_sum_exp(student) - f64::from(student[target]);
    let reference_nll = kernels.log_sum_exp(reference) - f64::from(reference[target]);
    let (top, max) = largest(student);
    let (reference_top, reference_max) = largest(reference);
    TokenComparison {
        nll,
        reference_nll,
        kld: divergence(reference, reference_max, student, max),
        same_top1: top == reference_top,
        delta_p: (-nll).exp() - (-reference_nll).exp(),
    }
}

/// `Σ p (ln p - ln q)` with p = softmax(reference) and q = softmax(student), given the largest logits.
/// With `P = Σ e^(r - max r)` and `Q` alike it is `Σ e^(r - max r) (r - s) / P - (lse r - lse s)`.
fn divergence(reference: &[f32], reference_max: f32, student: &[f32], student_max: f32) -> f64 {
    assert_eq!(reference.len(), student.len(), "one vocabulary");
    let (r_max, s_max) = (f64::from(reference_max), f64::from(student_max));
    let (mut p, mut q, mut weighted) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
    let (r_blocks, r_rest) = reference.as_chunks::<LANES>();
    let (s_blocks, s_rest) = student.as_chunks::<LANES>();
    let mut add = |lane: usize, r: f32, s: f32| {
        let (r, s) = (f64::from(r), f64::from(s));
        let weight = exp_nonpositive(r - r_max);
        p[lane] += weight;
        q[lane] += exp_nonpositive(s - s_max);
        weighted[lane] += weight * (r - s);
    };
    for (r, s) in r_blocks.iter().zip(s_blocks) {
        for lane in 0..LANES {
            add(lane, r[lane], s[lane]);
        }
    }
    for (lane, (&r, &s)) in r_rest.iter().zip(s_rest).enumerate() {
        add(lane, r, s);
    }
    let [p, q, weighted] = [p, q, weighted].map(|sums| sums.iter().sum::<f64>());
    let difference = (r_max + p.ln()) - (s_max + q.ln());
    // Rounding can leave a few 1e-16 below zero.
    (weighted / p - difference).max(0.0)
}

/// The largest value and the first place that has it.
fn largest(values: &[f32]) -> (usize, f32) {
    const WIDTH: usize = 16;
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut best = [f32::NEG_INFINITY; WIDTH];
    let (blocks, rest) = values.as_chunks::<WIDTH>();
    for block in blocks {
        for lane in 0..WIDTH {
            best[lane] = greater(best[lane], block[lane]);
        }
    }
    let max = best.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| greater(a, b));
    (values.iter().position(|&v| v == max).unwrap_or(0), max)
}

/// e^x for x ≤ 0 with a relative error of a few 1e-16; below -700, where it no longer matters, e^-700.
///
/// x = k ln 2 + r with |r| ≤ ln 2 / 2 (Cody and Waite's two-part constant), e^r by its Taylor polynomial
/// of degree 13. Adding 1.5 · 2^52 rounds to an integer and leaves it in the low bits.
#[inline(always)]
fn exp_nonpositive(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    let x = if x > -700.0 { x } else { -700.0 };
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = x - k * LN2_HIGH - k * LN2_LOW;
    let mut sum = 1.0 / 6_227_020_800.0;
    for c in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = sum * r + c;
    }
    sum * f64::from_bits((rounded.to_bits() << 52).wrapping_add(1023 << 52))
}

#[cfg(test)]
mod tests {
    use gristmill_runtime::Isa;

    use super::*;
    use crate::stats::SplitMix64;

    fn kernels() -> &'static Kernels {
        Kernels::for_isa(Isa::detect()).expect("the detected class is there")
    }

    fn kld(p: &[f64], q: &[f64]) -> f64 {
        let logits = |x: &[f64]| x.iter().map(|v| v.ln() as f32).collect::<Vec<_>>();
        compare(kernels(), &logits(p), &logits(q), 0).kld
    }

    #[test]
    fn the_exponential_agrees_with_the_standard_library() {
        for i in 0..200_000 {
            let x = f64::from(i) * -0.0035;
            let (ours, theirs) = (exp_nonpositive(x), x.exp());
            assert!((ours - theirs).abs() <= 4e-16 * theirs, "{x}: {ours} {theirs}");
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert!(exp_nonpositive(-1e30) < 1e-300);
        assert!(exp_nonpositive(f64::NEG_INFINITY) < 1e-300);
    }

    #[test]
    fn known_small_distributions() {
        // 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75)
        let expected = 0.5 * (2.0f64).ln() + 0.5 * (2.0f64 / 3.0).ln();
        assert!((kld(&[0.5, 0.5], &[0.25, 0.75]) - expected).abs() < 1e-7);
        let (p, q) = ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]);
        let expected: f64 = p.iter().zip(&q).map(|(p, q): (&f64, &f64)| p * (p / q).ln()).sum();
        assert!((kld(&p, &q) - expected).abs() < 1e-7);
    }

    #[test]
    fn identities_hold_on_a_wide_vocabulary() {
        let mut random = SplitMix64::new(3);
        let mut row = |scale: f64| -> Vec<f32> {
            let mut uniform = || random.next_u64() as f64 / u64::MAX as f64 - 0.5;
            (0..4999).map(|_| (uniform() * scale) as f32).collect()
        };
        let (r, s) = (row(30.0), row(30.0));
        let same = compare(kernels(), &r, &r, 17);
        assert_eq!((same.kld, same.delta_p, same.same_top1), (0.0, 0.0, true));
        assert_eq!(same.nll, same.reference_nll);

        // Against the definition, term by term.
        let softmax = |x: &[f32]| {
            let max = x.iter().fold(f64::MIN, |a, &b| a.max(f64::from(b)));
            let e: Vec<f64> = x.iter().map(|&v| (f64::from(v) - max).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(move |v| v / sum).collect::<Vec<f64>>()
        };
        let (p, q) = (softmax(&r), softmax(&s));
        let expected: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let found = compare(kernels(), &r, &s, 17);
        assert!((found.kld / expected - 1.0).abs() < 1e-12, "{} {expected}", found.kld);
        assert!((found.nll + q[17].ln()).abs() < 1e-6);
        assert!((found.delta_p - (q[17] - p[17])).abs() < 1e-9);

        // A constant on all logits changes nothing: 4 is exact in these magnitudes up to rounding.
        let shifted: Vec<f32> = r.iter().map(|v| v + 4.0).collect();
        assert!(compare(kernels(), &r, &shifted, 17).kld < 1e-10);
    }

    #[test]
    fn ties_go_to_the_first_and_bad_logits_are_seen() {
        assert_eq!(largest(&[1.0, 3.0, 3.0]), (1, 3.0));
        let long: Vec<f32> = (0..100).map(|i| if i == 97 { 2.0 } else { 1.0 }).collect();
        assert_eq!(largest(&long), (97, 2.0));
        let good = [1.0f32, 2.0, 3.0];
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!compare(kernels(), &good, &[1.0, bad, 2.0], 0).is_finite());
            assert!(!compare(kernels(), &[1.0, bad, 2.0], &good, 0).is_finite());
        }
    }
}
