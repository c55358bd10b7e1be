use std::path::PathBuf;

use super::*;

pub(in crate::text) struct Fixture {
    pub(in crate::text) name: String,
    pub(in crate::text) json: Vec<u8>,
    pub(in crate::text) config: Value,
    pub(in crate::text) golden: Value,
}

/// Small tokenizers of each dialect, with what transformers makes of difficult texts.
pub(in crate::text) fn fixtures() -> Vec<Fixture> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizers");
    let mut fixtures: Vec<Fixture> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let read = |name: &str| std::fs::read(path.join(name)).unwrap();
            Fixture {
                name: path.file_name().unwrap().to_str().unwrap().into(),
                json: read("tokenizer.json"),
                config: serde_json::from_slice(&read("tokenizer_config.json")).unwrap(),
                golden: serde_json::from_slice(&read("golden.json")).unwrap(),
            }
        })
        .collect();
    fixtures.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!fixtures.is_empty());
    fixtures
}

impl Fixture {
    pub(in crate::text) fn reference(&self) -> tokenizers::Tokenizer {
        tokenizers::Tokenizer::from_bytes(&self.json).unwrap()
    }

    pub(in crate::text) fn assets(&self) -> TextAssets {
        let reference = self.reference();
        let token = |name: &str| {
            let text = self.config[name].as_str()?;
            Some(SpecialToken { text: text.into(), id: reference.token_to_id(text)? })
        };
        TextAssets { bos: token("bos_token"), eos: token("eos_token"), ..TextAssets::default() }
    }

    /// Compact, through the section of a packed file, and whole.
    pub(in crate::text) fn forms(&self) -> [Tokenizer; 2] {
        let data = TokenizerData::from_json(&self.json).unwrap();
        let compact = TokenizerData::from_section(&data.to_section()).unwrap();
        let json = String::from_utf8(self.json.clone()).unwrap();
        let whole = TokenizerData { json, vocab: vec![], merges: vec![], ..data };
        [compact, whole].map(|data| Tokenizer::from_data(&data, &self.assets()).unwrap())
    }

    pub(in crate::text) fn cases(&self) -> &[Value] {
        self.golden["cases"].as_array().unwrap()
    }
}

pub(in crate::text) fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn goldens_of_transformers_are_reproduced() {
    for fixture in fixtures() {
        for tokenizer in fixture.forms() {
            for case in fixture.cases() {
                let text = case["text"].as_str().unwrap();
                let name = format!("{}: {text:?}", fixture.name);
                let with = ids(&case["ids"]);
                assert_eq!(tokenizer.encode(text, true).unwrap(), with, "{name}");
                assert_eq!(
                    tokenizer.encode(text, false).unwrap(),
                    ids(&case["ids_plain"]),
                    "{name}"
                );
                assert_eq!(tokenizer.decode(&with, true).unwrap(), case["decoded"], "{name}");
                assert_eq!(tokenizer.decode(&with, false).unwrap(), case["decoded_all"], "{name}");
            }
        }
    }
}

#[test]
fn both_forms_equal_the_tokenizer_of_the_original_json() {
    for fixture in fixtures() {
        let reference = fixture.reference();
        for tokenizer in fixture.forms() {
            let size = tokenizer.vocab_size();
            assert_eq!(size, reference.get_vocab_size(true), "{}", fixture.name);
            for id in 0..size as u32 + 2 {
                assert_eq!(tokenizer.token_text(id), reference.id_to_token(id));
                for skip in [false, true] {
                    let expected = reference.decode(&[id], skip).unwrap();
                    assert_eq!(tokenizer.decode(&[id], skip).unwrap(), expected, "{id}");
                }
            }
            let added = |tokenizer: &tokenizers::Tokenizer| {
                serde_json::to_value(tokenizer.get_added_vocabulary()).unwrap()
            };
            assert_eq!(added(&tokenizer.inner), added(&reference), "{}", fixture.name);
            assert_eq!(tokenizer.inner.get_vocab(true), reference.get_vocab(true));
        }
    }
}

