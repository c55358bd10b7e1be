//! Adam (Kingma and Ba 2015).

/// Decay of the gradient's running mean.
const BETA1: f32 = 0.9;
/// Decay of the running mean of its square: fast, as there are few steps.
const BETA2: f32 = 0.98;
/// Keeps a parameter whose gradient is always zero where it is.
const EPSILON: f32 = 1e-12;

/// Parameters, their gradient and its running means.
#[derive(Debug, Clone)]
pub(super) struct Parameters {
    /// What is tuned: all of it starts at zero.
    pub(super) values: Vec<f32>,
    /// Gradient, summed until the next step.
    pub(super) gradient: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
    /// What a value moves by in a step, about.
    stride: f32,
}

impl Parameters {
    /// `len` zeros that move by about `stride` at a time.
    pub(super) fn new(len: usize, stride: f32) -> Self {
        let zeros = || vec![0.0; len];
        Self { values: zeros(), gradient: zeros(), mean: zeros(), square: zeros(), stride }
    }

    /// Moves against the gradient and clears it. `step` counts from 1; `rate` is the share of a stride.
    pub(super) fn descend(&mut self, step: usize, rate: f32) {
        let correction = |beta: f32| 1.0 - beta.powi(i32::try_from(step).unwrap_or(i32::MAX));
        let (first, second) = (correction(BETA1), correction(BETA2));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((value, gradient), (mean, square)) in
            self.values.iter_mut().zip(&mut self.gradient).zip(moments)
        {
            *mean += (1.0 - BETA1) * (*gradient - *mean);
            *square += (1.0 - BETA2) * (*gradient * *gradient - *square);
            *value -= self.stride * rate * (*mean / first) / ((*square / second).sqrt() + EPSILON);
            *gradient = 0.0;
        }
    }
}
