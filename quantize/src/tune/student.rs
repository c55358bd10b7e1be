//! The rounded model as it learns from the one it was rounded from.

use std::collections::HashMap;

use gristmill_formats::model::{ModelSpec, layer_tensor};
use gristmill_formats::source::ModelSource;

use super::adam::Parameters;
use super::matrix::TunedMatrix;
use super::{FINAL_NORM, norms, pre_norm_name, stride};
use crate::Result;
use crate::calibrate::load_blocks;
use crate::network::{BlockParams, Head, Input, Matrix, Norm, backward, embed_by, forward, tensor};
use crate::plan::TensorPlan;

/// The whole model in single precision, and what can move in it.
pub(super) struct Student {
    layers: Vec<Vec<BlockParams>>,
    head: Head,
    /// Embedding that is not the head too; it stays as it is.
    embed: Option<Matrix>,
    spec: ModelSpec,
    sequence: usize,
    /// By canonical name.
    matrices: HashMap<String, TunedMatrix>,
    /// By the name of their gain; those that linear layers read.
    norms: HashMap<String, TunedNorm>,
}

/// A norm's gain as it was, and the relative changes of its elements.
struct TunedNorm {
    gain: Vec<f32>,
    parameters: Parameters,
}

impl TunedNorm {
    fn new(norm: &Norm, reader: Option<&TunedMatrix>) -> Self {
        // What is read densely has lost nothing that a gain could make up for.
        let stride = reader.map_or(0.0, |matrix| stride(matrix.bits()));
        Self { gain: norm.gain.clone(), parameters: Parameters::new(norm.gain.len(), stride) }
    }

    /// Multiplies the elements' changes into the gain.
    fn apply(&self, norm: &mut Norm) {
        let moved = self.gain.iter().zip(&self.parameters.values);
        norm.gain.iter_mut().zip(moved).for_each(|(g, (was, by))| *g = was * (1.0 + by));
    }

    /// Adds the gradient that a matrix which reads the norm's output passes on: an element of the gain
    /// is a factor on a column.
    fn add_gradient(&mut self, weights: &Matrix, d_weights: &Matrix) {
        let mut sums = vec![0.0f64; self.gain.len()];
        for r in 0..weights.rows() {
            let pairs = weights.row(r).iter().zip(d_weights.row(r));
            sums.iter_mut().zip(pairs).for_each(|(sum, (w, d))| *sum += f64::from(w * d));
        }
        let gradient = self.parameters.gradient.iter_mut();
        gradient.zip(sums).for_each(|(g, sum)| *g += sum as f32);
    }
}

impl Student {
    /// The model of `source` with the matrices of `plan` that `packed` has panels of.
    pub(super) fn new(
        source: &dyn ModelSource,
        plan: &[TensorPlan],
        sequence: usize,
        packed: impl Fn(&str) -> Result<Option<Vec<u8>>>,
    ) -> Result<Self> {
        let spec = source.spec().clone();
        let mut matrices = HashMap::new();
        for tensor in plan.iter().filter(|t| t.shape.len() == 2) {
            if let Some(bytes) = packed(&tensor.name)? {
                let [rows, cols] = [0, 1].map(|i| tensor.shape[i] as usize);
                let matrix = TunedMatrix::new(&tensor.encoding, &bytes, rows, cols);
                matrices.insert(tensor.name.clone(), matrix);
            }
        }
        let layers: Vec<Vec<BlockParams>> = (0..spec.layers.len())
            .map(|layer| load_blocks(source, layer))
            .collect::<Result<_>>()?;
        let head = Head::load(source)?;
        let mut embed = None;
        if !spec.tied_head {
            let embed = embed.insert(tensor(source, "embed")?);
            if let Some(matrix) = matrices.remove("embed") {
                matrix.decode(embed);
            }
        }
        let blocks = layers.iter().enumerate().flat_map(|(layer, blocks)| {
            let name = move |block: &BlockParams| layer_tensor(layer, block.linears()[0].part());
            let reader = |block: &BlockParams| matrices.get(&name(block));
            let norms = blocks.iter().map(|block| TunedNorm::new(&block.pre_norm, reader(block)));
            norms.collect::<Vec<_>>()
        });
        let all = blocks.chain([TunedNorm::new(&head.norm, matrices.get(spec.head_tensor()))]);
        let norms = norms(&spec).into_iter().map(|(name, _)| name).zip(all).collect();
        let mut student = Self { layers, head, embed, spec, sequence, matrices, norms };
        student.apply();
        Ok(student)
    }

