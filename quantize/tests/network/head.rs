//! The head: losses, sampled labels, divergence.

use gristmill_quantize::network::{Head, Matrix};

use crate::models::{all, inner, length, random_matrix};

fn ignore(_: &Matrix, _: &Matrix) {}

#[test]
fn the_gradient_of_the_residual_stream_is_that_of_differences() {
    for source in all() {
        let head = Head::load(&source).expect("the head loads");
        let x = random_matrix(30, head.weight.cols(), 1);
        let weights = random_matrix(30, head.weight.rows(), 2);
        let mut give = |tokens: std::ops::Range<usize>, logits: &mut Matrix| {
            *logits = weights.slice(tokens);
        };
        let gradient = head.backward(&x, &mut give, &mut ignore);
        for seed in 3..8 {
            let direction = random_matrix(x.rows(), x.cols(), seed);
            let loss = |by: f32| {
                let values = x.data().iter().zip(direction.data()).map(|(x, d)| x + by * d);
                let moved = Matrix::new(x.rows(), x.cols(), values.collect());
                inner(&head.logits(&moved), &weights)
            };
            let expected = (loss(1e-2) - loss(-1e-2)) / 2e-2;
            let found = inner(&gradient, &direction);
            let size = length(&gradient) * length(&direction) / (x.data().len() as f64).sqrt();
            assert!((found - expected).abs() < 1e-2 * size, "{found} for {expected}");
        }
    }
}

#[test]
fn the_gradient_of_the_divergence_is_that_of_differences() {
    for source in all() {
        let teacher = Head::load(&source).expect("the head loads");
        let mut head = teacher.clone();
        head.weight.data_mut().iter_mut().step_by(3).for_each(|w| *w *= 1.3);
        let taught = random_matrix(30, head.weight.cols(), 1);
        let x = random_matrix(30, head.weight.cols(), 2);
        let (found, gradient) = head.divergence_backward(&x, &teacher, &taught, &mut ignore);
        let expected = head.divergence(&x, &teacher, &taught);
        assert!((found - expected).abs() < 1e-6 * expected, "{found} for {expected}");
        for seed in 3..8 {
            let direction = random_matrix(x.rows(), x.cols(), seed);
            let loss = |by: f32| {
                let values = x.data().iter().zip(direction.data()).map(|(x, d)| x + by * d);
                let moved = Matrix::new(x.rows(), x.cols(), values.collect());
                head.divergence(&moved, &teacher, &taught)
            };
            let expected = (loss(1e-2) - loss(-1e-2)) / 2e-2;
            let found = inner(&gradient, &direction);
            let size = length(&gradient) * length(&direction) / (x.data().len() as f64).sqrt();
            assert!((found - expected).abs() < 1e-2 * size, "{found} for {expected}");
        }
        let (none, _) = teacher.divergence_backward(&taught, &teacher, &taught, &mut ignore);
        assert!(none.abs() < 1e-6, "{none} from itself");
    }
}

/// With the same token over and over, the mean of the gradients' outer products is
/// `diag(p) - p pᵀ`, the Fisher information of a softmax.
#[test]
fn sampled_gradients_have_the_fisher_information_as_their_covariance() {
    const DRAWS: usize = 20_000;
    let head = Head { weight: random_matrix(6, 8, 3), ..Head::load(&all()[0]).expect("loads") };
    let mut head = head;
    head.norm.gain.truncate(8);
    let one = random_matrix(1, 8, 4);
    let x = Matrix::new(DRAWS, 8, one.data().repeat(DRAWS));
    let mut p: Vec<f64> = head.logits(&one).data().iter().map(|l| f64::from(*l).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);

    let mut fisher = vec![0.0f64; 36];
    let mut energies = vec![0.0f32; 6];
    head.sampled_loss_backward(&x, 11, &mut |input, d_logits| {
        assert_eq!((input.rows(), input.cols()), (d_logits.rows(), 8));
        d_logits.add_column_energies(&mut energies);
        for (t, energy) in d_logits.row_energies().into_iter().enumerate() {
            let row = d_logits.row(t);
            assert!((energy - row.iter().map(|x| x * x).sum::<f32>()).abs() < 1e-5);
            for (i, sum) in fisher.iter_mut().enumerate() {
                *sum += f64::from(row[i / 6] * row[i % 6]) / DRAWS as f64;
            }
        }
    });
    for (i, found) in fisher.iter().enumerate() {
        let (a, b) = (i / 6, i % 6);
        let expected = if a == b { p[a] * (1.0 - p[a]) } else { -p[a] * p[b] };
        assert!((found - expected).abs() < 0.01, "[{a}][{b}]: {found} for {expected}");
    }
    for (v, energy) in energies.iter().enumerate() {
        let found = f64::from(*energy) / DRAWS as f64;
        assert!((found - fisher[v * 7]).abs() < 1e-4, "{v}: {found} for {}", fisher[v * 7]);
    }
}

/// Labels depend on nothing but seed, token and logits: more tokens, and so other tiles, change none.
#[test]
fn sampled_labels_are_reproducible() {
    let head = Head::load(&all()[2]).expect("the head loads");
    let x = random_matrix(1100, head.weight.cols(), 5);
    let all = head.sampled_loss_backward(&x, 1, &mut ignore);
    let first = head.sampled_loss_backward(&x.slice(0..600), 1, &mut ignore);
    let other = head.sampled_loss_backward(&x.slice(0..600), 2, &mut ignore);
    let difference = |a: &Matrix| {
        let pairs = a.data().iter().zip(all.data());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(difference(&first) < 1e-5, "{}", difference(&first));
    assert!(difference(&other) > 0.1, "{}", difference(&other));
}

#[test]
fn divergence_is_that_of_its_definition() {
    for source in all() {
        let teacher = Head::load(&source).expect("the head loads");
        let mut student = teacher.clone();
        student.weight.data_mut().iter_mut().for_each(|w| *w = (*w * 8.0).round() / 8.0);
        let x = random_matrix(600, teacher.weight.cols(), 1);
        let y = random_matrix(600, teacher.weight.cols(), 2);
        let logs = |head: &Head, x: &Matrix| -> Vec<Vec<f64>> {
            let logits = head.logits(x);
            let rows = (0..x.rows()).map(|t| {
                let row = logits.row(t).iter().map(|l| f64::from(*l));
                let log_sum = row.clone().map(f64::exp).sum::<f64>().ln();
                row.map(|l| l - log_sum).collect()
            });
            rows.collect()
        };
        let (log_p, log_q) = (logs(&teacher, &x), logs(&student, &y));
        let pairs = log_p.iter().flatten().zip(log_q.iter().flatten());
        let expected = pairs.map(|(p, q)| p.exp() * (p - q)).sum::<f64>() / 600.0;
        let found = student.divergence(&y, &teacher, &x);
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} for {expected}");
        assert!(teacher.divergence(&x, &teacher, &x).abs() < 1e-7);
    }
}
