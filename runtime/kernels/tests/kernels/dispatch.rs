//! Which kernel runs: never a silent fall-back.

use gristmill_formats::codec::CodecId;
use gristmill_kernels::{Isa, Kernels};

#[test]
fn detection_picks_the_most_capable_class_that_the_cpu_has() {
    let available: Vec<_> = Isa::available().collect();
    assert_eq!(available.first(), Some(&Isa::Scalar), "portable code runs everywhere");
    assert!(available.is_sorted());
    assert_eq!(Some(&Isa::detect()), available.last());
}

#[test]
fn kernels_exist_exactly_for_the_available_classes_and_say_which_they_are() {
    for isa in Isa::ALL {
        match Kernels::for_isa(isa) {
            Some(kernels) => {
                assert!(isa.is_available());
                assert_eq!(kernels.isa(), isa);
                assert_eq!(format!("{kernels:?}"), format!("Kernels({})", isa.name()));
            }
            None => assert!(!isa.is_available(), "{} has no kernels", isa.name()),
        }
    }
}

#[test]
fn products_are_named_after_class_shape_and_codec() {
    for isa in Isa::available() {
        let kernels = Kernels::for_isa(isa).expect("an available class");
        for codec in CodecId::ALL {
            let name = |tokens| kernels.matmul_name(codec, tokens);
            for tokens in [1, 2, 4, 5, 8] {
                assert_eq!(name(tokens), format!("{}-gemv-{codec}", isa.name()));
            }
            for tokens in [9, 512] {
                assert_eq!(name(tokens), format!("{}-gemm-{codec}", isa.name()));
            }
        }
    }
}

#[test]
fn multiplication_loops_count_whole_vectors_of_products_per_pass() {
    for isa in Isa::available() {
        let kernels = Kernels::for_isa(isa).expect("an available class");
        for (done, lanes) in [(kernels.peak_int8(1), 64), (kernels.peak_f32(1), 16)] {
            assert!(done > 0 && done.is_multiple_of(lanes), "{done} on {}", isa.name());
        }
        assert_eq!(kernels.peak_int8(5), 5 * kernels.peak_int8(1));
        assert_eq!(kernels.peak_f32(5), 5 * kernels.peak_f32(1));
        assert_eq!((kernels.peak_int8(0), kernels.peak_f32(0)), (0, 0));
    }
}

#[test]
fn classes_are_found_by_their_names_and_unknown_names_list_them() {
    for isa in Isa::ALL {
        assert_eq!(isa.name().parse(), Ok(isa));
    }
    let error = "avx9".parse::<Isa>().expect_err("no such class").to_string();
    assert!(Isa::ALL.iter().all(|isa| error.contains(isa.name())), "{error}");
}
