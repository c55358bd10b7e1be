use gristmill_formats::codec::CodecId;
use gristmill_formats::fold::FoldProducer;

use super::*;
use crate::Recipe;
use crate::hessian::Moment;
use crate::testing::{Random, moment};

const ROWS: usize = 48;

fn statistics(input: Moment, output: Moment) -> Statistics {
    let fisher = 2.5;
    let (input, output) = (Some(input), Some(output));
    Statistics { input, output, energy: Vec::new(), fisher, row_energy: Vec::new() }
}

fn pair(stretch: usize, kv: usize, copies: usize) -> FoldPair {
    let producer = FoldProducer::Linear { weight: "v".into(), bias: None };
    let consumers = vec!["o".into()];
    FoldPair { producer, consumers, channels: stretch * kv, stretch, copies }
}

/// Matrices that read the channels of a pair, and what is known of them.
fn problem(pair: &FoldPair, seed: u64) -> Vec<(Matrix, Statistics)> {
    let cols = pair.columns();
    let matrix = |i: u64| {
        let weights = Random::new(seed + i).normals(ROWS * cols);
        let moments = (moment(200, cols, seed + 5 + i), moment(150, ROWS, seed + 9 + i));
        (Matrix::new(ROWS, cols, weights), statistics(moments.0, moments.1))
    };
    (0..2).map(matrix).collect()
}

fn consumers(problem: &[(Matrix, Statistics)], codec: CodecId) -> Vec<Consumer<'_>> {
    let grid = PackedGrid::new(&Recipe::new(codec).codec(codec)).expect("a block codec");
    let consumers = problem.iter().map(|(w, s)| Consumer::new(grid.clone(), w, s));
    consumers.collect::<Option<_>>().expect("usable statistics")
}

/// The cost of all rows of all consumers.
fn cost(pair: &FoldPair, consumers: &[Consumer<'_>], scales: &[f32], judge: Judge) -> f64 {
    let factors: Vec<f32> = (0..pair.columns()).map(|c| scales[pair.channel(c)]).collect();
    let rows: Vec<usize> = (0..ROWS).collect();
    consumers.iter().map(|c| c.cost(&rows, &factors, judge)).sum()
}

#[test]
fn scales_never_lose_against_none() {
    let mut scaled = 0;
    for (seed, pair) in [pair(70, 1, 1), pair(16, 2, 3), pair(24, 3, 1)].iter().enumerate() {
        let problem = problem(pair, 100 * seed as u64);
        for codec in [CodecId::Q2, CodecId::Q4, CodecId::Q8] {
            let consumers = consumers(&problem, codec);
            for judge in [Judge::Plain, Judge::Best] {
                let none = cost(pair, &consumers, &vec![1.0; pair.channels], judge);
                let Some(scales) = search(pair, &consumers, judge) else { continue };
                let with = cost(pair, &consumers, &scales, judge);
                assert!(with < none, "{codec} {judge:?}: {with} after {none}");
                assert!(scales.iter().all(|s| s.is_finite() && *s > 0.0));
                scaled += 1;
            }
        }
    }
    assert!(scaled > 6, "scales help unequal channels, {scaled} of 18");
}

#[test]
fn the_cost_of_no_scales_is_that_of_plain_rounding() {
    let pair = pair(64, 1, 1);
    let problem = problem(&pair, 3);
    let consumer = &consumers(&problem, CodecId::Q4)[0];
    let (weights, statistics) = &problem[0];
    let moment = statistics.input.as_ref().expect("a moment");
    let mean = moment.mean();
    let importance: Vec<f32> = (0..64).map(|j| mean[(j, j)]).collect();
    let rounded = round_nearest(&consumer.grid, weights.data(), 64, &importance);
    let output = statistics.output.as_ref().expect("given above");
    let left = output.diagonal();
    let loss = loss(&consumer.grid, &rounded, weights.data(), 64, &mean, Left::Rows(&left));
    let expected = 0.5 * statistics.fisher * loss / (moment.trace() * output.trace());
    let rows: Vec<usize> = (0..ROWS).collect();
    let found = consumer.cost(&rows, &[1.0; 64], Judge::Plain);
    assert!((found / expected - 1.0).abs() < 1e-4, "{found}, expected {expected}");
}

#[test]
fn exponents_weigh_activations_against_weights() {
    let (x, w) = ([1.0, 4.0, 0.25], [0.5, 0.5, 0.125]);
    let near = |found: Vec<f32>, expected: [f32; 3]| {
        found.iter().zip(expected).all(|(f, e)| (f / e - 1.0).abs() < 2e-3)
    };
    // With r = 0 the weights alone count, with r = 1 the activations.
    assert!(near(scales(&x, &w, 0.0), [0.5, 0.5, 2.0]));
    assert!(near(scales(&x, &w, 1.0), [1.0, 4.0, 0.25]));
}

#[test]
fn channels_without_activations_or_weights_are_no_trouble() {
    let scales = scales(&[0.0, 1.0, 2.0], &[0.3, 0.0, 0.2], 0.5);
    assert!(scales.iter().all(|s| s.is_finite() && *s > 0.0), "{scales:?}");
}
