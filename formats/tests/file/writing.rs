//! Writing and reading back; the file appears whole or not at all.

use std::fs;

use gristmill_formats::codec::Codec;
use gristmill_formats::container::{
    PackedFile, PackedWriter, QualityReport, rewrite_header, verify,
};
use gristmill_formats::limits::{PANEL_ALIGN, SECTION_ALIGN};
use gristmill_formats::source::{Layout, ModelSource, check_tensors};
use gristmill_formats::{FormatError, Silent};

use crate::sample::{self, Rng};

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    let mut header = sample::header();
    header.quality = Some(sample::quality());
    let written = sample::write(&path, header.clone()).unwrap();
    let file = PackedFile::open(&path).unwrap();
    assert_eq!(file.header(), &written);
    assert_eq!(file.header().quality, header.quality, "numbers keep every bit");
    assert_eq!(file.header().text, header.text);
    assert_eq!(file.spec(), &header.model);
    assert_eq!(file.text(), &header.text);
    assert_eq!(file.generation(), &header.generation);
    assert_eq!(file.tokenizer().unwrap(), Some(sample::tokenizer()));
    assert_eq!(file.file_bytes(), fs::metadata(&path).unwrap().len());
    check_tensors(&file).unwrap();
    assert_eq!(verify(&file, &Silent), []);

    let mut rng = Rng::new(1);
    for (i, spec) in header.model.tensors().iter().enumerate() {
        let tensor = file.tensor(&spec.name).unwrap();
        let codec = sample::codec(i, spec.role);
        let bytes = rng.bytes(codec.tensor_bytes(&spec.shape).unwrap() as usize);
        rng.below(997);
        assert_eq!(&tensor.bytes[..], bytes, "{}", spec.name);
        assert_eq!((tensor.codec, tensor.shape), (codec, spec.shape.clone()));
        let matrix = spec.shape.len() == 2;
        assert_eq!(tensor.layout, if matrix { Layout::Panels } else { Layout::RowMajor });
    }
    let missing = file.tensor("layers.9.attn.q").unwrap_err();
    assert!(matches!(missing, FormatError::MissingTensor(name) if name == "layers.9.attn.q"));
}

#[test]
fn tensors_are_aligned_in_order_and_without_holes() {
    let bytes = sample::bytes();
    let file = sample::open(&bytes).unwrap();
    let align = PANEL_ALIGN as u64;
    let mut end = SECTION_ALIGN;
    for (entry, spec) in file.header().tensors.iter().zip(sample::model().tensors()) {
        assert_eq!(entry.name, spec.name);
        assert_eq!(entry.offset, end.next_multiple_of(align), "{}", entry.name);
        assert_eq!(entry.bytes, entry.codec().unwrap().tensor_bytes(&entry.shape).unwrap());
        end = entry.offset + entry.bytes;
    }
    let tokenizer = file.header().tokenizer.clone().unwrap();
    assert_eq!(tokenizer.offset, end.next_multiple_of(align));
    let header_offset = file.superblock().header_offset;
    assert_eq!(header_offset, (tokenizer.offset + tokenizer.bytes).next_multiple_of(align));
    assert_eq!(bytes.len() % 16, 0);
    assert_eq!(bytes[bytes.len() - 16..], *b"gristmill-commit");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert!(sample::bytes() == sample::bytes());
}

#[test]
fn the_fingerprint_changes_with_any_tensor() {
    let bytes = sample::bytes();
    let file = sample::open(&bytes).unwrap();
    let mut header = file.header().clone();
    header.tensors[3].blake3.replace_range(0..1, "g");
    let other = sample::with_header(&bytes, &header.to_bytes().unwrap());
    let other = sample::open(&other).unwrap();
    assert_ne!(file.fingerprint(), other.fingerprint());
    assert_eq!(file.fingerprint().len(), 32);
}

#[test]
fn bits_per_weight_count_the_whole_file() {
    let bytes = sample::bytes();
    let file = sample::open(&bytes).unwrap();
    let weights: u64 = file.header().tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum();
    assert_eq!(file.bits_per_weight(), bytes.len() as f64 * 8.0 / weights as f64);
}

#[test]
fn an_unfinished_file_has_another_name_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    let mut writer = PackedWriter::create(&path).unwrap();
    assert!(sample::partial(&path).exists() && !path.exists());
    let spec = &sample::model().tensors()[0];
    writer.begin_tensor(&spec.name, &spec.shape, &Codec::Q8).unwrap();
    writer.write(&[1; 100]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_in_the_way_stays_until_the_new_one_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    fs::write(&path, b"old").unwrap();
    let writer = PackedWriter::create(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    sample::write(&path, sample::header()).unwrap();
    PackedFile::open(&path).unwrap();
    assert!(!sample::partial(&path).exists());
}

#[test]
fn leftovers_of_an_interrupted_run_are_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    fs::write(sample::partial(&path), vec![0xff; 1 << 20]).unwrap();
    sample::write(&path, sample::header()).unwrap();
    assert_eq!(verify(&PackedFile::open(&path).unwrap(), &Silent), []);
}

