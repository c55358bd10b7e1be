//! Invariant 2: opening a packed file maps it; no matrix is copied.

use std::path::Path;
use std::sync::Arc;

use gristmill_convert::HfCheckpoint;
use gristmill_formats::Silent;
use gristmill_formats::container::PackedFile;
use gristmill_formats::source::ModelSource;
use gristmill_quantize::{Metadata, Recipe, quantize};

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
