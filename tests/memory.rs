//! Invariant 2: opening a packed file maps it; no matrix is copied. And what an engine holds beside the
//! weights is known before it is built.

use std::path::Path;
use std::sync::Arc;

use gristmill_convert::HfCheckpoint;
use gristmill_formats::Silent;
use gristmill_formats::container::PackedFile;
use gristmill_formats::source::ModelSource;
use gristmill_quantize::{Metadata, Recipe, quantize};
use gristmill_runtime::{Engine, EngineConfig, KvType, Model};

#[test]
fn tensors_of_a_packed_file_lie_in_the_map_and_are_aligned() {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/tiny-shakespeare");
    let source = HfCheckpoint::open(&checkpoint).expect("the checkpoint opens");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("q4.grist");
    let recipe = Recipe::for_bits(4).expect("a recipe");
    quantize(&source, &recipe, &path, &Metadata::default(), &Silent).expect("it packs");
    let file = Arc::new(PackedFile::open(&path).expect("the file opens"));
    let map = file.bytes().as_ptr_range();
    for tensor in file.spec().tensors() {
        let data = file.tensor(&tensor.name).expect("the tensor is there");
        let bytes = data.bytes.as_ptr_range();
        assert!(map.start <= bytes.start && bytes.end <= map.end, "{} is in the map", tensor.name);
        assert_eq!(bytes.start.addr() % 64, 0, "{} is aligned", tensor.name);
    }
}

#[test]
fn an_engine_holds_what_was_planned() {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/tiny-shakespeare");
    let source = HfCheckpoint::open(&checkpoint).expect("the checkpoint opens");
    let model = Arc::new(Model::load(Arc::new(source)).expect("the model loads"));
    for kv in KvType::ALL {
        for (threads, context, chunk) in [(1, 1, 1), (2, 100, 512), (3, 300, 7), (1, 512, 1)] {
            let (threads, context) = (Some(threads), Some(context));
            let config = EngineConfig { threads, context, chunk, kv, isa: None };
            let planned = config.memory(model.spec()).expect("it can be planned");
            let engine = Engine::new(model.clone(), &config).expect("the engine builds");
            assert_eq!(engine.memory(), planned, "{config:?}");
        }
    }
}

#[test]
fn the_longest_context_that_fits_is_found() {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/tiny-shakespeare");
    let source = HfCheckpoint::open(&checkpoint).expect("the checkpoint opens");
    let spec = source.spec();
    let config = EngineConfig { context: Some(200), ..EngineConfig::default() };
    let bytes = config.memory(spec).expect("it can be planned").total();
    let longest = config.longest_context(spec, bytes).expect("a context fits");
    // The cache grows by blocks of 16 positions.
    assert!((200..216).contains(&longest), "{longest}");
    assert_eq!(config.longest_context(spec, 1), None);
    assert_eq!(config.longest_context(spec, u64::MAX), Some(spec.max_context as usize));
}
