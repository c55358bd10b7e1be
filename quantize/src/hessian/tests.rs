use faer::linalg::solvers::Solve;

use super::*;
use crate::testing::{Random, activations, bits, moment, moment_of, on_threads};

/// A number of rows at which nothing is drawn towards the diagonal.
const MANY: u64 = u64::MAX;

fn symmetric(rows: &[&[f32]]) -> Mat<f32> {
    Mat::from_fn(rows.len(), rows.len(), |i, j| rows[i][j])
}

/// What a factor is of: the damped and shrunk moment, in the order of rounding.
fn prepared(mean: &Mat<f32>, rows: u64, factor: &Factor) -> Mat<f64> {
    let n = mean.nrows();
    let diagonal = |i: usize| f64::from(mean[(i, i)]);
    let average = (0..n).map(diagonal).sum::<f64>() / n as f64;
    let largest = (0..n).map(diagonal).fold(0.0, f64::max);
    let shrinkage = (n as f64 / rows as f64).min(MAX_SHRINKAGE);
    Mat::from_fn(n, n, |p, q| {
        let (i, j) = (factor.order[p], factor.order[q]);
        if i == j {
            (diagonal(i) + factor.damping * average).max(DIAGONAL_FLOOR * largest)
        } else {
            f64::from(mean[(i, j)]) * (1.0 - shrinkage)
        }
    })
}

/// `Bᵀ D B`.
fn rebuilt(factor: &Factor) -> Mat<f64> {
    let n = factor.order.len();
    let b = Mat::from_fn(n, n, |i, j| f64::from(factor.lower[(i, j)]));
    let scaled = Mat::from_fn(n, n, |i, j| f64::from(factor.diagonal[i]) * b[(i, j)]);
    b.transpose() * scaled
}

/// Means of moments of many shapes, and how many vectors they are of.
fn means() -> Vec<(Mat<f32>, u64)> {
    let shapes = [(1, 5), (2, 1), (31, 40), (32, 3), (33, 1000), (64, 64), (100, 2000)];
    let shapes = shapes.into_iter().enumerate();
    shapes.map(|(seed, (n, rows))| (moment(rows, n, seed as u64).mean(), rows as u64)).collect()
}

#[test]
fn a_moment_is_the_weighted_mean_of_outer_products() {
    // More rows than are added at a time.
    let (n, rows) = (5, 2 * TILE_ROWS + 77);
    let x = activations(rows, n, 1);
    let weights: Vec<f32> = Random::new(2).normals(rows).iter().map(|w| w * w).collect();
    let mut moment = Moment::new(n);
    // In two parts, of which the second begins with its own weights.
    let half = rows / 2;
    moment.add(&x[..half * n], Some(&weights[..half]));
    moment.add(&x[half * n..], Some(&weights[half..]));
    let mean = moment.mean();
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let mut trace = 0.0;
    for i in 0..n {
        for j in 0..n {
            let products = x.chunks_exact(n).zip(&weights);
            let sum: f64 =
                products.map(|(x, &w)| f64::from(w) * f64::from(x[i]) * f64::from(x[j])).sum();
            let scale = f64::from(mean[(i, i)] * mean[(j, j)]).sqrt();
            assert!((f64::from(mean[(i, j)]) - sum / total).abs() <= 1e-5 * scale, "{i}, {j}");
            trace += if i == j { sum / total } else { 0.0 };
        }
    }
    assert!((moment.trace() - trace).abs() <= 1e-5 * trace);
    assert_eq!(moment.counts(), (rows as u64, 0));
}

#[test]
fn vectors_that_are_not_finite_are_left_out_and_counted() {
    let good = [1.0f32, 2.0, -3.0, 0.5];
    let mut moment = Moment::new(2);
    moment.add(&[1.0, 2.0, f32::NAN, 0.0, -3.0, 0.5, 0.0, f32::INFINITY, 7.0, 7.0], {
        Some(&[1.0, 1.0, 1.0, 1.0, f32::NAN])
    });
    assert_eq!(moment.counts(), (2, 3));
    assert_eq!(moment.mean(), moment_of(&good, 2).mean());
}

