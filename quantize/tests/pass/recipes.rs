//! Which codec each tensor gets.

use gristmill_formats::codec::{Codec, CodecId, NamedGrid};
use gristmill_quantize::{Override, QuantizeError, Recipe, plan};

use crate::source::spec;

fn q4() -> Recipe {
    Recipe::for_bits(4).expect("a width")
}

#[test]
fn widths_have_codecs() {
    for (bits, codec) in [
        (2, CodecId::Q2),
        (3, CodecId::Q3),
        (4, CodecId::Q4),
        (5, CodecId::Q5),
        (6, CodecId::Q6),
        (8, CodecId::Q8),
        (16, CodecId::Bf16),
        (32, CodecId::F32),
    ] {
        assert_eq!(Recipe::for_bits(bits).expect("a width").default, codec);
    }
    let error = Recipe::for_bits(7).expect_err("no codec has 7 bits").to_string();
    for available in ["2 (q2)", "5 (q5)", "8 (q8)", "16 (bf16)", "32 (f32)"] {
        assert!(error.contains(available), "{error}");
    }
}

#[test]
fn the_first_override_that_matches_wins() {
    let recipe = q4().with_override(r"\.q$=q8").and_then(|r| r.with_override(r"attn\.[qk]$=f16"));
    let codecs = recipe.expect("valid overrides").resolve(&spec(true)).expect("codecs");
    let codec =
        |name: &str| codecs.iter().find(|(t, _)| t.name == name).map(|(_, codec)| codec.id());
    assert_eq!(codec("layers.0.attn.q"), Some(CodecId::Q8));
    assert_eq!(codec("layers.0.attn.k"), Some(CodecId::F16));
    assert_eq!(codec("layers.0.attn.v"), Some(CodecId::Q4));
    assert_eq!(codec("layers.0.attn.norm"), Some(CodecId::F32));
    assert_eq!(codec("layers.0.attn.q_bias"), Some(CodecId::F32));
}

#[test]
fn the_grid_is_the_recipes() {
    let recipe = Recipe { grid: NamedGrid::Nf4, ..q4() };
    let codecs = recipe.resolve(&spec(true)).expect("codecs");
    assert_eq!(codecs[0].1, Codec::Table(NamedGrid::Nf4.grid()));
    assert_eq!(recipe.to_string(), "rtn q4 grid=nf4 vectors=f32");
}

#[test]
fn a_block_codec_passes_the_vectors_by_that_its_pattern_matches() {
    let recipe = q4().with_override("attn=q8").expect("a valid pattern");
    for (tensor, codec) in recipe.resolve(&spec(true)).expect("codecs") {
        let expected = match tensor.name.as_str() {
            name if name.contains("norm") || name.contains("bias") => CodecId::F32,
            name if name.contains("attn") => CodecId::Q8,
            _ => CodecId::Q4,
        };
        assert_eq!(codec.id(), expected, "{}", tensor.name);
    }
}

#[test]
fn overrides_that_cannot_be_meant_are_errors() {
    let unmatched = q4().with_override("atn=q8").expect("a valid pattern");
    let error = plan(&spec(true), &unmatched).expect_err("no tensor is called atn");
    assert!(matches!(error, QuantizeError::UnmatchedOverride { .. }));
    assert!(error.to_string().contains("`layers.1.attn.q`"), "{error}");

    let vector = q4().with_override("attn.norm=q8").expect("a valid pattern");
    let error = plan(&spec(true), &vector).expect_err("a norm cannot be q8");
    assert!(matches!(&error, QuantizeError::VectorCodec { tensor, codec: CodecId::Q8, .. }
        if tensor == "layers.0.attn.norm"));

    let vectors = Recipe { vectors: CodecId::Q4, ..q4() };
    assert!(matches!(plan(&spec(true), &vectors), Err(QuantizeError::VectorCodec { .. })));

    for text in ["attn", "=q8", "attn=", "attn=q9", "(=q8"] {
        let parsed = text.parse::<Override>();
        assert!(matches!(parsed, Err(QuantizeError::InvalidOverride { .. })), "{text}");
    }
    // An `=` can be part of the pattern.
    assert_eq!("a=b=q8".parse::<Override>().expect("valid").pattern.as_str(), "a=b");
}
