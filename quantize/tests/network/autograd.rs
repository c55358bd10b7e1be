//! Gradients against torch's autograd on the tiny checkpoints of every architecture.
//!
//! The golden is made by `tests/reference/gradients.py`.

use std::ops::Range;
use std::path::Path;

use gristmill_convert::HfCheckpoint;
use gristmill_formats::source::ModelSource;
use gristmill_quantize::network::{BlockParams, Head, Matrix, backward, embed, forward};
use serde_json::Value;

use crate::models::length;

/// Largest difference, relative to the gradient's root mean square.
const TOLERANCE: f64 = 1e-3;

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// Norm and sampled values of a gradient.
fn compare(what: &str, golden: &Value, stride: usize, gradient: &Matrix) {
    let (norm, size) = (golden["norm"].as_f64().expect("a norm"), gradient.data().len());
    let typical = norm / (size as f64).sqrt();
    let found = length(gradient);
    assert!((found / norm - 1.0).abs() < TOLERANCE, "{what}: norm {found} for {norm}");
    for (k, expected) in golden["values"].as_array().expect("values").iter().enumerate() {
        let at = k * stride % size;
        let (found, expected) = (f64::from(gradient.data()[at]), expected.as_f64().expect("f64"));
        let error = (found - expected).abs() / typical;
        assert!(error < TOLERANCE, "{what}, value {at}: {found} for {expected}");
    }
}

/// Adds up `-log p(next token)` and turns logits into its gradient.
fn next_token_loss(prompt: &[u32], tokens: Range<usize>, logits: &mut Matrix) -> f64 {
    let mut loss = 0.0;
    for (t, token) in tokens.enumerate() {
        let row = logits.row_mut(t);
        let Some(&next) = prompt.get(token + 1) else {
            row.fill(0.0);
            continue;
        };
        let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
        loss += sum.ln() - f64::from(row[next as usize]);
        row.iter_mut().for_each(|l| *l = (f64::from(*l).exp() / sum) as f32);
        row[next as usize] -= 1.0;
    }
    loss
}

#[test]
fn gradients_equal_torchs_on_every_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = json(&root.join("tests/data/gradients.json"));
    let stride = golden["stride"].as_u64().expect("a stride") as usize;
    let models = golden["models"].as_object().expect("models");
    assert_eq!(models.len(), 7);
    for (name, golden) in models {
        let path = root.join("../tests/fixtures/architectures").join(name);
        let source = HfCheckpoint::open(&path).expect("the fixture opens");
        let prompt: Vec<u32> =
            serde_json::from_value(json(&path.join("golden.json"))["prompt"].clone())
                .expect("token ids");

        let mut x = embed(&source, &prompt).expect("the embedding is read");
        let mut stack = Vec::new();
        for (layer, spec) in source.spec().layers.iter().enumerate() {
            for block in 0..spec.blocks.len() {
                let block = BlockParams::load(&source, layer, block).expect("the block loads");
                let before = x.clone();
                forward(&block, &mut x, prompt.len(), &mut |_, _| ());
                stack.push((layer, block, before));
            }
        }
        let mut loss = 0.0;
        let mut gradient = Head::load(&source).expect("the head loads").backward(
            &x,
            &mut |tokens, logits| loss += next_token_loss(&prompt, tokens, logits),
            &mut |_, d_logits| compare(&format!("{name} head"), &golden["head"], stride, d_logits),
        );
        let expected = golden["loss"].as_f64().expect("a loss");
        assert!((loss / expected - 1.0).abs() < 1e-5, "{name}: loss {loss} for {expected}");
        let mut compared = 2;
        while let Some((layer, block, before)) = stack.pop() {
            backward(&block, &before, &mut gradient, prompt.len(), &mut |linear, _, gradient| {
                let tensor = format!("layers.{layer}.{}", linear.part());
                compare(&format!("{name} {tensor}"), &golden[&tensor], stride, gradient);
                compared += 1;
            });
        }
        compare(&format!("{name} embed"), &golden["embed"], stride, &gradient);
        assert_eq!(compared + 1, golden.as_object().expect("gradients").len(), "{name}");
    }
}
