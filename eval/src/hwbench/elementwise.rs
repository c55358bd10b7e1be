//! Elementwise kernels on vectors in the first two cache levels.

use gristmill_kernels::{ActBuffer, Kernels};
use gristmill_runtime::Pool;

use super::case::{Case, Family, Operation, Origin, Subject};
use super::workload::{Sizes, Workload, everywhere};
use crate::stats::SplitMix64;

/// Values of a vector: the inner width of a model of a billion parameters.
const LEN: usize = 8192;
/// Times that a vector is gone over. Gates are computed in place and at least halve each time, which
/// must not make them subnormal.
const PASSES: usize = 32;

/// Vectors of each thread.
pub(super) struct Elementwise {
    workers: Vec<Worker>,
}

struct Worker {
    x: Vec<f32>,
    ones: Vec<f32>,
    out: Vec<f32>,
    act: ActBuffer,
    sum: f64,
}

impl Elementwise {
    pub(super) fn new(sizes: &Sizes) -> Self {
        let mut random = SplitMix64::new(3);
        let x: Vec<f32> = (0..LEN).map(|_| random.symmetric()).collect();
        let worker = |_| {
            let mut act = ActBuffer::new(1, LEN);
            act.set_cols(LEN);
            let (ones, out) = (vec![1.0; LEN], vec![0.0; LEN]);
            Worker { x: x.clone(), ones, out, act, sum: 0.0 }
        };
        Self { workers: (0..sizes.most_threads).map(worker).collect() }
    }
}

impl Workload for Elementwise {
    fn cases(&self) -> Vec<Case> {
        let case = |operation| Case {
            family: Family::Elementwise,
            subject: Subject::Operation(operation),
            tokens: 1,
            depth: None,
            from: Origin::Cache,
        };
        Operation::ALL.map(case).to_vec()
    }

    fn memory(&self) -> &[u8] {
        &[]
    }

    fn run(&mut self, case: &Case, kernels: &'static Kernels, pool: &mut Pool) -> u64 {
        let Subject::Operation(operation) = case.subject else {
            unreachable!("{case:?} is not elementwise")
        };
        everywhere(pool, &mut self.workers, |w| {
            w.out.copy_from_slice(&w.x);
            for _ in 0..PASSES {
                match operation {
                    Operation::Quantize => kernels.quantize(&w.x, &mut w.act, 0, false),
                    Operation::QuantizeFine => kernels.quantize(&w.x, &mut w.act, 0, true),
                    Operation::RmsNorm => kernels.rms_norm(&w.x, &w.ones, 1e-5, LEN, &mut w.out),
                    Operation::SiluMul => kernels.silu_mul(&mut w.out, &w.ones),
                    Operation::GeluTanhMul => kernels.gelu_tanh_mul(&mut w.out, &w.ones),
                    Operation::LogSumExp => w.sum += kernels.log_sum_exp(&w.x),
                }
            }
        });
        operation.inputs() * (4 * LEN * PASSES * pool.threads()) as u64
    }
}
