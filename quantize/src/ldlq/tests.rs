use gristmill_formats::codec::BLOCK_COLS;
use gristmill_formats::gguf::GgmlType;

use super::*;
use crate::RowRounder;
use crate::grid::gguf::{GgufGrid, GridVisitor, visit};
use crate::grid::packed::{PackedGrid, PackedRow};
use crate::hessian::Moment;
use crate::testing::{
    Random, bits, exact_loss, moment, moment_of, on_threads, packed_grids, values,
};

/// A factor with `B = 1` and an uneven diagonal.
fn diagonal(n: usize, group: usize) -> Factor {
    let mut random = Random::new(6);
    let mean = Mat::from_fn(n, n, |i, j| if i == j { random.normal().exp() } else { 0.0 });
    Factor::new(&mean, u64::MAX, group).expect("a factor")
}

fn factor(moment: &Moment, group: usize) -> Factor {
    Factor::new(&moment.mean(), moment.counts().0, group).expect("a factor")
}

/// Rows of all kinds: of weights, of zeros, with blocks of zeros, and of values of the grid.
fn rows_of_all_kinds(grid: &PackedGrid, cols: usize) -> Vec<f32> {
    let mut random = Random::new(cols as u64);
    let mut weights = random.normals(3 * cols);
    let rounded = round_nearest(grid, &weights, cols, &vec![1.0; cols]);
    let on_grid = values(grid, &rounded, cols);
    weights.extend(vec![0.0; cols]);
    weights.extend(vec![-0.0; cols]);
    weights.extend((0..cols).map(|j| if j / BLOCK_COLS % 2 == 1 { 0.0 } else { random.normal() }));
    weights.extend(on_grid);
    weights
}

#[test]
fn plain_rounding_is_that_of_rows() {
    for (codec, grid) in packed_grids() {
        let rounder = RowRounder::new(&codec).expect("a block codec");
        for cols in [1, 32, 33, 63, 576] {
            let weights = rows_of_all_kinds(&grid, cols);
            let mut random = Random::new(5);
            let unequal: Vec<f32> = (0..cols).map(|_| random.normal().exp()).collect();
            for (importance, known) in [(vec![1.0; cols], None), (unequal.clone(), Some(&unequal))]
            {
                let rounded = round_nearest(&grid, &weights, cols, &importance);
                for (row, x) in rounded.iter().zip(weights.chunks_exact(cols)) {
                    let expected = rounder.round(x, known.map(Vec::as_slice));
                    assert_eq!(grid.store(row), expected, "{}, {cols} columns", codec.id());
                }
            }
        }
    }
}

#[test]
fn without_feedback_it_is_plain_rounding() {
    for (codec, grid) in packed_grids() {
        for cols in [1, 33, 63, 576] {
            let weights = rows_of_all_kinds(&grid, cols);
            let input = diagonal(cols, BLOCK_COLS);
            let fed = round_matrix(&grid, &weights, cols, &input, None);
            let plain = round_nearest(&grid, &weights, cols, &input.importance());
            for (fed, plain) in fed.iter().zip(&plain) {
                let (fed, plain) = (grid.store(fed), grid.store(plain));
                assert_eq!(fed, plain, "{}, {cols} columns", codec.id());
            }
        }
    }
}

/// Rounds with feedback that is off, and plainly.
struct Unfed<'a> {
    weights: &'a [f32],
    cols: usize,
}

impl GridVisitor for Unfed<'_> {
    type Output = [Vec<u8>; 2];

    fn visit<G: GgufGrid>(self, grid: &G) -> Self::Output {
        let input = diagonal(self.cols, G::GROUP);
        let fed = round_matrix(grid, self.weights, self.cols, &input, None);
        let plain = round_nearest(grid, self.weights, self.cols, &input.importance());
        [fed, plain].map(|rows| {
            let mut bytes = Vec::new();
            rows.iter().for_each(|row| grid.pack(row, &mut bytes));
            bytes
        })
    }
}

#[test]
fn without_feedback_it_is_plain_rounding_in_other_formats_too() {
    let cols = 512;
    let weights = Random::new(7).normals(4 * cols);
    for ty in GgmlType::ALL.into_iter().filter(|ty| !ty.is_dense()) {
        let unfed = Unfed { weights: &weights, cols };
        let [fed, plain] = visit(ty, unfed).expect("a type with blocks");
        assert!(fed == plain, "{ty}");
    }
}

