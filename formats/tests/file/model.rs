//! The description of a model: its bounds, its tensors and its frequencies.

use std::collections::HashSet;
use std::f64::consts::TAU;

use gristmill_formats::FormatError;
use gristmill_formats::limits::{MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use gristmill_formats::model::{
    AttentionSpec, Mixer, ModelSpec, NormSpec, RopeScaling, RopeSpec, TensorRole, layer_tensor,
};

use crate::sample;

fn attention(model: &mut ModelSpec) -> &mut AttentionSpec {
    match &mut model.layers[0].blocks[0].mixer {
        Mixer::Attention(attention) => attention,
        Mixer::Mlp(_) => unreachable!("the sample begins with attention"),
    }
}

fn rope(model: &mut ModelSpec) -> &mut RopeSpec {
    attention(model).rope.as_mut().expect("the sample has one")
}

fn d_ff(model: &mut ModelSpec) -> &mut u32 {
    match &mut model.layers[0].blocks[1].mixer {
        Mixer::Mlp(mlp) => &mut mlp.d_ff,
        Mixer::Attention(_) => unreachable!("the sample's second block is an mlp"),
    }
}

fn llama3(factor: f64, low: f64, high: f64, original: u32) -> RopeScaling {
    RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_context: original,
    }
}

/// Makes a description wrong.
type Change = fn(&mut ModelSpec);

#[test]
fn every_bound_is_enforced() {
    let cases: Vec<(&str, Change)> = vec![
        ("vocab_size", |m| m.vocab_size = 0),
        ("vocab_size", |m| m.vocab_size = MAX_VOCAB + 1),
        ("d_model", |m| m.d_model = 0),
        ("d_model", |m| m.d_model = MAX_WIDTH + 1),
        ("max_context", |m| m.max_context = 0),
        ("max_context", |m| m.max_context = MAX_CONTEXT + 1),
        ("architecture", |m| m.architecture = "x".repeat(257)),
        ("embedding_scale", |m| m.embedding_scale = f32::NAN),
        ("embedding_scale", |m| m.embedding_scale = f32::INFINITY),
        ("logit_softcap", |m| m.logit_softcap = Some(0.0)),
        ("logit_softcap", |m| m.logit_softcap = Some(-1.0)),
        ("logit_softcap", |m| m.logit_softcap = Some(f32::NAN)),
        ("logit_softcap", |m| m.logit_softcap = Some(f32::INFINITY)),
        ("final_norm", |m| m.final_norm.eps = -1e-9),
        ("final_norm", |m| m.final_norm.eps = f32::NAN),
        ("layers", |m| m.layers = vec![m.layers[1].clone(); MAX_LAYERS + 1]),
        ("blocks", |m| m.layers[1].blocks.clear()),
        ("blocks", |m| m.layers[1].blocks = vec![m.layers[1].blocks[0].clone(); 9]),
        ("kind", |m| m.layers[1].blocks = vec![m.layers[1].blocks[0].clone(); 2]),
        ("pre_norm", |m| m.layers[0].blocks[0].pre_norm.eps = f32::INFINITY),
        ("post_norm", |m| {
            m.layers[0].blocks[0].post_norm = Some(NormSpec { eps: -1.0, plus_one: true });
        }),
        ("heads", |m| attention(m).heads = 0),
        ("heads", |m| attention(m).heads = 4097),
        ("kv_heads", |m| attention(m).kv_heads = 0),
        ("kv_heads", |m| attention(m).kv_heads = 4097),
        ("kv_heads", |m| attention(m).kv_heads = 3),
        ("kv_heads", |m| attention(m).kv_heads = 8),
        ("head_dim", |m| attention(m).head_dim = 0),
        ("head_dim", |m| attention(m).head_dim = MAX_WIDTH + 1),
        ("head_dim", |m| attention(m).head_dim = 11),
        ("wider", |m| {
            attention(m).heads = 4096;
            attention(m).head_dim = 512;
        }),
        ("wider", |m| {
            attention(m).heads = 4096;
            attention(m).head_dim = MAX_WIDTH;
        }),
        ("scale", |m| attention(m).scale = f32::NAN),
        ("softcap", |m| attention(m).softcap = Some(f32::NEG_INFINITY)),
        ("window", |m| attention(m).window = Some(0)),
        ("qk_norm", |m| attention(m).qk_norm = Some(NormSpec { eps: f32::NAN, plus_one: false })),
        ("base", |m| rope(m).base = 0.0),
        ("base", |m| rope(m).base = f64::NAN),
        ("base", |m| rope(m).base = f64::INFINITY),
        ("scaling", |m| rope(m).scaling = RopeScaling::Linear { factor: 0.0 }),
        ("scaling", |m| rope(m).scaling = RopeScaling::Linear { factor: f64::NAN }),
        ("scaling", |m| rope(m).scaling = llama3(0.0, 1.0, 4.0, 8192)),
        ("scaling", |m| rope(m).scaling = llama3(8.0, 0.0, 4.0, 8192)),
        ("scaling", |m| rope(m).scaling = llama3(8.0, 4.0, 4.0, 8192)),
        ("scaling", |m| rope(m).scaling = llama3(8.0, 5.0, 4.0, 8192)),
        ("scaling", |m| rope(m).scaling = llama3(8.0, 1.0, f64::INFINITY, 8192)),
        ("scaling", |m| rope(m).scaling = llama3(8.0, 1.0, 4.0, 0)),
        ("d_ff", |m| *d_ff(m) = 0),
        ("d_ff", |m| *d_ff(m) = MAX_WIDTH + 1),
    ];
    sample::model().validate().unwrap();
    for (field, change) in cases {
        let mut model = sample::model();
        change(&mut model);
        let error = model.validate().unwrap_err();
        assert!(matches!(&error, FormatError::InvalidHeader(_)));
        assert!(error.to_string().contains(field), "`{field}` is not named: {error}");
    }
}

