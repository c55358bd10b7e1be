//! Writes the seed corpus: `cargo run --manifest-path fuzz/Cargo.toml --bin write_seeds`.

use std::path::Path;
use std::{fs, io};

use gristmill_formats::codec::{Codec, Grid, NamedGrid};
use gristmill_formats::container::Superblock;
use gristmill_fuzz::sample;
use serde_json::{Map, json};

fn main() -> io::Result<()> {
    let mut header = sample::header();
    let header_offset = sample::place(&mut header);
    let json = header.to_bytes().map_err(io::Error::other)?;
    let tokenizer = header.tokenizer.as_ref().map_or(0, |section| section.offset);
    let file = sample::seal(&json, header_offset, tokenizer);
    // Seeds that are refused at the door would teach the fuzzer nothing.
    sample::exercise(file.clone()).map_err(io::Error::other)?;
    let superblock = Superblock::parse(&file).map_err(io::Error::other)?;
    seed("superblock", "good", &superblock.to_bytes())?;
    seed("superblock", "footer", &superblock.footer())?;
    seed("header", "good", &[&header_offset.to_le_bytes()[..], &json].concat())?;
    seed("tensor_table", "unchanged", &[0])?;
    seed(
        "tensor_table",
        "changes",
        b"\x05\x02\x10\x03\x01\x07\x04\x09\x00\x20\x06\x11\x01\x02\x03",
    )?;
    seed("decode_dense", "bf16", &[1, 3, 0x80, 0x3f, 0, 0x40, 0xc0, 0x7f])?;
    let ramp = |codec: Codec| -> Vec<u8> {
        let panel = (0..codec.panel_bytes(33)).map(|i| (i * 37) as u8);
        [33].into_iter().chain(panel).collect()
    };
    seed("decode_q8", "ramp", &ramp(Codec::Q8))?;
    for bits in Grid::MIN_BITS..=Grid::MAX_BITS {
        let grid = NamedGrid::default_for(bits).grid();
        let mut table = vec![(bits - Grid::MIN_BITS) as u8];
        table.extend(grid.values().iter().map(|&v| v as u8));
        table.push(grid.shift() as u8);
        table.extend(ramp(Codec::Table(grid)));
        seed("decode_table", &format!("q{bits}"), &table)?;
    }
    seed("tokenizer_section", "section", &[&[0], sample::section()].concat())?;
    seed("tokenizer_section", "body", &[&[1][..], &tokenizer_body()].concat())?;
    seed("safetensors", "good", &safetensors())?;
    Ok(())
}

fn seed(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(name), bytes)
}

/// The uncompressed body of a section: three explicit tokens, two that merges spell.
fn tokenizer_body() -> Vec<u8> {
    let json = r#"{"model":{"type":"BPE","vocab":{},"merges":[]}}"#;
    let mut body = Vec::new();
    for count in [json.len() as u32, 5, 2, 0, 3] {
        body.extend(count.to_le_bytes());
    }
    body.extend(json.bytes());
    body.push(0b0000_0111);
    body.extend([1, 1, 1]);
    body.extend(b"abc");
    for plane in [[0, 3], [0, 0], [0, 0], [1, 2], [0, 0], [0, 0]] {
        body.extend(plane);
    }
    body
}

/// The weights of the model that the `safetensors` target describes.
fn safetensors() -> Vec<u8> {
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![3, 4])];
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
        tensors.push((format!("model.layers.0.{name}.weight"), vec![4, 4]));
    }
    for name in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
        tensors.push((format!("model.layers.0.{name}.weight"), vec![4, 4]));
    }
    for name in ["layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"] {
        tensors.push((format!("model.{name}.weight"), vec![4]));
    }
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut input = vec![1];
    input.extend((header.len() as u16).to_le_bytes());
    input.extend(header.bytes());
    input.extend(std::iter::repeat_n(0x3f, end));
    input
}
