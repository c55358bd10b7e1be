//! Continues a prompt with a packed file or a checkpoint directory, using the libraries directly.
//!
//! ```text
//! cargo run --release --example generate -- examples/models/tiny-shakespeare "ROMEO:"
//! ```

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use gristmill_convert::HfCheckpoint;
use gristmill_formats::container::PackedFile;
use gristmill_formats::source::ModelSource;
use gristmill_runtime::text::{Sampler, SamplerConfig, TextStream, Tokenizer};
use gristmill_runtime::{Engine, EngineConfig, Model};

const MAX_TOKENS: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("usage: generate MODEL PROMPT".into());
    };
    let path = Path::new(&path);
    let source: Arc<dyn ModelSource> = match path.is_dir() {
        true => Arc::new(HfCheckpoint::open(path)?),
        false => Arc::new(PackedFile::open(path)?),
    };
    let data = source.tokenizer()?.ok_or("the model has no tokenizer")?;
    let tokenizer = Tokenizer::from_data(&data, source.text())?;
    let model = Arc::new(Model::load(source.clone())?);
    let vocab_size = model.spec().vocab_size as usize;
    let mut engine = Engine::new(model, &EngineConfig::default())?;
    let mut sampler = Sampler::new(SamplerConfig::from_defaults(source.generation()), vocab_size)?;

    let ids = tokenizer.encode(&prompt, true)?;
    let mut id = sampler.sample(engine.prefill(&ids)?);
    let mut text = TextStream::new(&tokenizer, true);
    for _ in 0..MAX_TOKENS {
        if source.text().stop_ids.contains(&id) || engine.position() == engine.context() {
            break;
        }
        print!("{}", text.push(id)?);
        std::io::stdout().flush()?;
        sampler.accept(id);
        id = sampler.sample(engine.decode(id)?);
    }
    println!("{}", text.finish()?);
    Ok(())
}