#[test]
fn a_moment_survives_its_vector() {
    for n in [1, 2, 7, 40] {
        let mut moment = moment(50, n, n as u64);
        moment.add(&vec![f32::NAN; n], None);
        let read = Moment::from_vector(moment.to_vector()).expect("a possible length");
        assert_eq!((read.len(), read.counts()), (n, (50, 1)));
        assert_eq!(read.mean(), moment.mean());
        assert_eq!(read.trace(), moment.trace());
    }
    for len in [0, 1, 2, 5, 7, 8] {
        assert!(Moment::from_vector(vec![1.0; len]).is_none(), "{len}");
    }
}

#[test]
fn mixing_adds_means() {
    let (a, b) = (moment(30, 4, 1), moment(70, 4, 2));
    let mut mixed = a.clone();
    mixed.mix(2.0, &b, 0.5);
    let (a, b, mixed) = (a.mean(), b.mean(), mixed.mean());
    for at in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
        let expected = 2.0 * a[at] + 0.5 * b[at];
        assert!((mixed[at] - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{at:?}");
    }
    // A moment of nothing adds nothing.
    let mut mixed = moment(30, 4, 1);
    mixed.mix(1.0, &Moment::new(4), 3.0);
    assert!((mixed.trace() - moment(30, 4, 1).trace()).abs() <= 1e-5 * mixed.trace());
}

#[test]
fn rescaling_is_that_of_the_vectors() {
    let (n, x) = (7, activations(40, 7, 1));
    let factors = [1.0f32, 0.5, -2.0, 3.0, 0.0, 10.0, 1e-3];
    let scaled: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factors[i % n]).collect();
    let mut moment = moment_of(&x, n);
    moment.rescale(|j| factors[j]);
    let (found, expected) = (moment.mean(), moment_of(&scaled, n).mean());
    for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let scale = (expected[(i, i)] * expected[(j, j)]).sqrt();
        assert!((found[(i, j)] - expected[(i, j)]).abs() <= 1e-5 * scale, "{i}, {j}");
    }
    let diagonal: Vec<f32> = (0..n).map(|i| found[(i, i)]).collect();
    for (a, b) in moment.diagonal().iter().zip(&diagonal) {
        assert!((a - b).abs() <= 1e-6 * b);
    }
}

#[test]
fn the_factor_rebuilds_the_moment() {
    for (mean, rows) in means() {
        for group in [1, 16, 32] {
            let n = mean.nrows();
            let factor = Factor::new(&mean, rows, group).expect("a factor");
            assert_eq!(factor.damping, DAMPING_LADDER[0], "{n} channels, {rows} rows");
            let (expected, found) = (prepared(&mean, rows, &factor), rebuilt(&factor));
            let conditioned = factor.conditioned(&mean);
            for (p, q) in (0..n).flat_map(|p| (0..n).map(move |q| (p, q))) {
                let scale = (expected[(p, p)] * expected[(q, q)]).sqrt();
                let off = (found[(p, q)] - expected[(p, q)]).abs();
                assert!(off <= 1e-5 * scale, "{n} channels, {rows} rows: {off} of {scale}");
                let same = f64::from(conditioned[(factor.order[p], factor.order[q])]);
                assert!((same - expected[(p, q)]).abs() <= 1e-6 * scale, "what was factored");
                let unit = factor.lower[(p, q)];
                assert!(p != q || unit == 1.0, "the diagonal of B is 1");
                assert!(p >= q || unit == 0.0, "B is lower triangular");
            }
            assert!(factor.diagonal.iter().all(|d| *d > 0.0));
        }
    }
}

