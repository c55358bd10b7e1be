//! Writing and reading the section; the layout is in the module documentation above.

use std::io::Read;

use super::texts::Texts;
use super::{TokenizerData, merges};
use crate::limits::{MAX_TOKENIZER_BYTES, MAX_TOKENIZER_SECTION_BYTES, MAX_VOCAB};
use crate::{FormatError, Result};

const VERSION: u8 = 1;
const STORED: u8 = 0;
const BROTLI: u8 = 1;
const HEADER_BYTES: usize = 40;
const BODY_HEADER_BYTES: usize = 20;
const MERGE_BYTES: usize = 6;
/// Most that decompression may multiply a stream's length by.
const MAX_EXPANSION: usize = 64;
/// Most bytes of token text for a byte of body.
const MAX_TEXT_PER_BODY_BYTE: usize = 16;
/// Log2 of brotli's largest standard window.
const BROTLI_WINDOW_BITS: i32 = 24;

fn corrupt(detail: impl Into<String>) -> FormatError {
    FormatError::Corrupt { what: "tokenizer".into(), detail: detail.into() }
}

pub(super) fn write(data: &TokenizerData) -> Vec<u8> {
    let body = write_body(data);
    let compressed = compress(&body);
    let (method, stream) = match &compressed {
        Some(stream) if stream.len() < body.len() && body.len() <= expanded(stream.len()) => {
            (BROTLI, stream)
        }
        _ => (STORED, &body),
    };
    let digest = blake3::Hash::from_hex(&data.source_blake3).map_or([0; 32], Into::into);
    let mut section = Vec::with_capacity(HEADER_BYTES + stream.len());
    section.extend_from_slice(&[VERSION, method, 0, 0]);
    section.extend_from_slice(&digest);
    section.extend_from_slice(&(body.len() as u32).to_le_bytes());
    section.extend_from_slice(stream);
    section
}

/// Largest body that a stream of `len` bytes may hold.
fn expanded(len: usize) -> usize {
    len.saturating_mul(MAX_EXPANSION)
}

fn compress(body: &[u8]) -> Option<Vec<u8>> {
    let params = brotli::enc::BrotliEncoderParams {
        quality: 11,
        lgwin: BROTLI_WINDOW_BITS,
        size_hint: body.len(),
        ..Default::default()
    };
    let mut stream = Vec::new();
    brotli::BrotliCompress(&mut &body[..], &mut stream, &params).ok()?;
    Some(stream)
}

fn write_body(data: &TokenizerData) -> Vec<u8> {
    let prefix_len = if data.is_compact() { data.prefix_len() } else { 0 };
    let derived = merges::index(&data.vocab)
        .and_then(|ids| merges::results(&data.vocab, &data.merges, prefix_len, &ids))
        .map(|results| merges::explicit(data.vocab.len(), &data.merges, &results));
    let all = vec![true; data.vocab.len()];
    let text_bytes: usize = data.vocab.iter().map(String::len).sum();
    match derived.map(|explicit| body_with(data, prefix_len, &explicit)) {
        // Half of what the reader allows: it spells a merge's text before it finds that it knows
        // it.
        Some(body) if text_bytes <= body.len() * MAX_TEXT_PER_BODY_BYTE / 2 => body,
        // Texts far longer than their merges are stored, so that the bound always holds.
        _ => body_with(data, prefix_len, &all),
    }
}

