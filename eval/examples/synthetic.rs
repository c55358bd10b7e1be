//! Writes a packed file of a known shape with random weights, to measure speed with:
//! `cargo run --release -p gristmill-eval --example synthetic -- --shape llama-1b --codec q4 -o FILE`.

use std::error::Error;
use std::path::PathBuf;

use gristmill_eval::{Shape, write_synthetic};
use gristmill_formats::codec::{Codec, CodecId};

fn main() -> Result<(), Box<dyn Error>> {
    let (mut shape, mut codec, mut output) = (Shape::Llama1b, CodecId::Q4, None);
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--shape" => shape = value.parse()?,
            "--codec" => codec = value.parse()?,
            "-o" | "--output" => output = Some(PathBuf::from(value)),
            _ => return Err(format!("unknown flag {flag}; known: --shape, --codec, -o").into()),
        }
    }
    let output = output.ok_or("-o FILE is needed")?;
    Ok(write_synthetic(&output, shape, &Codec::from(codec))?)
}