#[test]
fn solving_through_the_factor_solves_the_moment() {
    for (mean, rows) in means() {
        let n = mean.nrows();
        let factor = Factor::new(&mean, rows, 32).expect("a factor");
        let matrix = prepared(&mean, rows, &factor);
        let b = Random::new(9).normals(n);
        let right = Mat::from_fn(n, 1, |i, _| f64::from(b[i]));
        let expected = matrix.llt(Side::Lower).expect("positive definite").solve(&right);

        let entry = |i: usize, j: usize| f64::from(factor.lower[(i, j)]);
        let mut x: Vec<f64> = b.iter().map(|&b| f64::from(b)).collect();
        for i in (0..n).rev() {
            x[i] -= (i + 1..n).map(|j| entry(j, i) * x[j]).sum::<f64>();
        }
        x.iter_mut().zip(&factor.diagonal).for_each(|(x, &d)| *x /= f64::from(d));
        for i in 0..n {
            x[i] -= (0..i).map(|j| entry(i, j) * x[j]).sum::<f64>();
        }

        let norm = expected.norm_l2();
        let off = (0..n).map(|i| (x[i] - expected[(i, 0)]).powi(2)).sum::<f64>().sqrt();
        assert!(off <= 1e-4 * norm, "{n} channels: off by {off} of {norm}");
    }
}

#[test]
fn the_order_is_by_importance_and_keeps_groups_together() {
    for (mean, rows) in means() {
        for group in [1, 16, 32] {
            let n = mean.nrows();
            let order = Factor::new(&mean, rows, group).expect("a factor").order;
            let mut seen = vec![false; n];
            order.iter().for_each(|&i| assert!(!std::mem::replace(&mut seen[i], true)));
            assert!(seen.into_iter().all(|seen| seen), "every index is there");
            let energy = |i: usize| mean[(i, i)];
            let (mut first, mut leader) = (0, f32::INFINITY);
            while first < n {
                // The last group of columns may be short, and can be anywhere in the order.
                let start = order[first] / group * group;
                let members = &order[first..first + group.min(n - start)];
                assert!(members.iter().all(|i| i / group == start / group));
                assert!(members.is_sorted_by(|&a, &b| energy(a) >= energy(b)));
                assert!(energy(members[0]) <= leader, "groups go by their largest member");
                leader = energy(members[0]);
                first += members.len();
            }
        }
    }
}

#[test]
fn importance_is_the_diagonal_by_index() {
    let factor = Factor::new(&moment(200, 70, 3).mean(), 200, 32).expect("a factor");
    let importance = factor.importance();
    for (p, &index) in factor.order.iter().enumerate() {
        assert_eq!(importance[index], factor.diagonal[p]);
    }
}

#[test]
fn damping_is_the_least_that_helps() {
    // Eigenvalues 1 ± c: positive with damping above c - 1.
    for (coupling, damping) in
        [(0.9, 0.01), (1.0, 0.01), (1.005, 0.01), (1.02, 0.03), (1.09, 0.1), (1.2, 0.3), (1.9, 1.0)]
    {
        let mean = symmetric(&[&[1.0, coupling], &[coupling, 1.0]]);
        let factor = Factor::new(&mean, MANY, 1).expect("a factor");
        assert_eq!(factor.damping, damping, "coupling {coupling}");
    }
    let hopeless = symmetric(&[&[1.0, 2.5], &[2.5, 1.0]]);
    assert_eq!(Factor::new(&hopeless, MANY, 1).err(), Some(Fallback::NotPositiveDefinite));
}

#[test]
fn moments_of_low_rank_need_no_more_than_the_least_damping() {
    let n = 96;
    for rank in [1, 2, 10] {
        let moment = moment(rank, n, rank as u64);
        // With and without the shrinkage that so few rows bring.
        for rows in [rank as u64, MANY] {
            let factor = Factor::new(&moment.mean(), rows, 32).expect("a factor");
            assert_eq!(factor.damping, DAMPING_LADDER[0]);
        }
    }
}

#[test]
fn few_rows_are_drawn_towards_the_diagonal() {
    let mean = symmetric(&[&[2.0, 1.0], &[1.0, 2.0]]);
    let coupling = |rows: u64| Factor::new(&mean, rows, 1).expect("a factor").lower[(1, 0)];
    // The later channel is 1.01 times 2: its share of the earlier one is what is left of 1 over that.
    for (rows, left) in [(1, 0.5), (4, 0.5), (8, 0.75), (200, 0.99), (MANY, 1.0)] {
        assert!((coupling(rows) - left / 2.02).abs() < 1e-6, "{rows} rows: {}", coupling(rows));
    }
}