fn body_with(data: &TokenizerData, prefix_len: usize, explicit: &[bool]) -> Vec<u8> {
    let stored = || data.vocab.iter().zip(explicit).filter(|(_, e)| **e).map(|(text, _)| text);
    let text_len: usize = stored().map(String::len).sum();
    let mut body = Vec::with_capacity(data.json.len() + text_len + data.merges.len() * MERGE_BYTES);
    for count in [data.json.len(), data.vocab.len(), data.merges.len(), prefix_len, text_len] {
        body.extend_from_slice(&(count as u32).to_le_bytes());
    }
    body.extend_from_slice(data.json.as_bytes());
    for ids in explicit.chunks(8) {
        body.push(ids.iter().enumerate().fold(0, |byte, (bit, e)| byte | (u8::from(*e) << bit)));
    }
    for text in stored() {
        push_leb128(&mut body, text.len() as u32);
    }
    for text in stored() {
        body.extend_from_slice(text.as_bytes());
    }
    for shift in [0, 8, 16] {
        body.extend(data.merges.iter().map(|(left, _)| (left >> shift) as u8));
    }
    for shift in [0, 8, 16] {
        body.extend(data.merges.iter().map(|(_, right)| (right >> shift) as u8));
    }
    body
}

fn push_leb128(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

pub(super) fn read(section: &[u8]) -> Result<TokenizerData> {
    if section.len() as u64 > MAX_TOKENIZER_SECTION_BYTES {
        return Err(corrupt(format!(
            "{} bytes, at most {MAX_TOKENIZER_SECTION_BYTES} are allowed",
            section.len()
        )));
    }
    let Some((header, stream)) = section.split_first_chunk::<HEADER_BYTES>() else {
        return Err(corrupt(format!("{} bytes, its header has {HEADER_BYTES}", section.len())));
    };
    let [version, method, zero @ ..] = [header[0], header[1], header[2], header[3]];
    if version != VERSION {
        return Err(corrupt(format!("version {version}, this reader knows {VERSION}")));
    }
    if zero != [0, 0] {
        return Err(corrupt("reserved bytes are not zero"));
    }
    let digest: [u8; 32] = header[4..36].try_into().unwrap_or_default();
    let body_len = u32::from_le_bytes([header[36], header[37], header[38], header[39]]) as usize;
    if body_len > MAX_TOKENIZER_BYTES {
        return Err(corrupt(format!("body of {body_len} bytes, at most {MAX_TOKENIZER_BYTES}")));
    }
    let (json, (vocab, merges)) = match method {
        STORED if stream.len() == body_len => read_body(stream)?,
        STORED => return Err(corrupt("the stored body has another length than the header says")),
        BROTLI => read_body(&decompress(stream, body_len)?)?,
        other => return Err(corrupt(format!("unknown method {other}"))),
    };
    let source_blake3 = blake3::Hash::from(digest).to_hex().to_string();
    Ok(TokenizerData { json, vocab, merges, source_blake3 })
}

fn decompress(stream: &[u8], body_len: usize) -> Result<Vec<u8>> {
    if body_len > expanded(stream.len()) {
        return Err(corrupt(format!("{} bytes cannot hold {body_len}", stream.len())));
    }
    // The first seven bits 0010001 announce windows up to 1 GiB, which this format does not use.
    if stream.first().is_some_and(|first| first & 0x7f == 0x11) {
        return Err(corrupt("brotli's large-window extension is not allowed"));
    }
    let bad = |e: std::io::Error| corrupt(format!("brotli stream: {e}"));
    let mut reader = brotli::Decompressor::new(stream, 4096);
    let mut body = Vec::new();
    // Grows with what really comes out, whatever the header promises.
    (&mut reader).take(body_len as u64).read_to_end(&mut body).map_err(bad)?;
    let mut extra = [0];
    // The second read makes the decoder look for input after the end of the stream.
    let more = reader.read(&mut extra).map_err(bad)? + reader.read(&mut extra).map_err(bad)?;
    if body.len() != body_len || more != 0 || !reader.get_ref().is_empty() {
        return Err(corrupt("the brotli stream does not hold what the header says"));
    }
    Ok(body)
}

/// Cuts fields off the front of the body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        match self.0.split_at_checked(len) {
            Some((field, rest)) => {
                self.0 = rest;
                Ok(field)
            }
            None => Err(corrupt(format!("{len} bytes expected, {} are left", self.0.len()))),
        }
    }

    fn text(&mut self, len: usize) -> Result<&'a str> {
        std::str::from_utf8(self.take(len)?).map_err(|e| corrupt(e.to_string()))
    }

    fn leb128(&mut self) -> Result<usize> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                if value > u64::from(u32::MAX) || (byte == 0 && shift > 0) {
                    break;
                }
                return Ok(value as usize);
            }
        }
        Err(corrupt("a length is not in its shortest form or over 32 bits"))
    }
}