/// Checks a rounded matrix against the definition, weight by weight, in double precision, without blocks
/// and tiles: every weight has the value nearest to its target, which follows from the errors of those
/// before. Returns how many blocks there are, and how many have the scale that fits their targets best;
/// where two fit about as well, the last digit decides.
fn check_by_definition(
    grid: &PackedGrid,
    rounded: &[PackedRow],
    weights: &[f32],
    input: &Factor,
    output: Option<&Factor>,
) -> (usize, usize) {
    let (rows, cols) = (rounded.len(), input.order.len());
    let order = output.map_or_else(|| (0..rows).collect(), |output| output.order.clone());
    let importance = input.importance();
    let weight = |r: usize, c: usize| f64::from(weights[order[r] * cols + input.order[c]]);
    let a = |r: usize, k: usize| output.map_or(0.0, |output| f64::from(output.lower[(r, k)]));
    let b = |c: usize, d: usize| f64::from(input.lower[(c, d)]);
    let error = |r: usize, c: usize| {
        weight(r, c) - f64::from(grid.value(&rounded[order[r]], input.order[c]))
    };
    let errors = Mat::from_fn(rows, cols, error);
    let above =
        Mat::from_fn(rows, cols, |r, c| -> f64 { (0..r).map(|k| a(r, k) * errors[(k, c)]).sum() });
    // The target when columns at places before `end` are known.
    let target = |r: usize, c: usize, end: usize| -> f64 {
        let fed = |d: usize| b(c, d) * (errors[(r, d)] + above[(r, d)]);
        weight(r, c) + above[(r, c)] + (0..end).map(fed).sum::<f64>()
    };
    let (mut blocks, mut best) = (0, 0);
    for (r, &index) in order.iter().enumerate() {
        let mut row = rounded[index].clone();
        for c in 0..cols {
            let (target, found) = (target(r, c, c), grid.value(&row, input.order[c]));
            let nearest = grid.round(&mut row, input.order[c], target as f32);
            let [off, least] = [found, nearest].map(|value| (f64::from(value) - target).abs());
            assert!(off <= least + 1e-5, "{off} from the target, but {least} is possible");
        }
        let found = grid.store(&rounded[index]);
        let mut row = grid.start(&weights[index * cols..][..cols], &importance);
        let mut first = 0;
        while first < cols {
            let block = input.order[first] / BLOCK_COLS;
            let columns = block * BLOCK_COLS..cols.min((block + 1) * BLOCK_COLS);
            let mut x = vec![0.0f32; columns.len()];
            for c in first..first + x.len() {
                x[input.order[c] - columns.start] = target(r, c, first) as f32;
            }
            first += x.len();
            grid.fit(&mut row, block, &x, &importance[columns]);
            let row = grid.store(&row);
            assert_eq!(row.row_scale, found.row_scale);
            best += usize::from(row.block_scales[block] == found.block_scales[block]);
            blocks += 1;
        }
    }
    (blocks, best)
}

#[test]
fn weights_are_rounded_by_the_definition() {
    for (g, (codec, grid)) in packed_grids().into_iter().enumerate() {
        let (mut blocks, mut best) = (0, 0);
        for (i, (rows, cols)) in
            [(1, 1), (1, 40), (5, 31), (17, 32), (33, 33), (40, 64), (32, 70), (39, 100)]
                .into_iter()
                .enumerate()
        {
            let seed = (100 * g + i) as u64;
            let weights = Random::new(seed).normals(rows * cols);
            let input = factor(&moment(150, cols, seed + 1), BLOCK_COLS);
            let output = factor(&moment(60, rows, seed + 2), 1);
            for output in [None, Some(&output)] {
                let rounded = round_matrix(&grid, &weights, cols, &input, output);
                let counts = check_by_definition(&grid, &rounded, &weights, &input, output);
                (blocks, best) = (blocks + counts.0, best + counts.1);
            }
        }
        assert!(best * 100 >= blocks * 99, "{}: {best} of {blocks} scales", codec.id());
    }
}

#[test]
fn feedback_lowers_the_loss() {
    for (codec, grid) in packed_grids() {
        for seed in 0..4 {
            let (rows, cols) = ([24, 40, 65, 7][seed as usize], [96, 63, 128, 200][seed as usize]);
            let weights = Random::new(seed).normals(rows * cols);
            let (input, output) = (moment(500, cols, seed + 10), moment(500, rows, seed + 20));
            let (input_mean, output_mean) = (input.mean(), output.mean());
            let factors = (factor(&input, BLOCK_COLS), factor(&output, 1));
            let importance: Vec<f32> = (0..cols).map(|j| input_mean[(j, j)]).collect();
            let plain = round_nearest(&grid, &weights, cols, &importance);
            let one_sided = round_matrix(&grid, &weights, cols, &factors.0, None);
            let two_sided = round_matrix(&grid, &weights, cols, &factors.0, Some(&factors.1));
            let losses = |rounded: &[PackedRow]| {
                let values = values(&grid, rounded, cols);
                [None, Some(&output_mean)].map(|o| exact_loss(&weights, &values, &input_mean, o))
            };
            let [plain, one_sided, two_sided] = [plain, one_sided, two_sided].map(|r| losses(&r));
            let name = format!("{}, {rows} x {cols}", codec.id());
            let [of_inputs, of_both] = [0, 1].map(|i| one_sided[i] / plain[i]);
            assert!(of_inputs < 0.6, "{name}: {of_inputs:.3} of plain rounding");
            assert!(of_both < 0.8, "{name}: {of_both:.3} of plain rounding, both sides");
            let gain = two_sided[1] / one_sided[1];
            assert!(gain < 0.8, "{name}: two-sided is {gain:.3} of one-sided");
        }
    }
}

