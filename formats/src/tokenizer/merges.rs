//! The tables of a byte-pair model: out of the JSON, and which texts follow from which merges.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::limits::MAX_VOCAB;

/// Token texts by id, and merges as pairs of ids.
pub(super) type Tables = (Vec<String>, Vec<(u32, u32)>);

/// Bytes of the model's `continuing_subword_prefix`.
pub(super) fn prefix_len(model: &Value) -> usize {
    model.get("continuing_subword_prefix").and_then(Value::as_str).map_or(0, str::len)
}

/// Takes vocabulary and merges out of a byte-pair model; `None`, and the model unchanged, when they
/// cannot be told as a dense table and pairs of ids.
pub(super) fn extract(model: &mut Value) -> Option<Tables> {
    if model.get("type")?.as_str()? != "BPE" {
        return None;
    }
    let prefix = prefix_len(model);
    let vocab = dense(model.get("vocab")?.as_object()?)?;
    let merges = {
        let ids = index(&vocab)?;
        let merges = pairs(model.get("merges")?.as_array()?, &ids)?;
        results(&vocab, &merges, prefix, &ids)?;
        merges
    };
    model["vocab"] = Value::Object(Map::new());
    model["merges"] = Value::Array(Vec::new());
    Some((vocab, merges))
}

/// Texts by id when the ids are `0..n`, each once.
fn dense(vocab: &Map<String, Value>) -> Option<Vec<String>> {
    if vocab.is_empty() || vocab.len() > MAX_VOCAB as usize {
        return None;
    }
    let mut texts: Vec<Option<&String>> = vec![None; vocab.len()];
    for (text, id) in vocab {
        let slot = texts.get_mut(usize::try_from(id.as_u64()?).ok()?)?;
        if slot.replace(text).is_some() {
            return None;
        }
    }
    texts.into_iter().map(|text| text.cloned()).collect()
}

/// Merges as ids. Older files write `"a b"` and may carry a version line among them.
fn pairs(merges: &[Value], ids: &HashMap<&str, u32>) -> Option<Vec<(u32, u32)>> {
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let (left, right) = match merge {
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => line.split_once(' ')?,
            Value::Array(pair) => match pair.as_slice() {
                [left, right] => (left.as_str()?, right.as_str()?),
                _ => return None,
            },
            _ => return None,
        };
        // A second blank leaves it inside `right`, which then is not a token that legacy readers
        // see.
        if merge.is_string() && right.contains(' ') {
            return None;
        }
        pairs.push((*ids.get(left)?, *ids.get(right)?));
    }
    Some(pairs)
}

/// Ids by text; `None` when a text occurs twice.
pub(super) fn index(vocab: &[String]) -> Option<HashMap<&str, u32>> {
    let mut ids = HashMap::with_capacity(vocab.len());
    for (id, text) in vocab.iter().enumerate() {
        if ids.insert(text.as_str(), u32::try_from(id).ok()?).is_some() {
            return None;
        }
    }
    Some(ids)
}

/// The token that each merge spells; `None` when one spells no token.
pub(super) fn results(
    vocab: &[String],
    merges: &[(u32, u32)],
    prefix_len: usize,
    ids: &HashMap<&str, u32>,
) -> Option<Vec<u32>> {
    let mut text = String::new();
    merges
        .iter()
        .map(|&(left, right)| {
            text.clear();
            text.push_str(vocab.get(left as usize)?);
            text.push_str(vocab.get(right as usize)?.get(prefix_len..)?);
            ids.get(text.as_str()).copied()
        })
        .collect()
}

/// Which tokens' texts must be stored. The rest are spelled by the merges in increasing order of
/// ids.
pub(super) fn explicit(vocab_len: usize, merges: &[(u32, u32)], results: &[u32]) -> Vec<bool> {
    let mut spelled = vec![false; vocab_len];
    let mut used_before = vec![false; vocab_len];
    let mut firsts = Vec::new();
    for (&(left, right), &result) in merges.iter().zip(results) {
        for part in [left, right] {
            used_before[part as usize] |= !spelled[part as usize];
        }
        if !std::mem::replace(&mut spelled[result as usize], true) {
            firsts.push(result);
        }
    }
    // A part that is needed before any merge spells it cannot be derived.
    firsts.retain(|&id| !used_before[id as usize]);
    let mut explicit = vec![true; vocab_len];
    for id in longest_increasing(&firsts) {
        explicit[id as usize] = false;
    }
    explicit
}

/// A longest increasing subsequence (patience sorting, O(n log n)).
fn longest_increasing(values: &[u32]) -> Vec<u32> {
    // tails[k]: index of the smallest value that ends an increasing run of k + 1 values.
    let mut tails: Vec<usize> = Vec::new();
    let mut previous = vec![usize::MAX; values.len()];
    for (at, &value) in values.iter().enumerate() {
        let run = tails.partition_point(|&tail| values[tail] < value);
        if run > 0 {
            previous[at] = tails[run - 1];
        }
        if run == tails.len() {
            tails.push(at);
        } else {
            tails[run] = at;
        }
    }
    let mut run = Vec::with_capacity(tails.len());
    let mut at = tails.last().copied().unwrap_or(usize::MAX);
    while at != usize::MAX {
        run.push(values[at]);
        at = previous[at];
    }
    run.reverse();
    run
}
