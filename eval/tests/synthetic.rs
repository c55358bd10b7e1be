//! Models of random weights: they run.

use std::sync::Arc;

use gristmill_eval::{Shape, write_synthetic};
use gristmill_formats::codec::{Codec, CodecId};
use gristmill_formats::container::PackedFile;
use gristmill_runtime::{Engine, EngineConfig, Model};

#[test]
fn a_small_model_of_every_codec_decodes_to_varied_finite_logits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.grist");
    for id in CodecId::ALL {
        write_synthetic(&path, Shape::Tiny, &Codec::from(id)).unwrap();
        let model = Model::load(Arc::new(PackedFile::open(&path).unwrap())).unwrap();
        assert_eq!(model.codecs(), [id]);
        let config = EngineConfig { threads: Some(1), ..EngineConfig::default() };
        let mut engine = Engine::new(Arc::new(model), &config).unwrap();
        let mut logits = engine.prefill(&[1, 2, 3]).unwrap().to_vec();
        for token in 4..8 {
            assert!(logits.iter().all(|x| x.is_finite()), "{id}");
            let mean = logits.iter().sum::<f32>() / logits.len() as f32;
            let variance =
                logits.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / logits.len() as f32;
            // Norms make inputs of unit mean square, and weights keep that.
            assert!((0.3..3.0).contains(&variance), "{id}: {variance}");
            logits = engine.decode(token).unwrap().to_vec();
        }
    }
}

#[test]
fn the_large_shape_is_that_of_llama_3_2_1b() {
    let spec = Shape::Llama1b.spec();
    spec.validate().unwrap();
    assert_eq!(spec.parameter_count(), 1_235_814_400);
}

#[test]
fn shapes_are_found_by_their_names() {
    for shape in Shape::ALL {
        assert_eq!(shape.name().parse(), Ok(shape));
    }
    assert!("llama-7b".parse::<Shape>().is_err_and(|error| error.contains("llama-1b, tiny")));
}
