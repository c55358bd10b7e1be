//! Attention against a double-precision oracle on the values that the cache really holds, and to the
//! last bit between classes and between a query alone and in a group.

use gristmill_kernels::{
    Kernels, KvHead, KvType, MAX_QUERY_ROWS, POSITIONS_PER_BLOCK, ScoreRule, Span,
};
use half::f16;

use crate::oracle::{Rng, TINY, all_kernels, assert_same_bits};

const HEAD_DIMS: [usize; 5] = [8, 16, 64, 80, 128];

/// Keys and values as they were given, by position.
struct History {
    head_dim: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl History {
    fn random(head_dim: usize, positions: usize, rng: &mut Rng) -> Self {
        let mut rows =
            || (0..positions).map(|_| zero_padded(rng.vector(head_dim))).collect::<Vec<_>>();
        let (keys, values) = (rows(), rows());
        Self { head_dim, keys, values }
    }

    /// A cache of the given capacity into which all positions have been written in order.
    fn cache(&self, kernels: &Kernels, kind: KvType, capacity: usize) -> KvHead {
        let mut kv = KvHead::new(kind, self.head_dim, capacity);
        for (position, (k, v)) in self.keys.iter().zip(&self.values).enumerate() {
            kernels.write_kv(&mut kv, position, k, v);
        }
        kv
    }

    /// One query in double precision over the stored values.
    fn oracle(&self, kind: KvType, q: &[f32], span: Span, rule: ScoreRule) -> Vec<f64> {
        let positions = span.first..=span.position;
        let scores: Vec<f64> = positions
            .clone()
            .map(|p| {
                let k = stored(kind, &self.keys[p]);
                let dot: f64 = q.iter().zip(&k).map(|(q, k)| f64::from(*q) * k).sum();
                let score = dot * f64::from(rule.scale);
                rule.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; q.len()];
        for (p, w) in positions.zip(weights) {
            for (o, v) in out.iter_mut().zip(stored(kind, &self.values[p])) {
                *o += w / total * v;
            }
        }
        out
    }
}

fn zero_padded(mut x: Vec<f32>) -> Vec<f32> {
    x.resize(x.len().next_multiple_of(16), 0.0);
    x
}

/// A key or value as the cache holds it.
fn stored(kind: KvType, x: &[f32]) -> Vec<f64> {
    match kind {
        KvType::F32 => x.iter().map(|&x| f64::from(x)).collect(),
        KvType::F16 => x.iter().map(|&x| f16::from_f32(x).to_f64()).collect(),
        KvType::Int8 => {
            let absmax = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            if absmax <= TINY {
                return vec![0.0; x.len()];
            }
            let code = |x: &f32| f64::from((x * (127.0 / absmax)).round_ties_even());
            x.iter().map(|x| code(x) * f64::from(absmax / 127.0)).collect()
        }
    }
}

/// Runs the kernel with dirty buffers.
fn attend(kernels: &Kernels, kv: &KvHead, q: &[f32], spans: &[Span], rule: ScoreRule) -> Vec<f32> {
    let first = spans.iter().map(|s| s.first).min().expect("spans") / POSITIONS_PER_BLOCK;
    let last = spans.iter().map(|s| s.position).max().expect("spans") / POSITIONS_PER_BLOCK;
    // Exactly the room that is asked for, so that a sanitizer sees one value more.
    let mut scores = vec![f32::NAN; spans.len() * (last - first + 1) * POSITIONS_PER_BLOCK];
    let mut out = vec![f32::NAN; q.len()];
    kernels.attend(kv, q, spans, rule, &mut scores, &mut out);
    out
}

fn rule(head_dim: usize) -> ScoreRule {
    ScoreRule { scale: 1.0 / (head_dim as f32).sqrt(), softcap: None }
}

fn queries(n: usize, head_dim: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n)
        .flat_map(|_| zero_padded(rng.vector(head_dim).iter().map(|x| x * 4.0).collect()))
        .collect()
}

/// Asserts that every query of a group matches the oracle and is the same alone, and that all classes
/// agree.
fn check(
    history: &History,
    kind: KvType,
    capacity: usize,
    spans: &[Span],
    rule: ScoreRule,
    rng: &mut Rng,
) {
    let padded = history.head_dim.next_multiple_of(16);
    let q = queries(spans.len(), history.head_dim, rng);
    let mut results = Vec::new();
    for kernels in all_kernels() {
        let kv = history.cache(kernels, kind, capacity);
        let what = format!(
            "{} {} head_dim {} {spans:?}",
            kernels.isa().name(),
            kind.name(),
            history.head_dim
        );
        let group = attend(kernels, &kv, &q, spans, rule);
        for (r, &span) in spans.iter().enumerate() {
            let at = r * padded..(r + 1) * padded;
            let alone = attend(kernels, &kv, &q[at.clone()], &[span], rule);
            assert_same_bits(&group[at.clone()], &alone, &format!("{what}: query {r} in a group"));
            let want = history.oracle(kind, &q[at], span, rule);
            for (d, (got, want)) in alone.iter().zip(&want).enumerate() {
                let error = (f64::from(*got) - want).abs();
                // Values are below 1; the scores' rounding is relative to e^score.
                assert!(error < 1e-5, "{what}: query {r}, dimension {d}: {got}, expected {want}");
            }
        }
        results.push(group);
    }
    for other in &results[1..] {
        assert_same_bits(other, &results[0], "classes");
    }
}

fn span(first: usize, position: usize) -> Span {
    Span { first, position }
}

#[test]
fn one_query_matches_the_oracle_for_every_length_and_width() {
    let mut rng = Rng::new(40);
    for kind in KvType::ALL {
        for head_dim in HEAD_DIMS {
            let history = History::random(head_dim, 130, &mut rng);
            for position in [0, 1, 14, 15, 16, 17, 31, 63, 64, 65, 100, 129] {
                check(&history, kind, 130, &[span(0, position)], rule(head_dim), &mut rng);
            }
        }
    }
}

#[test]
fn consecutive_queries_match_the_oracle_with_and_without_a_window() {
    let mut rng = Rng::new(41);
    for kind in KvType::ALL {
        for head_dim in HEAD_DIMS {
            let history = History::random(head_dim, 120, &mut rng);
            for rows in 1..=MAX_QUERY_ROWS {
                for start in [0, 13, 15, 16, 62, 110] {
                    for window in [1, 2, 7, 16, 33, 1000] {
                        let spans: Vec<_> = (start..start + rows)
                            .map(|p| span((p + 1).saturating_sub(window), p))
                            .collect();
                        check(&history, kind, 120, &spans, rule(head_dim), &mut rng);
                    }
                }
            }
        }
    }
}

#[test]
fn queries_of_one_kv_group_share_a_span() {
    let mut rng = Rng::new(42);
    for kind in KvType::ALL {
        let history = History::random(64, 90, &mut rng);
        for rows in 1..=MAX_QUERY_ROWS {
            check(&history, kind, 90, &vec![span(5, 88); rows], rule(64), &mut rng);
        }
    }
}

#[test]
fn spans_may_overlap_in_any_way_or_not_at_all() {
    let mut rng = Rng::new(43);
    for kind in KvType::ALL {
        let history = History::random(80, 100, &mut rng);
        for _ in 0..60 {
            let rows = 1 + rng.below(MAX_QUERY_ROWS);
            let spans: Vec<_> = (0..rows)
                .map(|_| {
                    let (a, b) = (rng.below(100), rng.below(100));
                    span(a.min(b), a.max(b))
                })
                .collect();
            check(&history, kind, 100, &spans, rule(80), &mut rng);
        }
        let apart = [span(70, 75), span(0, 3), span(30, 47), span(3, 3)];
        check(&history, kind, 100, &apart, rule(80), &mut rng);
    }
}

#[test]
fn the_ring_wraps_around_any_number_of_times() {
    let mut rng = Rng::new(44);
    for kind in KvType::ALL {
        for head_dim in [16, 80] {
            for positions in [49, 64, 97, 200, 333] {
                let history = History::random(head_dim, positions, &mut rng);
                let last = positions - 1;
                // 64 slots hold a window of 32 with room for the blocks at both ends.
                for rows in 1..=MAX_QUERY_ROWS {
                    let spans: Vec<_> = (positions - rows..positions)
                        .map(|p| span((p + 1).saturating_sub(32), p))
                        .collect();
                    check(&history, kind, 64, &spans, rule(head_dim), &mut rng);
                }
                // All that is still there, from the block after the one being overwritten.
                let oldest =
                    (last / POSITIONS_PER_BLOCK + 1).saturating_sub(4) * POSITIONS_PER_BLOCK;
                check(&history, kind, 64, &[span(oldest, last)], rule(head_dim), &mut rng);
            }
        }
    }
}

#[test]
fn a_softcap_bounds_the_scores_before_the_softmax() {
    let mut rng = Rng::new(45);
    for kind in KvType::ALL {
        let history = History::random(64, 70, &mut rng);
        for cap in [0.5, 5.0, 50.0] {
            let rule = ScoreRule { scale: 1.0, softcap: Some(cap) };
            check(&history, kind, 70, &[span(0, 60), span(0, 61), span(20, 62)], rule, &mut rng);
        }
    }
}

#[test]
fn the_weights_of_one_position_are_one() {
    let mut rng = Rng::new(46);
    for kind in KvType::ALL {
        for head_dim in HEAD_DIMS {
            let history = History::random(head_dim, 40, &mut rng);
            for kernels in all_kernels() {
                let kv = history.cache(kernels, kind, 40);
                let q = queries(1, head_dim, &mut rng);
                for p in [0, 15, 16, 39] {
                    let got = attend(kernels, &kv, &q, &[span(p, p)], rule(head_dim));
                    for (got, want) in got.iter().zip(stored(kind, &history.values[p])) {
                        assert!((f64::from(*got) - want).abs() <= 1e-7 * want.abs());
                    }
                    assert!(got[head_dim..].iter().all(|&x| x == 0.0), "padding is zero");
                }
            }
        }
    }
}

#[test]
fn zero_tiny_and_large_keys_and_values_are_stored_faithfully() {
    for kernels in all_kernels() {
        for kind in KvType::ALL {
            for magnitude in [0.0f32, 1e-42, 1e-3, 1.0, 6e4] {
                let mut rng = Rng::new(47);
                let scaled = |rng: &mut Rng| {
                    zero_padded(rng.vector(64).iter().map(|x| x * magnitude).collect())
                };
                let (k, v) = (scaled(&mut rng), scaled(&mut rng));
                let mut kv = KvHead::new(kind, 64, 16);
                // What was there before must not shine through.
                kernels.write_kv(&mut kv, 3, &[9.0; 64], &[9.0; 64]);
                kernels.write_kv(&mut kv, 3, &k, &v);
                let q = zero_padded(vec![1e-3; 64]);
                let got = attend(kernels, &kv, &q, &[span(3, 3)], rule(64));
                for (got, want) in got.iter().zip(stored(kind, &v)) {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= 1e-6 * want.abs() + 1e-40, "{kind:?}: {got}, expected {want}");
                }
            }
        }
    }
}

#[test]
fn a_score_that_is_not_a_number_is_not_hidden() {
    let mut rng = Rng::new(48);
    let mut history = History::random(16, 20, &mut rng);
    history.keys[7][3] = f32::NAN;
    for kernels in all_kernels() {
        let kv = history.cache(kernels, KvType::F32, 20);
        let q = queries(2, 16, &mut rng);
        let got = attend(kernels, &kv, &q, &[span(0, 6), span(0, 7)], rule(16));
        assert!(got[..16].iter().all(|x| x.is_finite()), "a query that does not see it");
        assert!(got[16..].iter().all(|x| x.is_nan()), "a query that sees it");
    }
}