#[test]
fn the_loss_is_the_trace() {
    let (_, grid) = packed_grids().swap_remove(3);
    // More rows than are looked at together.
    for (rows, cols) in [(1, 1), (5, 40), (2 * LOSS_ROWS + 3, 9)] {
        let mut random = Random::new(rows as u64);
        let weights = random.normals(rows * cols);
        let input = moment(50, cols, 3).mean();
        let rounded = round_nearest(&grid, &weights, cols, &vec![1.0; cols]);
        let stored = values(&grid, &rounded, cols);
        let found = |left: Left<'_>| loss(&grid, &rounded, &weights, cols, &input, left);
        let check = |found: f64, output: Option<&Mat<f32>>| {
            let exact = exact_loss(&weights, &stored, &input, output);
            assert!((found - exact).abs() <= 1e-4 * exact, "{rows} x {cols}: {found}, {exact}");
        };
        check(found(Left::Equal), None);
        let shares: Vec<f32> = random.normals(rows).iter().map(|x| x * x).collect();
        if rows < LOSS_ROWS {
            let diagonal = Mat::from_fn(rows, rows, |i, j| if i == j { shares[i] } else { 0.0 });
            check(found(Left::Rows(&shares)), Some(&diagonal));
            let output = moment(20, rows, 4).mean();
            check(found(Left::Moment(&output)), Some(&output));
        } else {
            // The sum of the single rows' losses.
            let one = |r: usize| {
                let row = r * cols..(r + 1) * cols;
                let loss = exact_loss(&weights[row.clone()], &stored[row], &input, None);
                f64::from(shares[r]) * loss
            };
            let exact: f64 = (0..rows).map(one).sum();
            let found = found(Left::Rows(&shares));
            assert!((found - exact).abs() <= 1e-4 * exact, "{found}, {exact}");
        }
    }
}

#[test]
fn columns_that_are_never_used_are_rounded_all_the_same() {
    let (rows, cols) = (20, 70);
    let dead = [0usize, 33, 34, 69];
    let mut x = crate::testing::activations(200, cols, 1);
    x.chunks_exact_mut(cols).for_each(|x| dead.iter().for_each(|&j| x[j] = 0.0));
    let input = factor(&moment_of(&x, cols), BLOCK_COLS);
    let weights = Random::new(2).normals(rows * cols);
    for (codec, grid) in packed_grids() {
        let rounded = round_matrix(&grid, &weights, cols, &input, None);
        let stored = values(&grid, &rounded, cols);
        for (row, x) in stored.chunks_exact(cols).zip(weights.chunks_exact(cols)) {
            // Nothing is fed to them, so they stay near their weights, however coarse the grid.
            let near = dead.iter().all(|&j| (row[j] - x[j]).abs() <= 2.0 && row[j].is_finite());
            assert!(near, "{}", codec.id());
        }
    }
}

#[test]
fn rounding_and_losses_do_not_depend_on_threads() {
    let (rows, cols) = (150, 96);
    let weights = Random::new(3).normals(rows * cols);
    let (input, output) = (moment(300, cols, 4), moment(300, rows, 5));
    let (_, grid) = packed_grids().swap_remove(3);
    let results = [1, 2, 3].map(|threads| {
        on_threads(threads, || {
            let (factors, mean) = ((factor(&input, BLOCK_COLS), factor(&output, 1)), output.mean());
            [None, Some(&factors.1)].map(|output| {
                let rounded = round_matrix(&grid, &weights, cols, &factors.0, output);
                let left = if output.is_some() { Left::Moment(&mean) } else { Left::Equal };
                let loss = loss(&grid, &rounded, &weights, cols, &input.mean(), left);
                (bits(&values(&grid, &rounded, cols)), loss.to_bits())
            })
        })
    });
    assert!(results[0] == results[1] && results[0] == results[2]);
}