#[test]
fn the_bounds_themselves_are_allowed_and_nothing_overflows() {
    let mut model = sample::model();
    model.vocab_size = MAX_VOCAB;
    model.d_model = MAX_WIDTH;
    model.max_context = MAX_CONTEXT;
    let wide = attention(&mut model);
    (wide.heads, wide.kv_heads, wide.head_dim) = (4096, 4096, 256);
    *d_ff(&mut model) = MAX_WIDTH;
    model.layers = vec![model.layers[0].clone(); MAX_LAYERS];
    model.validate().unwrap();
    let tensors = model.tensors();
    let product = |shape: &[u64]| shape.iter().map(|&n| u128::from(n)).product::<u128>();
    let count: u128 = tensors.iter().map(|t| product(&t.shape)).sum();
    assert_eq!(u128::from(model.parameter_count()), count);
    let mut narrow = sample::model();
    attention(&mut narrow).head_dim = MAX_WIDTH / 4;
    narrow.validate().unwrap();
}

#[test]
fn tensors_have_unique_names_and_follow_execution_order() {
    let model = sample::model();
    let tensors = model.tensors();
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    assert_eq!(
        names,
        [
            "embed",
            "layers.0.attn.norm",
            "layers.0.attn.post_norm",
            "layers.0.attn.q_norm",
            "layers.0.attn.k_norm",
            "layers.0.attn.q_bias",
            "layers.0.attn.k_bias",
            "layers.0.attn.v_bias",
            "layers.0.attn.o_bias",
            "layers.0.attn.q",
            "layers.0.attn.k",
            "layers.0.attn.v",
            "layers.0.attn.o",
            "layers.0.mlp.norm",
            "layers.0.mlp.gate_bias",
            "layers.0.mlp.up_bias",
            "layers.0.mlp.down_bias",
            "layers.0.mlp.gate",
            "layers.0.mlp.up",
            "layers.0.mlp.down",
            "layers.1.attn.norm",
            "layers.1.attn.q",
            "layers.1.attn.k",
            "layers.1.attn.v",
            "layers.1.attn.o",
            "layers.1.mlp.norm",
            "layers.1.mlp.gate",
            "layers.1.mlp.up",
            "layers.1.mlp.down",
            "final_norm",
            "head",
        ]
    );
    let shape = |name: &str| tensors.iter().find(|t| t.name == name).unwrap().shape.clone();
    assert_eq!(shape("embed"), [37, 40]);
    assert_eq!(shape(&layer_tensor(0, "attn.q")), [40, 40]);
    assert_eq!(shape(&layer_tensor(0, "attn.k")), [20, 40]);
    assert_eq!(shape(&layer_tensor(0, "attn.k_bias")), [20]);
    assert_eq!(shape(&layer_tensor(0, "attn.q_norm")), [10]);
    assert_eq!(shape(&layer_tensor(1, "mlp.down")), [40, 70]);
    for tensor in &tensors {
        assert_eq!(tensor.role == TensorRole::Vector, tensor.shape.len() == 1, "{}", tensor.name);
    }

    let mut tied = model;
    assert_eq!(tied.head_tensor(), "head");
    tied.tied_head = true;
    assert_eq!(tied.head_tensor(), "embed");
    assert!(tied.tensors().iter().all(|t| t.name != "head"));
}