#[test]
fn beginning_of_sequence_is_added_where_encoding_says_so() {
    for fixture in fixtures() {
        let bos = fixture.assets().bos.map(|token| token.id);
        let first =
            ids(&fixture.cases().iter().find(|case| case["text"] == "a").unwrap()["ids"])[0];
        for tokenizer in fixture.forms() {
            assert_eq!(tokenizer.bos_id(), bos);
            assert_eq!(tokenizer.adds_bos(), Some(first) == bos, "{}", fixture.name);
        }
    }
}

fn build(json: &str) -> Result<Tokenizer, TextError> {
    let data = TokenizerData::from_json(json.as_bytes()).unwrap();
    Tokenizer::from_data(&data, &TextAssets::default())
}

const AB: &str = r#"{"version":"1.0","truncation":{"max_length":1,"strategy":"LongestFirst","stride":0,"direction":"Right"},
    "padding":{"strategy":{"Fixed":9},"direction":"Right","pad_id":0,"pad_type_id":0,"pad_token":"a","pad_to_multiple_of":null},
    "added_tokens":[{"id":3,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
    "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}}"#;

#[test]
fn texts_are_never_truncated_or_padded() {
    assert_eq!(build(AB).unwrap().encode("abba<s>", true).unwrap(), [2, 1, 0, 3]);
}

#[test]
fn options_of_the_model_survive_the_compact_form() {
    let fused = AB.replace(r#""type":"BPE""#, r#""type":"BPE","unk_token":"b","fuse_unk":true"#);
    assert_eq!(build(&fused).unwrap().encode("xxa", true).unwrap(), [1, 0]);
    let unfused = fused.replace(r#""fuse_unk":true"#, r#""fuse_unk":false"#);
    assert_eq!(build(&unfused).unwrap().encode("xxa", true).unwrap(), [1, 1, 0]);
    let ignoring = AB
        .replace(r#""type":"BPE""#, r#""type":"BPE","ignore_merges":true"#)
        .replace(r#""ab":2"#, r#""ab":2,"abb":3"#)
        .replace(r#""id":3"#, r#""id":4"#);
    assert_eq!(build(&ignoring).unwrap().encode("abb", true).unwrap(), [3]);
    let suffix = AB.replace(r#""type":"BPE""#, r#""type":"BPE","end_of_word_suffix":"b""#);
    assert_eq!(build(&suffix).unwrap().encode("a", true).unwrap(), [2]);
}

#[test]
fn added_tokens_with_another_id_than_declared_are_refused() {
    let wrong = AB.replace(r#""id":3"#, r#""id":7"#);
    let error = TextError::AddedTokenId { text: "<s>".into(), declared: 7, actual: 3 };
    assert_eq!(build(&wrong).err(), Some(error));
}

#[test]
fn malformed_tokenizers_are_errors() {
    let wrong = [
        AB.replace("\"1.0\"", "\"2.0\""),
        AB.replace("\"lstrip\":false,", ""),
        AB.replace("[[\"a\",\"b\"]]", "[[\"ab\",\"b\"]]"), // longer than any token
        AB.replace("[[\"a\",\"b\"]]", "[[\"b\",\"a\"]]"),  // spells no token
        AB.replace("[[\"a\",\"b\"]]", "[[\"a\",\"c\"]]"),
        AB.replace("[[\"a\",\"b\"]]", "[1]"),
        AB.replace("\"type\":\"BPE\"", "\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\""),
        AB.replace("\"type\":\"BPE\"", "\"type\":\"BPE\",\"dropout\":2.0"),
        AB.replace("\"type\":\"BPE\"", "\"type\":\"XYZ\""),
        AB.replace(
            "\"model\"",
            "\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":0,\"stop\":1},\"model\"",
        ),
        AB.replace("\"model\"", "\"pre_tokenizer\":{\"type\":\"None\"},\"model\""),
    ];
    for json in wrong {
        assert!(matches!(build(&json), Err(TextError::InvalidTokenizer(_))), "{json}");
    }
    let data = TokenizerData::from_json(AB.as_bytes()).unwrap();
    for merge in [(0, 9), (2, 2)] {
        let data = TokenizerData { merges: vec![merge], ..data.clone() };
        assert!(Tokenizer::from_data(&data, &TextAssets::default()).is_err());
    }
    let data = TokenizerData { json: "[]".into(), ..data };
    assert!(Tokenizer::from_data(&data, &TextAssets::default()).is_err());
}
