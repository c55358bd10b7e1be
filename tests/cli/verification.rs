//! `verify`.

use std::fs;

use crate::support::{packed, run, scratch, str};

#[test]
fn an_intact_file_passes() {
    let said = run(&["verify", str(packed())]).expect(0);
    assert!(said.stdout.contains("intact"), "{}", said.stdout);
    let document = run(&["verify", str(packed()), "--json"]).expect(0).json();
    assert_eq!(document["ok"], true);
    assert_eq!(document["damage"].as_array().unwrap().len(), 0);
}

#[test]
fn any_flipped_bit_is_found_and_named() {
    let directory = scratch();
    let path = directory.path().join("m.grist");
    let intact = fs::read(packed()).unwrap();
    let len = intact.len();
    // Ends, magic, superblock, padding, tensors, tokenizer, header, footer.
    let spread = (0..16).map(|i| 16_384 + i * (len - 16_384) / 16);
    let places = [0, 7, 9, 40, 100, 127, 128, 16_383].into_iter().chain(spread);
    for at in places.chain([len - 20_000, len - 200, len - 144, len - 1]) {
        let mut bytes = intact.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, bytes).unwrap();
        let document = run(&["verify", str(&path), "--json"]).expect(3).json();
        assert_eq!(document["ok"], false, "byte {at}");
        let part = document["damage"][0]["part"].as_str().unwrap();
        assert!(!part.is_empty(), "byte {at}");
    }
}

#[test]
fn the_damaged_tensor_is_named() {
    let directory = scratch();
    let path = directory.path().join("m.grist");
    let mut bytes = fs::read(packed()).unwrap();
    // The embedding comes first.
    bytes[20_000] ^= 4;
    fs::write(&path, bytes).unwrap();
    let said = run(&["verify", str(&path)]).expect(3);
    assert!(said.stdout.contains("damaged: tensor `embed`"), "{}", said.stdout);
}

#[test]
fn a_truncated_or_foreign_file_is_damaged() {
    let directory = scratch();
    let path = directory.path().join("m.grist");
    let intact = fs::read(packed()).unwrap();
    for len in [0, 5, 100, 20_000, intact.len() - 1] {
        fs::write(&path, &intact[..len]).unwrap();
        let said = run(&["verify", str(&path)]).expect(3);
        assert!(said.stdout.contains("damaged"), "{len} bytes: {}", said.stdout);
    }
    let longer = [intact.as_slice(), b"x"].concat();
    fs::write(&path, longer).unwrap();
    run(&["verify", str(&path)]).expect(3);
    fs::write(&path, "not a model").unwrap();
    let said = run(&["verify", str(&path)]).expect(3);
    assert!(said.stdout.contains("not a gristmill file"), "{}", said.stdout);
}

#[test]
fn what_cannot_be_checked_is_no_damage() {
    let directory = scratch();
    run(&["verify", str(&directory.path().join("missing.grist"))]).expect(1);
    run(&["verify", str(directory.path())]).expect(2);
}