#[test]
fn a_header_that_a_reader_would_refuse_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    let mut other_model = sample::header();
    other_model.model.vocab_size += 1;
    assert!(sample::write(&path, other_model).is_err());

    // Tensors are missing.
    let writer = PackedWriter::create(&path).unwrap();
    let error = writer.finish(sample::header()).unwrap_err();
    assert!(matches!(error, FormatError::MissingTensor(name) if name == "embed"));

    // A matrix codec on a vector.
    let mut writer = PackedWriter::create(&path).unwrap();
    assert!(writer.begin_tensor("final_norm", &[40], &Codec::Q8).is_err());
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn numbers_that_are_not_finite_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let changes: [fn(&mut gristmill_formats::container::Header, f64); 6] = [
            |h, x| h.quality.as_mut().unwrap().ppl = Some(x),
            |h, x| h.quality.as_mut().unwrap().bits_per_weight = x,
            |h, x| h.generation.temperature = Some(x as f32),
            |h, x| h.model.logit_softcap = Some(x as f32),
            |h, x| h.model.embedding_scale = x as f32,
            |h, x| h.model.final_norm.eps = x as f32,
        ];
        for change in changes {
            let mut header = sample::header();
            header.quality = Some(sample::quality());
            change(&mut header, bad);
            assert!(sample::write(&path, header).is_err(), "{bad} was written");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn an_unwritable_place_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no/such/model.grist");
    let error = PackedWriter::create(&path).unwrap_err().to_string();
    assert!(error.contains("no/such"), "{error}");
    let error = PackedFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("no/such"), "{error}");
}

#[test]
fn rewriting_the_header_keeps_tensors_and_changes_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    let mut header = sample::write(&path, sample::header()).unwrap();
    let before = fs::read(&path).unwrap();
    header.quality = Some(sample::quality());
    header.provenance.recipe = "a longer recipe ".repeat(1000);
    rewrite_header(&path, &header).unwrap();
    let file = PackedFile::open(&path).unwrap();
    assert_eq!(file.header(), &header);
    assert_eq!(verify(&file, &Silent), []);
    let data = 128..file.superblock().header_offset as usize;
    assert_eq!(file.bytes()[data.clone()], before[data]);
    assert!(!sample::partial(&path).exists());

    // And back to the first.
    header.quality = None;
    header.provenance = sample::header().provenance;
    rewrite_header(&path, &header).unwrap();
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn details_of_quality_are_announced_to_readers_that_would_refuse_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    let mut header = sample::write(&path, sample::header()).unwrap();
    let mut features = |quality: QualityReport| {
        header.quality = Some(quality);
        rewrite_header(&path, &header).unwrap();
        let file = PackedFile::open(&path).unwrap();
        assert_eq!(file.header(), &header, "numbers keep every bit");
        file.superblock().required_features
    };
    // What files had before there were details is what they have without them.
    assert_eq!(features(sample::quality()), 0);
    assert!(!String::from_utf8_lossy(&fs::read(&path).unwrap()).contains("ppl_ci95"));
    let details: [fn(&mut QualityReport); 8] = [
        |q| q.ppl_ci95 = Some([0.1 + 0.2, 1.0 / 3.0]),
        |q| q.kld_p99 = Some(1.0 / 7.0),
        |q| q.kld_p999 = Some(1.0 / 7.0),
        |q| q.delta_p_rms = Some(1.0 / 7.0),
        |q| q.tokens = Some(10_200),
        |q| q.kv = Some("f16".into()),
        |q| q.reference = Some("0123".into()),
        |q| q.measured_by = Some("gristmill 0.1.0".into()),
    ];
    for change in details {
        let mut quality = sample::quality();
        change(&mut quality);
        assert_eq!(features(quality), 1);
    }
}

#[test]
fn rewriting_the_header_cannot_change_what_the_tensors_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.grist");
    let header = sample::write(&path, sample::header()).unwrap();
    let before = fs::read(&path).unwrap();
    let mut other = header.clone();
    other.tensors.pop();
    assert!(rewrite_header(&path, &other).is_err());
    let mut other = header.clone();
    other.model.final_norm.eps = 1e-6;
    assert!(rewrite_header(&path, &other).is_err());
    let mut other = header.clone();
    other.tokenizer = None;
    assert!(rewrite_header(&path, &other).is_err());
    let mut other = header;
    other.quality = Some(sample::quality());
    other.quality.as_mut().unwrap().ppl = Some(f64::NAN);
    assert!(rewrite_header(&path, &other).is_err());
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_without_a_tokenizer_is_a_file() {
    let bytes = sample::bytes();
    let file = sample::open(&bytes).unwrap();
    let mut header = file.header().clone();
    let section = header.tokenizer.take().unwrap();
    let json = header.to_bytes().unwrap();
    let mut cut = bytes[..section.offset as usize].to_vec();
    cut.extend_from_slice(&json);
    cut.resize(cut.len().next_multiple_of(64), 0);
    let cut = sample::seal(cut, section.offset, &json, |_| {});
    let file = sample::open(&cut).unwrap();
    assert_eq!(file.tokenizer().unwrap(), None);
    assert_eq!(verify(&file, &Silent), []);
}