#[test]
fn a_description_survives_its_json() {
    let mut model = sample::model();
    rope(&mut model).base = 1e6 / 3.0;
    rope(&mut model).scaling = llama3(32.1, 1.0 / 3.0, 4.7, 8192);
    attention(&mut model).scale = 1.0 / 80f32.sqrt();
    let json = serde_json::to_vec(&model).unwrap();
    assert_eq!(serde_json::from_slice::<ModelSpec>(&json).unwrap(), model);
}

fn frequencies(base: f64, scaling: RopeScaling, head_dim: u32) -> Vec<f64> {
    RopeSpec { base, scaling }.frequencies(head_dim)
}

#[track_caller]
fn assert_near(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got / want - 1.0).abs() < 1e-12, "frequency {i}: {got:e}, expected {want:e}");
    }
}

#[test]
fn unscaled_frequencies_are_geometric() {
    for (base, head_dim) in [(10_000.0, 64), (500_000.0, 128), (1e6, 80), (10_000.0, 2)] {
        let got = frequencies(base, RopeScaling::None, head_dim);
        let ratio = f64::exp(-f64::ln(base) * 2.0 / f64::from(head_dim));
        let mut want = vec![1.0];
        want.resize_with(head_dim as usize / 2, || 0.0);
        for i in 1..want.len() {
            want[i] = want[i - 1] * ratio;
        }
        assert_near(&got, &want);
    }
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let plain = frequencies(10_000.0, RopeScaling::None, 64);
    let scaled = frequencies(10_000.0, RopeScaling::Linear { factor: 8.0 }, 64);
    assert_near(&scaled, &plain.iter().map(|f| f / 8.0).collect::<Vec<_>>());
}

/// The rule in terms of wavelengths: short ones are kept, long ones stretched, and between the two
/// bounds the inverse of the stretch is interpolated.
fn by_wavelength(plain: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = TAU / plain;
    let (longest, shortest) = (original / low, original / high);
    if wavelength <= shortest {
        return plain;
    }
    if wavelength >= longest {
        return plain / factor;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * (plain / factor) + smooth * plain
}

#[test]
fn llama3_scaling_follows_the_wavelengths() {
    for (base, head_dim, factor, low, high, original) in [
        (500_000.0, 128, 8.0, 1.0, 4.0, 8192),
        (500_000.0, 64, 32.0, 1.0, 4.0, 8192),
        (10_000.0, 80, 2.0, 0.5, 10.0, 4096),
        (1e6, 64, 1.0, 1.0, 2.0, 2048),
    ] {
        let plain = frequencies(base, RopeScaling::None, head_dim);
        let got = frequencies(base, llama3(factor, low, high, original), head_dim);
        let want: Vec<f64> = plain
            .iter()
            .map(|&f| by_wavelength(f, factor, low, high, f64::from(original)))
            .collect();
        assert_near(&got, &want);
        assert!(got.windows(2).all(|pair| pair[0] > pair[1]), "frequencies decrease");
        assert_eq!(got[0], plain[0]);
        let last = got.len() - 1;
        assert_near(&got[last..], &[plain[last] / factor]);
        if factor > 1.0 {
            let between =
                got.iter().zip(&plain).filter(|(g, p)| *g < *p && **g * factor > **p * 1.000_001);
            assert!(between.count() > 0, "some frequencies are on the ramp");
        }
    }
}
