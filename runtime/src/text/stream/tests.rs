use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::text::tokenizer::tests::{Fixture, fixtures, ids};

/// The tokenizers of all dialects, in compact form.
static TOKENIZERS: LazyLock<Vec<(String, Tokenizer)>> = LazyLock::new(|| {
    let compact = |fixture: &Fixture| fixture.forms()[0].clone();
    fixtures().iter().map(|fixture| (fixture.name.clone(), compact(fixture))).collect()
});

/// What a stream hands out: per id, then at the end.
fn stream(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer, skip);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap().into()).collect();
    pieces.push(stream.finish().unwrap().into());
    pieces
}

#[test]
fn pieces_of_golden_texts_join_to_the_decoded_text() {
    for fixture in fixtures() {
        for tokenizer in fixture.forms() {
            for case in fixture.cases() {
                for (skip, decoded) in [(true, "decoded"), (false, "decoded_all")] {
                    let pieces = stream(&tokenizer, &ids(&case["ids"]), skip);
                    assert_eq!(pieces.concat(), case[decoded], "{}: {pieces:?}", fixture.name);
                    let whole = case[decoded].as_str().unwrap();
                    if !whole.contains('\u{fffd}') {
                        assert!(!pieces.concat().contains('\u{fffd}'));
                    }
                }
            }
        }
    }
}

#[test]
fn text_is_handed_out_as_soon_as_its_characters_are_complete() {
    for fixture in fixtures() {
        let [tokenizer, _] = fixture.forms();
        for case in fixture.cases() {
            let all = ids(&case["ids"]);
            let mut stream = TextStream::new(&tokenizer, true);
            let mut text = String::new();
            for end in 1..=all.len() {
                text.push_str(stream.push(all[end - 1]).unwrap());
                let decoded = tokenizer.decode(&all[..end], true).unwrap();
                let certain = decoded.trim_end_matches('\u{fffd}');
                assert!(text.len() >= certain.len(), "{}: {text:?} {decoded:?}", fixture.name);
            }
        }
    }
}

#[test]
fn the_window_stays_short() {
    for fixture in fixtures() {
        let [tokenizer, _] = fixture.forms();
        let mut stream = TextStream::new(&tokenizer, false);
        let one: Vec<u32> = fixture.cases().iter().flat_map(|case| ids(&case["ids"])).collect();
        for id in one {
            stream.push(id).unwrap();
            let held = match &stream.state {
                State::Bytes(pending) => pending.len() * 8,
                State::Window { ids, .. } => ids.len(),
            };
            assert!(held <= 3 * MAX_WAITING_IDS, "{}: {held}", fixture.name);
        }
    }
}

#[test]
fn invalid_bytes_wait_no_longer_than_the_limit() {
    for fixture in fixtures() {
        let [tokenizer, _] = fixture.forms();
        let Some(id) = tokenizer.token_id("<0xFF>") else { continue };
        let mut stream = TextStream::new(&tokenizer, true);
        let text: String = (0..100).map(|_| stream.push(id).unwrap().to_owned()).collect();
        assert!(
            text.chars().count() + MAX_WAITING_IDS >= 100 && text.chars().all(|c| c == '\u{fffd}')
        );
    }
}

#[test]
fn a_finished_stream_begins_anew() {
    for fixture in fixtures() {
        let [tokenizer, _] = fixture.forms();
        let ids = tokenizer.encode("grain 🌾", false).unwrap();
        let mut stream = TextStream::new(&tokenizer, true);
        for _ in 0..2 {
            let mut text: String =
                ids.iter().map(|&id| stream.push(id).unwrap().to_owned()).collect();
            text.push_str(stream.finish().unwrap());
            assert_eq!(text, tokenizer.decode(&ids, true).unwrap(), "{}", fixture.name);
        }
    }
}

#[test]
fn unknown_ids_have_no_text() {
    for fixture in fixtures() {
        let [tokenizer, _] = fixture.forms();
        assert_eq!(stream(&tokenizer, &[u32::MAX, 1 << 20], false).concat(), "");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn byte_level_pieces_of_any_ids_join_to_the_decoded_text(random in prop::collection::vec(any::<u32>(), 0..60)) {
        for (name, tokenizer) in TOKENIZERS.iter() {
            let ids: Vec<u32> = random.iter().map(|id| id % (tokenizer.vocab_size() as u32 + 1)).collect();
            for skip in [false, true] {
                let pieces = stream(tokenizer, &ids, skip);
                let decoded = tokenizer.decode(&ids, skip).unwrap();
                // The exception for runs of invalid byte tokens is documented above.
                if tokenizer.is_byte_level() || !decoded.contains('\u{fffd}') {
                    prop_assert_eq!(pieces.concat(), decoded, "{}", name);
                }
            }
        }
    }

    #[test]
    fn bytes_are_replaced_as_the_standard_library_replaces_them(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut pending = Vec::new();
        let mut text = String::new();
        for byte in &bytes {
            pending.push(*byte);
            emit_complete(&mut pending, &mut text);
            prop_assert!(pending.len() < 4);
        }
        text.push_str(&String::from_utf8_lossy(&pending));
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}
