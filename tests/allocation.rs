//! Invariant 3: after the engine is built, decoding a token allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gristmill_convert::HfCheckpoint;
use gristmill_formats::Silent;
use gristmill_formats::container::PackedFile;
use gristmill_quantize::{Metadata, Recipe, quantize};
use gristmill_runtime::text::{Sampler, SamplerConfig};
use gristmill_runtime::{Engine, EngineConfig, Head, KvType, Model};

/// Counts allocations of all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations while sampling and decoding 100 tokens after a prompt.
fn allocations_of_decoding(model: Model, threads: usize, kv: KvType) -> usize {
    let config = EngineConfig { threads: Some(threads), kv, ..EngineConfig::default() };
    let mut engine = Engine::new(Arc::new(model), &config).expect("the engine builds");
    let sampler =
        SamplerConfig { temperature: 0.8, top_k: 40, top_p: 0.9, ..SamplerConfig::default() };
    let mut sampler = Sampler::new(sampler, 1024).expect("the sampler builds");
    let first = engine.prefill_top(&[5, 6, 7, 8, 9], sampler.reach()).expect("the prompt runs");
    let mut next = sampler.sample(first);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..100 {
        sampler.accept(next);
        next = sampler.sample(engine.decode_top(next, sampler.reach()).expect("a token runs"));
    }
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

// One test, so that no other thread allocates meanwhile.
#[test]
fn decoding_allocates_nothing_whatever_the_codec_threads_and_cache() {
    let counted = {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        drop(std::hint::black_box(vec![0u8; 100]));
        ALLOCATIONS.load(Ordering::SeqCst) - before
    };
    assert_eq!(counted, 1, "the allocator counts");

    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/tiny-shakespeare");
    let source = Arc::new(HfCheckpoint::open(&checkpoint).expect("the checkpoint opens"));
    let directory = tempfile::tempdir().expect("a directory");
    for threads in [1, 2, 3] {
        for kv in KvType::ALL {
            let model = Model::load(Arc::clone(&source) as _).expect("the checkpoint loads");
            assert_eq!(allocations_of_decoding(model, threads, kv), 0, "{threads} threads, {kv:?}");
        }
        for bits in [2, 3, 4, 5, 6, 8, 16] {
            let path = directory.path().join(format!("{bits}.grist"));
            let recipe = Recipe::for_bits(bits).expect("a recipe");
            quantize(&*source, &recipe, &path, &Metadata::default(), &Silent).expect("it packs");
            let file = Arc::new(PackedFile::open(&path).expect("the file opens"));
            let model = Model::load(file).expect("the file loads");
            let count = allocations_of_decoding(model, threads, KvType::F16);
            assert_eq!(count, 0, "{bits} bits, {threads} threads");
        }
        for bits in [8, 16] {
            let path = directory.path().join(format!("{bits}.grist"));
            let file = Arc::new(PackedFile::open(&path).expect("the file opens"));
            let mut model = Model::load(file).expect("the file loads");
            model.set_head(Head::TwoStage, threads).expect("a head of 8 bits or more");
            let count = allocations_of_decoding(model, threads, KvType::F16);
            assert_eq!(count, 0, "{bits} bits in two stages, {threads} threads");
        }
    }
}