#[test]
fn dead_channels_are_counted_and_uncoupled() {
    let (n, dead) = (40, [3usize, 17, 39]);
    let mut x = activations(300, n, 5);
    x.chunks_exact_mut(n).for_each(|x| dead.iter().for_each(|&j| x[j] = 0.0));
    let factor = Factor::new(&moment_of(&x, n).mean(), 300, 32).expect("a factor");
    assert_eq!(factor.dead, dead.len());
    let least = factor.diagonal.iter().copied().fold(f32::INFINITY, f32::min);
    for (p, index) in factor.order.iter().enumerate() {
        if dead.contains(index) {
            assert_eq!(factor.diagonal[p], least, "nothing costs less");
            let coupled = (0..n)
                .any(|q| q != p && (factor.lower[(p, q)] != 0.0 || factor.lower[(q, p)] != 0.0));
            assert!(!coupled, "channel {index}");
        }
    }
}

#[test]
fn moments_that_cannot_steer_say_why() {
    let fallback = |mean: &Mat<f32>, rows| Factor::new(mean, rows, 32).err();
    let good = moment(10, 3, 1).mean();
    assert_eq!(fallback(&good, 10), None);
    assert_eq!(fallback(&good, 0), Some(Fallback::NoActivations));
    assert_eq!(fallback(&Mat::zeros(3, 3), 10), Some(Fallback::NoActivations));
    assert_eq!(fallback(&Moment::new(3).mean(), 0), Some(Fallback::NoActivations));
    for value in [f32::NAN, f32::INFINITY] {
        for at in [(0, 0), (1, 2)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(fallback(&bad, 10), Some(Fallback::NotFinite), "{value} at {at:?}");
        }
    }
    // Finite vectors whose squares are not.
    let overflow = moment_of(&[1e25, 1.0, 1.0], 3);
    assert_eq!(fallback(&overflow.mean(), 1), Some(Fallback::NotFinite));
}

#[test]
fn factors_of_extreme_moments_are_finite() {
    let n = 64;
    for gain in [1e-18f32, 1e-6, 1e6, 1e18] {
        let mut x = activations(100, n, 6);
        x.chunks_exact_mut(n).for_each(|x| x[7] *= gain);
        let factor = Factor::new(&moment_of(&x, n).mean(), 100, 32).expect("a factor");
        let lower = (0..n).all(|j| factor.lower.col(j).iter().all(|x| x.is_finite()));
        assert!(lower && factor.diagonal.iter().all(|d| d.is_finite()), "{gain}");
    }
    // The largest moments there are: with damping on top they would not be finite.
    let mean = Mat::from_fn(2, 2, |i, j| if i == j { f32::MAX } else { 0.0 });
    match Factor::new(&mean, 100, 32) {
        Ok(factor) => assert!(factor.diagonal.iter().all(|d| d.is_finite())),
        Err(fallback) => assert_eq!(fallback, Fallback::NotFinite),
    }
}

#[test]
fn moments_and_factors_do_not_depend_on_threads() {
    let (n, rows) = (300, 1500);
    let x = activations(rows, n, 8);
    let results = [1, 2, 3].map(|threads| {
        on_threads(threads, || {
            let moment = moment_of(&x, n);
            let factor = Factor::new(&moment.mean(), rows as u64, 32).expect("a factor");
            let lower: Vec<f32> = (0..n)
                .flat_map(|j| factor.lower.col(j).iter().copied().collect::<Vec<_>>())
                .collect();
            [bits(&moment.to_vector()), bits(&factor.diagonal), bits(&lower)]
        })
    });
    for (threads, other) in results[1..].iter().enumerate() {
        for (what, (a, b)) in
            ["moment", "diagonal", "lower"].iter().zip(results[0].iter().zip(other))
        {
            assert!(a == b, "the {what} differs with {} threads", threads + 2);
        }
    }
}