fn read_body(body: &[u8]) -> Result<(String, merges::Tables)> {
    let mut fields = Fields(body);
    let header = fields.take(BODY_HEADER_BYTES)?;
    let mut counts = [0; 5];
    for (count, bytes) in counts.iter_mut().zip(header.chunks_exact(4)) {
        *count = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    }
    let [json_len, vocab_len, merges_len, prefix_len, text_len] = counts;
    if vocab_len > MAX_VOCAB as usize {
        return Err(corrupt(format!("vocabulary of {vocab_len}, at most {MAX_VOCAB}")));
    }
    let json = fields.text(json_len)?;
    let bitmap = fields.take(vocab_len.div_ceil(8))?;
    let explicit = |id: usize| bitmap[id / 8] >> (id % 8) & 1 == 1;
    if (vocab_len..bitmap.len() * 8).any(explicit) {
        return Err(corrupt("the bitmap marks ids that are not in the vocabulary"));
    }
    // A length for each explicit token and a merge for each derived one: checked before anything is
    // allocated for the vocabulary.
    let explicit_len: usize = bitmap.iter().map(|byte| byte.count_ones() as usize).sum();
    let rest = fields.0.len();
    if merges_len > rest / MERGE_BYTES
        || explicit_len > rest
        || vocab_len - explicit_len > merges_len
    {
        return Err(corrupt("more tokens than the body has room for"));
    }
    let mut lengths = Vec::with_capacity(explicit_len);
    for _ in 0..explicit_len {
        lengths.push(fields.leb128()?);
    }
    let text = fields.text(text_len)?;
    let planes = fields.take(merges_len * MERGE_BYTES)?;
    if !fields.0.is_empty() {
        return Err(corrupt(format!("{} bytes after the merges", fields.0.len())));
    }

    let mut texts = Texts::new(text.to_owned(), vocab_len);
    let mut start = 0usize;
    for (id, len) in (0..vocab_len).filter(|&id| explicit(id)).zip(lengths) {
        let end = start.saturating_add(len);
        if !texts.insert(id as u32, start, end) {
            return Err(corrupt(format!("the text of token {id} is cut, too long or not new")));
        }
        start = end;
    }
    if start != text_len {
        return Err(corrupt("texts and their lengths disagree"));
    }

    let plane = |n: usize, at: usize| u32::from(planes[n * merges_len + at]);
    let id_at = |n, at| plane(n, at) | plane(n + 1, at) << 8 | plane(n + 2, at) << 16;
    let merges: Vec<_> = (0..merges_len).map(|at| (id_at(0, at), id_at(3, at))).collect();
    let max_bytes = text_len + body.len().saturating_mul(MAX_TEXT_PER_BODY_BYTE);
    let max_bytes = max_bytes.min(MAX_TOKENIZER_BYTES);
    let mut derived = (0..vocab_len as u32).filter(|&id| !explicit(id as usize)).peekable();
    for (rank, &(left, right)) in merges.iter().enumerate() {
        let next = derived.peek().copied();
        match texts.merge(left, right, prefix_len, next, max_bytes) {
            Ok(true) => drop(derived.next()),
            Ok(false) => {}
            Err(detail) => return Err(corrupt(format!("merge {rank}: {detail}"))),
        }
    }
    let vocab = texts.into_vec().ok_or_else(|| corrupt("a token has no text"))?;
    Ok((json.to_owned(), (vocab, merges)))
}
