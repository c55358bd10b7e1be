//! Gradients against central differences of a loss `Σ R y` with a random `R`.

use gristmill_quantize::network::{BlockParams, Linear, Matrix, backward, forward};

use crate::models::{SEQUENCE, all, blocks, inner, length, random_matrix};

const STEP: f32 = 1e-2;
/// Largest error, relative to what a derivative in a random direction is like.
const TOLERANCE: f64 = 1e-2;

fn loss(block: &BlockParams, x: &Matrix, sequence: usize, weights: &Matrix) -> f64 {
    let mut y = x.clone();
    forward(block, &mut y, sequence, &mut |_, _| ());
    inner(&y, weights)
}

fn moved(x: &Matrix, direction: &Matrix, by: f32) -> Matrix {
    let values = x.data().iter().zip(direction.data()).map(|(x, d)| x + by * d);
    Matrix::new(x.rows(), x.cols(), values.collect())
}

/// Central difference of `f` against the derivative, which is `gradient` along `direction`.
fn check(what: &str, gradient: &Matrix, direction: &Matrix, f: impl Fn(f32) -> f64) {
    let expected = (f(STEP) - f(-STEP)) / (2.0 * f64::from(STEP));
    let found = inner(gradient, direction);
    let typical = length(gradient) * length(direction) / (gradient.data().len() as f64).sqrt();
    let error = (found - expected).abs() / typical;
    assert!(error < TOLERANCE, "{what}: {found} for {expected}, error {error:.1e}");
}

#[test]
fn the_gradient_of_a_blocks_input() {
    for source in all() {
        for (name, block) in blocks(&source) {
            for (tokens, sequence) in [(SEQUENCE, SEQUENCE), (3 * 20, 20), (4, 1)] {
                let width = block.pre_norm.gain.len();
                let x = random_matrix(tokens, width, 1);
                let weights = random_matrix(tokens, width, 2);
                let mut gradient = weights.clone();
                backward(&block, &x, &mut gradient, sequence, &mut |_, _, _| ());
                for seed in 3..6 {
                    let direction = random_matrix(tokens, width, seed);
                    check(&format!("{name}, {tokens} tokens"), &gradient, &direction, |by| {
                        loss(&block, &moved(&x, &direction, by), sequence, &weights)
                    });
                }
            }
        }
    }
}

/// A weight's gradient is `Gᵀ X`, so the observed gradients of outputs and inputs are both held
/// against differences by moving weights.
#[test]
fn the_gradient_of_a_layers_output() {
    for source in all() {
        for (name, block) in blocks(&source) {
            let (tokens, sequence) = (2 * 30, 30);
            let width = block.pre_norm.gain.len();
            let x = random_matrix(tokens, width, 1);
            let weights = random_matrix(tokens, width, 2);
            let mut gradients: Vec<(Linear, Matrix)> = Vec::new();
            let mut observe = |linear, x: &Matrix, g: &Matrix| {
                let mut product = Matrix::zeros(g.cols(), x.cols());
                for t in 0..x.rows() {
                    for (o, g) in g.row(t).iter().enumerate() {
                        let pairs = product.row_mut(o).iter_mut().zip(x.row(t));
                        pairs.for_each(|(p, x)| *p += g * x);
                    }
                }
                gradients.push((linear, product));
            };
            backward(&block, &x, &mut weights.clone(), sequence, &mut observe);
            for (linear, gradient) in gradients {
                let direction = random_matrix(gradient.rows(), gradient.cols(), 3);
                check(&format!("{name} {linear:?}"), &gradient, &direction, |by| {
                    let mut block = block.clone();
                    let projection = block.projection_mut(linear).expect("a layer of the block");
                    projection.weight = moved(&projection.weight, &direction, 0.1 * by);
                    loss(&block, &x, sequence, &weights) / 0.1
                });
            }
        }
    }
}
