//! The MODEL argument.

use std::fs;

use crate::support::{Said, checkpoint, gristmill, packed, run, scratch, str};

#[test]
fn a_name_is_found_in_the_hub_cache() {
    let cache = scratch();
    let repo = cache.path().join("models--bard--tiny");
    let snapshot = repo.join("snapshots/c0ffee");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), "c0ffee").unwrap();
    for entry in fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    let inspect = |model: &str, name: &str, value: &std::path::Path| -> Said {
        let mut command = gristmill(&["inspect", model, "--json"]);
        command.env(name, value).output().unwrap().into()
    };
    for model in ["bard/tiny", "bard/tiny@main", "bard/tiny@c0ffee"] {
        inspect(model, "HF_HUB_CACHE", cache.path()).expect(0);
    }
    let home = scratch();
    fs::rename(cache.path(), home.path().join("hub")).unwrap();
    inspect("bard/tiny", "HF_HOME", home.path()).expect(0);

    let unknown = inspect("bard/huge", "HF_HOME", home.path()).expect(1);
    assert!(unknown.stderr.contains("hf download bard/huge"), "{}", unknown.stderr);
    let revision = inspect("bard/tiny@v2", "HF_HOME", home.path()).expect(1);
    assert!(revision.stderr.contains("c0ffee"), "{}", revision.stderr);

    // A packed file remembers where its weights came from.
    let output = home.path().join("m.grist");
    let mut quantize = gristmill(&["quantize", "bard/tiny", "-o", str(&output)]);
    Said::from(quantize.env("HF_HOME", home.path()).output().unwrap()).expect(0);
    let made = run(&["inspect", str(&output), "--json"]).expect(0).json();
    assert_eq!(made["provenance"]["source"], "bard/tiny");
    assert_eq!(made["provenance"]["revision"], "c0ffee");
}

#[test]
fn what_is_no_model_is_refused_with_a_way_out() {
    let directory = scratch();
    let told = |model: &str, hint: &str| {
        let said = run(&["inspect", model]).expect(1);
        assert!(said.stderr.contains(hint), "{model}: {}", said.stderr);
        assert!(said.stderr.contains("hint: ") || said.stderr.contains("; "), "{}", said.stderr);
    };
    told("./missing.grist", "no such file");
    told(str(&directory.path().join("missing")), "no such file");
    told(str(directory.path()), "config.json");
    let text = directory.path().join("notes.grist");
    fs::write(&text, "some notes, and not a model\n".repeat(100)).unwrap();
    told(str(&text), "not a gristmill file");
    let empty = directory.path().join("empty.grist");
    fs::write(&empty, "").unwrap();
    told(str(&empty), "empty.grist");
    told(str(&checkpoint().join("model.safetensors")), "give the checkpoint's directory");
    let only_packed = directory.path().join("packed");
    fs::create_dir(&only_packed).unwrap();
    fs::copy(packed(), only_packed.join("m.grist")).unwrap();
    told(str(&only_packed), "m.grist");
}
