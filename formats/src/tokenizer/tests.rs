use std::path::Path;

use proptest::prelude::*;

use super::*;

fn bpe(vocab: &[&str], merges: &str, more: &str) -> String {
    let vocab: Vec<_> =
        vocab.iter().enumerate().map(|(id, text)| format!("{}:{id}", Value::from(*text))).collect();
    format!(
        r#"{{"version":"1.0","added_tokens":[],"model":{{"type":"BPE"{more},"vocab":{{{}}},"merges":{merges}}}}}"#,
        vocab.join(",")
    )
}

fn round_trip(data: &TokenizerData) -> usize {
    let section = data.to_section();
    assert_eq!(&TokenizerData::from_section(&section).unwrap(), data);
    section.len()
}

#[test]
fn compact_form_takes_the_tables_out_of_the_json() {
    let json = bpe(&["a", "b", "ab", "aba"], r#"[["a","b"],["ab","a"]]"#, "");
    let data = TokenizerData::from_json(json.as_bytes()).unwrap();
    assert_eq!(data.vocab, ["a", "b", "ab", "aba"]);
    assert_eq!(data.merges, [(0, 1), (2, 0)]);
    assert!(data.json.contains(r#""vocab":{},"merges":[]"#), "{}", data.json);
    assert_eq!(data.source_blake3, blake3::hash(json.as_bytes()).to_hex().as_str());
    round_trip(&data);
}

#[test]
fn legacy_merges_and_their_version_line_are_read() {
    let json = bpe(&["a", "b", "ab"], r##"["#version: 0.2","a b"]"##, "");
    assert_eq!(TokenizerData::from_json(json.as_bytes()).unwrap().merges, [(0, 1)]);
}

#[test]
fn what_the_tables_cannot_say_stays_whole_json() {
    let cases = [
        bpe(&["a", "b"], r#"[["a","b"]]"#, ""), // spells no token
        bpe(&["a", "b", "ab"], r#"[["a","c"]]"#, ""), // uses no token
        bpe(&["a", "b", "ab"], r#"["a b c"]"#, ""),
        bpe(&["a", "b", "ab"], "null", ""),
        r#"{"model":{"type":"BPE","vocab":{"a":0,"b":2},"merges":[]}}"#.into(),
        r#"{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}"#.into(),
        r#"{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}"#.into(),
        r#"{"model":{"type":"BPE","vocab":{},"merges":[]}}"#.into(),
        r#"{"model":{"type":"Unigram","vocab":[["a",0.5]]}}"#.into(),
    ];
    for json in cases {
        let data = TokenizerData::from_json(json.as_bytes()).unwrap();
        assert!(!data.is_compact() && data.merges.is_empty());
        assert_eq!(data.json, json);
        round_trip(&data);
    }
}

#[test]
fn what_is_no_tokenizer_is_an_error() {
    for json in ["", "{", "[]", "{}", r#"{"model":1}"#] {
        assert!(TokenizerData::from_json(json.as_bytes()).is_err(), "{json}");
    }
    assert!(TokenizerData::from_json(&[0xff]).is_err());
}

#[test]
fn continuing_prefix_is_dropped_from_the_right_part() {
    let json = bpe(
        &["a", "##b", "ab", "##ab"],
        r###"[["a","##b"],["ab","##ab"]]"###,
        r###","continuing_subword_prefix":"##""###,
    );
    // The second merge spells "abab", which is no token.
    assert!(!TokenizerData::from_json(json.as_bytes()).unwrap().is_compact());
    let json =
        json.replace(r###","##ab":3"###, r#","abb":3"#).replace(r###""##ab"]"###, r###""##b"]"###);
    let data = TokenizerData::from_json(json.as_bytes()).unwrap();
    assert!(data.is_compact());
    round_trip(&data);
}

#[test]
fn any_order_of_ids_and_any_alias_of_a_merge_round_trips() {
    for (vocab, merges) in [
        (vec!["aba", "ab", "b", "a"], r#"[["a","b"],["ab","a"]]"#),
        (vec!["a", "aa", "aaa"], r#"[["a","a"],["aa","a"],["a","aa"]]"#),
        // Used before it is spelled.
        (vec!["a", "aaa", "aa"], r#"[["aa","a"],["a","a"]]"#),
        (vec!["", "a"], r#"[["a",""],["","a"],["",""]]"#),
        (vec!["é", "€", "é€"], r#"[["é","€"]]"#),
    ] {
        let data = TokenizerData::from_json(bpe(&vocab, merges, "").as_bytes()).unwrap();
        assert!(data.is_compact(), "{vocab:?}");
        round_trip(&data);
    }
}

#[test]
fn doubling_merges_round_trip_and_cannot_ask_for_more_than_they_justify() {
    let doubled = |n: usize| (0..n).map(|i| "a".repeat(1 << i)).collect::<Vec<_>>();
    let merges = |n: u32| (0..n - 1).map(|i| (i, i)).collect::<Vec<_>>();
    let json = r#"{"model":{"type":"BPE","vocab":{},"merges":[]}}"#.to_string();
    let source_blake3 = "00".repeat(32);
    let mut data = TokenizerData { json, vocab: doubled(16), merges: merges(16), source_blake3 };
    round_trip(&data);
    // Long texts of few merges are stored, whatever the merges could spell.
    data.vocab = doubled(20);
    data.merges = merges(20);
    round_trip(&data);
    // A gigabyte if the reader let it.
    let forged = TokenizerData::from_section(&forged_doubling(30));
    assert!(matches!(forged, Err(FormatError::Corrupt { .. })), "{forged:?}");
}

/// A stored section with one explicit token and `n` merges that double it.
fn forged_doubling(n: u32) -> Vec<u8> {
    let mut body = Vec::new();
    for count in [0, n + 1, n, 0, 1] {
        body.extend_from_slice(&count.to_le_bytes());
    }
    body.push(1);
    body.extend(std::iter::repeat_n(0, (n as usize + 1).div_ceil(8) - 1));
    body.extend_from_slice(&[1, b'a']);
    for _ in 0..2 {
        body.extend(0..n as u8);
        body.extend(std::iter::repeat_n(0, 2 * n as usize));
    }
    let mut section = vec![1, 0, 0, 0];
    section.extend_from_slice(&[0; 32]);
    section.extend_from_slice(&(body.len() as u32).to_le_bytes());
    section.extend_from_slice(&body);
    section
}

#[test]
fn a_forged_section_of_three_doublings_reads_so_the_forgery_is_well_formed() {
    let data = TokenizerData::from_section(&forged_doubling(3)).unwrap();
    assert_eq!(data.vocab, ["a", "aa", "aaaa", "aaaaaaaa"]);
}

#[test]
fn bytes_after_the_stream_and_other_lengths_are_refused() {
    let text: String = (0..2000).map(|i| i.to_string()).collect();
    let json = bpe(&["a", "b", "ab"], r#"[["a","b"]]"#, &format!(r#","x":"{text}""#));
    let section = TokenizerData::from_json(json.as_bytes()).unwrap().to_section();
    assert_eq!(section[1], 1, "compressed");
    for extra in [1, 5000] {
        let mut longer = section.clone();
        longer.extend(std::iter::repeat_n(0, extra));
        assert!(TokenizerData::from_section(&longer).is_err());
    }
    for len in 0..section.len() {
        assert!(TokenizerData::from_section(&section[..len]).is_err(), "{len}");
    }
    for delta in [-1i32, 1] {
        let mut other = section.clone();
        let len = u32::from_le_bytes(other[36..40].try_into().unwrap());
        other[36..40].copy_from_slice(&len.wrapping_add_signed(delta).to_le_bytes());
        assert!(TokenizerData::from_section(&other).is_err());
    }
}

#[test]
fn repetitive_json_is_stored_when_it_would_expand_too_far() {
    let json = format!(r#"{{"model":{{}},"x":"{}"}}"#, "x".repeat(4 << 20));
    let data = TokenizerData::from_json(json.as_bytes()).unwrap();
    round_trip(&data);
}

#[test]
fn fixtures_round_trip_compactly() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizers");
    let mut seen = 0;
    for dialect in std::fs::read_dir(&fixtures).unwrap() {
        let path = dialect.unwrap().path().join("tokenizer.json");
        let json = std::fs::read(&path).unwrap();
        let data = TokenizerData::from_json(&json).unwrap();
        assert!(data.is_compact(), "{}", path.display());
        let bytes = round_trip(&data);
        assert!(bytes * 4 < json.len(), "{}: {bytes} of {}", path.display(), json.len());
        seen += 1;
    }
    assert!(seen > 0);
}

/// A vocabulary grown by random merges, its ids shuffled a little.
fn grown() -> impl Strategy<Value = TokenizerData> {
    let steps = prop::collection::vec((any::<u16>(), any::<u16>()), 0..120);
    let swaps = prop::collection::vec((any::<u16>(), any::<u16>()), 0..6);
    (1usize..12, steps, swaps, any::<bool>()).prop_map(|(letters, steps, swaps, legacy)| {
        let mut texts: Vec<String> = (0..letters)
            .map(|i| ['a', 'é', 'Ġ', '▁', '🌾', '<'][i % 6].to_string().repeat(i / 6 + 1))
            .collect();
        texts.sort();
        texts.dedup();
        let mut merges = Vec::new();
        for (left, right) in steps {
            let pick = |n: u16| texts[n as usize % texts.len()].clone();
            let (left, right) = (pick(left), pick(right));
            let text = format!("{left}{right}");
            if text.len() < 200 {
                if !texts.contains(&text) {
                    texts.push(text);
                }
                merges.push((left, right));
            }
        }
        for (a, b) in swaps {
            let len = texts.len();
            texts.swap(a as usize % len, b as usize % len);
        }
        let merges: Vec<Value> = merges
            .into_iter()
            .map(|(a, b)| if legacy { format!("{a} {b}").into() } else { vec![a, b].into() })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let json = bpe(&texts, &Value::from(merges).to_string(), "");
        TokenizerData::from_json(json.as_bytes()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn grown_vocabularies_round_trip(data in grown()) {
        prop_assert!(data.is_compact());
        round_trip(&data);
    }

    #[test]
    fn random_sections_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), stored: bool) {
        let _ = TokenizerData::from_section(&bytes);
        if bytes.len() > 60 {
            bytes[..4].copy_from_slice(&[1, u8::from(!stored), 0, 0]);
            let len = (bytes.len() - 40) as u32;
            bytes[36..40].copy_from_slice(&len.to_le_bytes());
            for count in bytes[40..60].chunks_exact_mut(4) {
                count[1..].fill(0);
            }
            let _ = TokenizerData::from_section(&bytes);
        }
    }

    #[test]
    fn flipped_bits_never_panic_and_never_break_the_tables(data in grown(), flips in prop::collection::vec(any::<u32>(), 1..4), stored: bool) {
        let mut section = data.to_section();
        if stored {
            let body = section_body(&section);
            section.truncate(40);
            section[1] = 0;
            section.extend_from_slice(&body);
        }
        for flip in flips {
            let bit = flip as usize % (section.len() * 8);
            section[bit / 8] ^= 1 << (bit % 8);
        }
        if let Ok(read) = TokenizerData::from_section(&section) {
            prop_assert!(read.merges.iter().all(|&(a, b)| (a.max(b) as usize) < read.vocab.len()));
        }
    }

    #[test]
    fn random_json_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = TokenizerData::from_json(&bytes);
    }
}

fn section_body(section: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    if section[1] == 0 {
        body.extend_from_slice(&section[40..]);
    } else {
        std::io::Read::read_to_end(&mut brotli::Decompressor::new(&section[40..], 4096), &mut body)
            .unwrap();
    }
    body
}
