//! Any bytes as a tokenizer section. An odd first byte wraps the rest as a stored body, which spares
//! the fuzzer the outer lengths.
#![no_main]

use gristmill_formats::tokenizer::TokenizerData;
use gristmill_fuzz::budget;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    if kind % 2 == 0 {
        // A compressed body may be 4096 times as long; the memory limit of the run holds it.
        let _ = TokenizerData::from_section(data);
        return;
    }
    let mut section = vec![1, 0, 0, 0];
    section.extend([0; 32]);
    section.extend((data.len() as u32).to_le_bytes());
    section.extend_from_slice(data);
    budget::within(section.len(), 256, || {
        let Ok(tokenizer) = TokenizerData::from_section(&section) else { return };
        let texts: usize = tokenizer.vocab.iter().map(String::len).sum();
        assert!(texts <= section.len() * 17);
        let known = |id: u32| (id as usize) < tokenizer.vocab.len();
        assert!(tokenizer.merges.iter().all(|&(left, right)| known(left) && known(right)));
    });
});
