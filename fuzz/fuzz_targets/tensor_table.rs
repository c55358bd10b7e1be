//! A good file whose header is changed in a few places and sealed again.
#![no_main]

use gristmill_formats::codec::CodecId;
use gristmill_formats::container::Header;
use gristmill_formats::model::Mixer;
use gristmill_fuzz::{budget, sample};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Largest file that is made for a header that is put elsewhere.
const MAX_OFFSET: u64 = 1 << 18;

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let mut header = sample::header();
    let mut offset = sample::place(&mut header);
    for _ in 0..input.int_in_range(0..=6)? {
        change(&mut header, input)?;
    }
    if input.ratio(3, 4)? {
        offset = sample::place(&mut header);
    }
    let mut tree = serde_json::to_value(&header).expect("a header is JSON");
    for _ in 0..input.int_in_range(0..=2)? {
        change_tree(&mut tree, input)?;
    }
    if input.ratio(1, 16)? {
        offset = number(input)?;
    }
    let json = tree.to_string();
    let tokenizer = header.tokenizer.as_ref().map_or(0, |t| t.offset);
    let file = sample::seal(json.as_bytes(), offset.min(MAX_OFFSET), tokenizer);
    budget::within(file.len(), 64, || {
        let _ = sample::exercise(file);
    });
    Ok(())
}

/// Numbers at which arithmetic goes wrong, and any other.
fn number(input: &mut Unstructured<'_>) -> Result<u64> {
    let bit = 1u64 << input.int_in_range(0..=63)?;
    Ok(match input.int_in_range(0..=6)? {
        0 => u64::from(input.arbitrary::<u8>()?),
        1 => bit,
        2 => bit - 1,
        3 => bit.wrapping_neg(),
        4 => bit + 1,
        5 => (16 << 10) + 64 * u64::from(input.arbitrary::<u8>()?),
        _ => input.arbitrary()?,
    })
}

fn change(header: &mut Header, input: &mut Unstructured<'_>) -> Result<()> {
    let count = header.tensors.len();
    let at = input.int_in_range(0..=count.max(1) - 1)?;
    let other = input.int_in_range(0..=count.max(1) - 1)?;
    let kind = input.int_in_range(0..=19)?;
    if kind < 12 && count == 0 {
        return Ok(());
    }
    match kind {
        0 => header.tensors[at].offset = number(input)?,
        1 => header.tensors[at].bytes = number(input)?,
        2 => header.tensors.swap(at, other),
        3 => drop(header.tensors.remove(at)),
        4 => {
            let copy = header.tensors[at].clone();
            header.tensors.insert(other, copy);
        }
        5 => header.tensors[at].name = input.arbitrary()?,
        6 => {
            let axis = usize::from(input.arbitrary::<bool>()?);
            let extent = number(input)?;
            if let Some(n) = header.tensors[at].shape.get_mut(axis) {
                *n = extent;
            }
        }
        7 => header.tensors[at].shape.push(number(input)?),
        8 => header.tensors[at].codec = *input.choose(&CodecId::ALL)?,
        9 => header.tensors[at].table = input.arbitrary()?,
        10 => header.tensors[at].table_shift = input.arbitrary()?,
        11 => header.tensors[at].blake3 = input.arbitrary()?,
        12 => header.tokenizer = None,
        13 => {
            let value = number(input)?;
            if let Some(section) = &mut header.tokenizer {
                section.bytes = value;
            }
        }
        14 => header.model.vocab_size = number(input)? as u32,
        15 => header.model.d_model = number(input)? as u32,
        16 => header.model.tied_head = input.arbitrary()?,
        17 => {
            let copies = input.int_in_range(0..=20)?;
            let layer = header.model.layers.first().cloned();
            header.model.layers.extend(layer.into_iter().cycle().take(copies));
        }
        _ => {
            let value = number(input)? as u32;
            let blocks = header.model.layers.iter_mut().flat_map(|layer| &mut layer.blocks);
            for block in blocks {
                match &mut block.mixer {
                    Mixer::Attention(a) if value % 3 == 0 => a.heads = value,
                    Mixer::Attention(a) if value % 3 == 1 => a.kv_heads = value,
                    Mixer::Attention(a) => a.head_dim = value,
                    Mixer::Mlp(m) => m.d_ff = value,
                }
            }
        }
    }
    // Otherwise the table could never fit a changed model.
    if kind >= 14 && input.arbitrary()? {
        fit(header);
    }
    Ok(())
}

/// Gives the table the names and shapes of the model.
fn fit(header: &mut Header) {
    if header.model.validate().is_err() {
        return;
    }
    let old = std::mem::take(&mut header.tensors);
    for (i, spec) in header.model.tensors().into_iter().take(1000).enumerate() {
        let vector = spec.shape.len() == 1;
        let mut entry = old[i % old.len().max(1)..]
            .iter()
            .chain(&old)
            .find(|entry| !vector || entry.codec.is_dense())
            .cloned()
            .unwrap_or_else(|| sample::header().tensors.swap_remove(1));
        entry.name = spec.name;
        entry.shape = spec.shape;
        header.tensors.push(entry);
    }
}

/// Replaces, removes or repeats something somewhere.
fn change_tree(tree: &mut Value, input: &mut Unstructured<'_>) -> Result<()> {
    let mut node = tree;
    for _ in 0..input.int_in_range(0..=8)? {
        let n = match &*node {
            Value::Array(items) => items.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        if n == 0 {
            break;
        }
        let at = input.int_in_range(0..=n - 1)?;
        node = match node {
            Value::Array(items) => &mut items[at],
            Value::Object(map) => map.values_mut().nth(at).expect("below its length"),
            _ => unreachable!("it has children"),
        };
    }
    match input.int_in_range(0..=7)? {
        0 => *node = Value::Null,
        1 => *node = Value::from(number(input)?),
        2 => *node = Value::from(-(number(input)? as i64).saturating_abs()),
        3 => *node = Value::from(input.arbitrary::<f64>()?),
        4 => *node = Value::from(input.arbitrary::<&str>()?),
        5 => *node = Value::from(input.arbitrary::<bool>()?),
        6 => *node = Value::Array(vec![node.clone(); input.int_in_range(0..=20)?]),
        _ => {
            if let Value::Object(map) = node {
                let key = input.arbitrary::<&str>()?;
                map.insert(key.into(), Value::from(1));
            }
        }
    }
    Ok(())
}
