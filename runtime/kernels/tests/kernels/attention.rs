//! Attention against a double-precision oracle on the values that the cache really holds, and to the
//! last bit between classes and between a query alone and in a group.

use gristmill_kernels::{
    AttentionScratch, Kernels, KvHead, KvType, MAX_QUERY_ROWS, PART, POSITIONS_PER_BLOCK,
    ScoreRule, Span, result_width,
};
use half::f16;

use crate::oracle::{Rng, TINY, all_kernels, assert_same_bits};

const HEAD_DIMS: [usize; 5] = [8, 16, 64, 80, 128];

/// Widths whose padding is zero as the type keeps it.
fn head_dims(kind: KvType) -> impl Iterator<Item = usize> {
    HEAD_DIMS.into_iter().filter(move |d| kind != KvType::Int4 || d.is_multiple_of(16))
}

/// Keys and values as they were given, by position.
struct History {
    head_dim: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl History {
    /// Of what the type can hold: int4 gets vectors that are whole numbers of steps when rotated, so
    /// that the oracle need not know how it rounds.
    fn random(kind: KvType, head_dim: usize, positions: usize, rng: &mut Rng) -> Self {
        let mut vector = || match kind {
            KvType::Int4 => rotated(&steps(head_dim, rng)),
            _ => zero_padded(rng.vector(head_dim)),
        };
        let mut rows = || (0..positions).map(|_| vector()).collect::<Vec<_>>();
        let (keys, values) = (rows(), rows());
        Self { head_dim, keys, values }
    }

    /// A cache of the given capacity into which all positions have been written in order.
    fn cache(&self, kernels: &Kernels, kind: KvType, capacity: usize) -> KvHead {
        let mut kv = KvHead::with_recent(kind, self.head_dim, capacity, self.keys.len() + 32);
        for (position, (k, v)) in self.keys.iter().zip(&self.values).enumerate() {
            kernels.write_kv(&mut kv, position, &mut k.clone(), &mut v.clone());
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

/// Codes of four bits in steps of a 16th, the lowest among them.
fn steps(head_dim: usize, rng: &mut Rng) -> Vec<f32> {
    let mut x: Vec<f32> =
        (0..head_dim.next_multiple_of(16)).map(|_| rng.below(16) as f32 - 8.0).collect();
    x[rng.below(head_dim)] = -8.0;
    x.iter().map(|x| x / 16.0).collect()
}

/// The Walsh-Hadamard transform by its definition, of the largest equal parts that are powers of two.
fn rotated(x: &[f32]) -> Vec<f32> {
    let part = 1 << x.len().trailing_zeros();
    let turn = |part: &[f32]| -> Vec<f32> {
        let sign = |i: usize, j: usize| if (i & j).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
        let row = |i| part.iter().enumerate().map(move |(j, &x)| f64::from(x) * sign(i, j));
        let norm = (part.len() as f64).sqrt();
        (0..part.len()).map(|i| (row(i).sum::<f64>() / norm) as f32).collect()
    };
    x.chunks(part).flat_map(turn).collect()
}

/// A key or value as the cache holds it.
fn stored(kind: KvType, x: &[f32]) -> Vec<f64> {
    match kind {
        KvType::F32 | KvType::Int4 => x.iter().map(|&x| f64::from(x)).collect(),
        KvType::F16 => x.iter().map(|&x| f16::from_f32(x).to_f64()).collect(),
        KvType::Int8 => {
            let absmax = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            if absmax <= TINY {
                return vec![0.0; x.len()];
            }
            let scale = absmax / 127.0;
            let code = |x: &f32| f64::from((x * (1.0 / scale)).round_ties_even());
            x.iter().map(|x| code(x) * f64::from(scale)).collect()
        }
    }
}

/// How far from the oracle results may be, relative to the values' magnitude. Types that are computed
/// with in integers take queries and weights in 16 bits.
fn tolerance(kind: KvType) -> f64 {
    match kind {
        KvType::F32 | KvType::F16 => 1e-5,
        KvType::Int8 | KvType::Int4 => 2e-4,
    }
}

/// Runs the kernel with dirty buffers, all parts in one call.
fn attend(kernels: &Kernels, kv: &KvHead, q: &[f32], spans: &[Span], rule: ScoreRule) -> Vec<f32> {
    let first = spans.iter().map(|s| s.parts().start).min().expect("spans");
    let end = spans.iter().map(|s| s.parts().end).max().expect("spans");
    let mut rows = attend_parts(kernels, kv, q, spans, rule, first..end);
    finish(kernels, kv, &mut rows)
}

fn attend_parts(
    kernels: &Kernels,
    kv: &KvHead,
    q: &[f32],
    spans: &[Span],
    rule: ScoreRule,
    parts: std::ops::Range<usize>,
) -> Vec<f32> {
    let queries: Vec<&[f32]> = q.chunks(q.len() / spans.len()).collect();
    let mut scratch = AttentionScratch::new(kv.head_dim());
    // Exactly the room that is asked for, so that a sanitizer sees one value more.
    let mut rows = vec![f32::NAN; spans.len() * result_width(kv.head_dim())];
    kernels.attend(kv, &queries, spans, rule, parts, &mut scratch, &mut rows);
    rows
}

fn finish(kernels: &Kernels, kv: &KvHead, rows: &mut [f32]) -> Vec<f32> {
    let padded = kv.head_dim().next_multiple_of(16);
    let mut out = Vec::new();
    for row in rows.chunks_mut(result_width(kv.head_dim())) {
        kernels.finish_attention(kv.kind(), kv.head_dim(), row);
        out.extend_from_slice(&row[..padded]);
    }
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
                assert!(
                    error < tolerance(kind),
                    "{what}: query {r}, dimension {d}: {got}, expected {want}"
                );
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
        for head_dim in head_dims(kind) {
            let history = History::random(kind, head_dim, 130, &mut rng);
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
        for head_dim in head_dims(kind) {
            let history = History::random(kind, head_dim, 120, &mut rng);
            for rows in [1, 2, 3, 4, 5, MAX_QUERY_ROWS] {
                for start in [0, 13, 15, 62, 108] {
                    for window in [1, 7, 16, 33, 1000] {
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
        let history = History::random(kind, 64, 90, &mut rng);
        for rows in 1..=MAX_QUERY_ROWS {
            check(&history, kind, 90, &vec![span(5, 88); rows], rule(64), &mut rng);
        }
    }
}

#[test]
fn spans_may_overlap_in_any_way_or_not_at_all() {
    let mut rng = Rng::new(43);
    for kind in KvType::ALL {
        let history = History::random(kind, 80, 100, &mut rng);
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
fn parts_folded_one_by_one_are_the_whole_to_the_last_bit() {
    let mut rng = Rng::new(49);
    let length = 3 * PART + 70;
    for kind in KvType::ALL {
        let history = History::random(kind, 80, length, &mut rng);
        let spans = [
            span(0, length - 1),
            span(0, PART - 1),
            span(PART - 1, PART),
            span(PART, 3 * PART),
            span(2 * PART + 5, 3 * PART - 1),
            span(3 * PART + 3, length - 5),
        ];
        check(&history, kind, length, &spans, rule(80), &mut rng);
        let q = queries(spans.len(), 80, &mut rng);
        for kernels in all_kernels() {
            let kv = history.cache(kernels, kind, length);
            let whole = attend(kernels, &kv, &q, &spans, rule(80));
            let mut rows = attend_parts(kernels, &kv, &q, &spans, rule(80), 0..1);
            for part in 1..4 {
                let later = attend_parts(kernels, &kv, &q, &spans, rule(80), part..part + 1);
                let width = result_width(80);
                for (row, later) in rows.chunks_mut(width).zip(later.chunks(width)) {
                    kernels.fold_attention(80, row, later);
                }
            }
            let folded = finish(kernels, &kv, &mut rows);
            assert_same_bits(&folded, &whole, &format!("{kind:?} on {}", kernels.isa().name()));
        }
    }
}

#[test]
fn four_bits_round_what_is_far_and_nothing_that_is_near() {
    let mut rng = Rng::new(50);
    let mut row = |spike: usize| {
        // One dimension larger than all others, as real keys have.
        let mut x: Vec<f32> =
            (0..64).map(|_| (0..6).map(|_| rng.unit()).sum::<f32>() / 3.0).collect();
        x[spike] += 8.0;
        x
    };
    let keys: Vec<_> = (0..200).map(|_| row(5)).collect();
    let values: Vec<_> = (0..200).map(|_| row(9)).collect();
    let history = History { head_dim: 64, keys, values };
    let mut rng = Rng::new(51);
    for kernels in all_kernels() {
        let kv = history.cache(kernels, KvType::Int4, 200);
        let error = |span: Span, q: &[f32]| {
            let got = attend(kernels, &kv, q, &[span], rule(64));
            let want = history.oracle(KvType::F32, q, span, rule(64));
            let squares = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).powi(2));
            (squares.sum::<f64>() / 64.0).sqrt()
        };
        for position in [16, 31, 32, 47, 100, 199] {
            let q = queries(1, 64, &mut rng);
            let exact = position / 16 * 16 - 16;
            let near = error(span(exact, position), &q);
            assert!(near < 6e-3, "position {position}: {near} in half precision");
            if exact > 0 {
                let far = error(span(exact - 1, exact - 1), &q);
                assert!(far < 0.01, "a query sees its own block exactly: {far}");
                let mixed = error(span(0, position), &q);
                assert!((1e-4..0.2).contains(&mixed), "position {position}: {mixed}");
            }
        }
        // A value alone, seen from two blocks on, is off by its rounding: a spike of 8 in 64 dimensions
        // is rotated to ±1 in each, beside which steps are small.
        let q = queries(1, 64, &mut rng);
        let mut weights = history.oracle(KvType::F32, &q, span(3, 3), rule(64));
        let got = attend(kernels, &kv, &q, &[span(3, 3)], rule(64));
        weights.iter_mut().zip(&got).for_each(|(w, g)| *w -= f64::from(*g));
        assert!(weights.iter().all(|w| w.abs() < 0.01));
    }
}

#[test]
fn windows_change_hands_without_a_trace() {
    let mut rng = Rng::new(52);
    let history = History::random(KvType::Int4, 64, 150, &mut rng);
    for kernels in all_kernels() {
        let expected = history.cache(kernels, KvType::Int4, 150);
        for start in [0, 1, 15, 16, 47, 90] {
            let mut kv = KvHead::new(KvType::Int4, 64, 150);
            let mut lent = KvHead::recent_for(64, 150 - start);
            let write = |kv: &mut KvHead, range: std::ops::Range<usize>| {
                for p in range {
                    let (mut k, mut v) = (history.keys[p].clone(), history.values[p].clone());
                    kernels.write_kv(kv, p, &mut k, &mut v);
                }
            };
            write(&mut kv, 0..start);
            let before = KvHead::RECENT.min(start);
            kv.exchange_recent(&mut lent, start - before, start);
            write(&mut kv, start..150);
            for position in [start, (start + 149) / 2, 149] {
                let (q, spans) = (queries(1, 64, &mut rng), [span(0, position)]);
                let got = attend(kernels, &kv, &q, &spans, rule(64));
                let want = attend(kernels, &expected, &q, &spans, rule(64));
                assert_same_bits(&got, &want, "with the larger window");
            }
            kv.exchange_recent(&mut lent, start - before, 150);
            for position in [128, 149] {
                let (q, spans) = (queries(1, 64, &mut rng), [span(0, position)]);
                let got = attend(kernels, &kv, &q, &spans, rule(64));
                let want = attend(kernels, &expected, &q, &spans, rule(64));
                assert_same_bits(&got, &want, "with its own again");
            }
            assert!(!kv.is_recent_lost(128, 150) && !kv.is_recent_lost(112, 150));
            assert!(kv.is_recent_lost(111, 150) && !kv.is_recent_lost(0, 150));
        }
    }
}

#[test]
fn the_ring_wraps_around_any_number_of_times() {
    let mut rng = Rng::new(44);
    for kind in KvType::ALL {
        for head_dim in [16, 80] {
            for positions in [49, 64, 97, 200, 333] {
                let history = History::random(kind, head_dim, positions, &mut rng);
                let last = positions - 1;
                // 64 slots hold a window of 32 with room for the blocks at both ends.
                for rows in [1, 3, 4, MAX_QUERY_ROWS] {
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
        let history = History::random(kind, 64, 70, &mut rng);
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
        for head_dim in head_dims(kind) {
            let history = History::random(kind, head_dim, 40, &mut rng);
            for kernels in all_kernels() {
                let kv = history.cache(kernels, kind, 40);
                let q = queries(1, head_dim, &mut rng);
                for p in [0, 15, 16, 39] {
                    let got = attend(kernels, &kv, &q, &[span(p, p)], rule(head_dim));
                    // A weight in 16 bits is one of 127 · 254 steps: the largest is exact.
                    for (got, want) in got.iter().zip(stored(kind, &history.values[p])) {
                        let slack = if kind == KvType::Int4 { 2e-6 } else { 4e-7 * want.abs() };
                        assert!((f64::from(*got) - want).abs() <= slack);
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
        for kind in [KvType::F32, KvType::F16, KvType::Int8] {
            for magnitude in [0.0f32, 1e-42, 1e-3, 1.0, 6e4] {
                let mut rng = Rng::new(47);
                let scaled = |rng: &mut Rng| {
                    zero_padded(rng.vector(64).iter().map(|x| x * magnitude).collect())
                };
                let (k, v) = (scaled(&mut rng), scaled(&mut rng));
                let mut kv = KvHead::new(kind, 64, 16);
                // What was there before must not shine through.
                kernels.write_kv(&mut kv, 3, &mut [9.0; 64], &mut [9.0; 64]);
                kernels.write_kv(&mut kv, 3, &mut k.clone(), &mut v.clone());
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
fn a_number_that_is_not_finite_is_not_hidden() {
    let mut rng = Rng::new(48);
    for kind in KvType::ALL {
        for (bad, in_key) in [(f32::NAN, true), (f32::INFINITY, true), (f32::NAN, false)] {
            let mut history = History::random(kind, 16, 20, &mut rng);
            let rows = if in_key { &mut history.keys } else { &mut history.values };
            rows[7][3] = bad;
            for kernels in all_kernels() {
                let kv = history.cache(kernels, kind, 20);
                let q = queries(2, 16, &mut rng);
                let got = attend(kernels, &kv, &q, &[span(0, 6), span(0, 7)], rule(16));
                assert!(got[..16].iter().all(|x| x.is_finite()), "a query that does not see it");
                // An infinite key takes all the weight, or none.
                if bad.is_nan() || kind == KvType::Int8 || kind == KvType::Int4 {
                    assert!(got[16..].iter().any(|x| x.is_nan()), "a query that sees it");
                }
            }
        }
    }
}