    /// Puts matrices and norms as moved into the network.
    fn apply(&mut self) {
        for (layer, blocks) in self.layers.iter_mut().enumerate() {
            for (block, spec) in blocks.iter_mut().zip(&self.spec.layers[layer].blocks) {
                self.norms[&pre_norm_name(layer, spec)].apply(&mut block.pre_norm);
                for &linear in block.linears() {
                    if let Some(matrix) = self.matrices.get(&layer_tensor(layer, linear.part())) {
                        let projection = block.projection_mut(linear).expect("of this block");
                        matrix.decode(&mut projection.weight);
                    }
                }
            }
        }
        self.norms[FINAL_NORM].apply(&mut self.head.norm);
        if let Some(matrix) = self.matrices.get(self.spec.head_tensor()) {
            matrix.decode(&mut self.head.weight);
        }
    }

    fn embed(&self, tokens: &[u32]) -> Matrix {
        let table = self.embed.as_ref().unwrap_or(&self.head.weight);
        embed_by(&self.spec, tokens, |token, row| row.copy_from_slice(table.row(token)))
    }

    /// Divergence from the teacher over some tokens.
    pub(super) fn divergence(&self, tokens: &[u32], teacher: &Head, hidden: &Matrix) -> f64 {
        let mut x = self.embed(tokens);
        for block in self.layers.iter().flatten() {
            forward(block, &mut x, self.sequence, &mut |_, _| ());
        }
        self.head.divergence(&x, teacher, hidden)
    }

    /// The same, and adds its gradient to the parameters'.
    pub(super) fn learn(&mut self, tokens: &[u32], teacher: &Head, hidden: &Matrix) -> f64 {
        let mut x = self.embed(tokens);
        let mut inputs = Vec::new();
        for block in self.layers.iter().flatten() {
            inputs.push(x.clone());
            forward(block, &mut x, self.sequence, &mut |_, _| ());
        }
        let mut d_head = Matrix::zeros(self.head.weight.rows(), self.head.weight.cols());
        let (divergence, mut d) =
            self.head.divergence_backward(&x, teacher, hidden, &mut |input, d_logits| {
                d_head.add_transposed_product(d_logits, input);
            });
        let norm = self.norms.get_mut(FINAL_NORM).expect("every model has one");
        norm.add_gradient(&self.head.weight, &d_head);
        for (layer, blocks) in self.layers.iter().enumerate().rev() {
            for (block, spec) in blocks.iter().zip(&self.spec.layers[layer].blocks).rev() {
                let x = inputs.pop().expect("one for each block");
                let norm = self.norms.get_mut(&pre_norm_name(layer, spec)).expect("of a block");
                let matrices = &mut self.matrices;
                backward(block, &x, &mut d, self.sequence, &mut |linear, input, d_output| {
                    let weights = &block.projection(linear).expect("of this block").weight;
                    let d_weights = Matrix::transposed_product(d_output, input);
                    if matches!(linear.input(), Input::Qkv | Input::GateUp) {
                        norm.add_gradient(weights, &d_weights);
                    }
                    if let Some(matrix) = matrices.get_mut(&layer_tensor(layer, linear.part())) {
                        matrix.add_gradient(weights, &d_weights);
                    }
                });
            }
        }
        if self.embed.is_none() {
            // The head is the embedding too: what it gives to the first block counts.
            for (t, &token) in tokens.iter().enumerate() {
                let row = d_head.row_mut(token as usize).iter_mut();
                row.zip(d.row(t)).for_each(|(g, d)| *g += d * self.spec.embedding_scale);
            }
        }
        if let Some(matrix) = self.matrices.get_mut(self.spec.head_tensor()) {
            matrix.add_gradient(&self.head.weight, &d_head);
        }
        divergence
    }

    /// One step of all parameters against their gradient.
    pub(super) fn descend(&mut self, step: usize, rate: f32) {
        let matrices = self.matrices.values_mut().map(|m| &mut m.parameters);
        let norms = self.norms.values_mut().map(|n| &mut n.parameters);
        matrices.chain(norms).for_each(|parameters| parameters.descend(step, rate));
        self.apply();
    }

    /// All parameters, by the name of the tensor that they move.
    pub(super) fn snapshot(&self) -> HashMap<String, Vec<f32>> {
        let matrices = self.matrices.iter().map(|(name, m)| (name, &m.parameters));
        let norms = self.norms.iter().map(|(name, n)| (name, &n.parameters));
        matrices.chain(norms).map(|(name, p)| (name.clone(), p.values.clone())).collect()
    }
}
