//! Text of tokens as they come.
//!
//! A token may hold part of a character, and what a token's text is may depend on the ones before
//! it (SentencePiece vocabularies drop the blank at the very beginning). [`TextStream`] hands out
//! whole characters as soon as they are certain; everything it hands out, joined, is the decoded
//! text.
//!
//! - Byte-level vocabularies: tokens are bytes. Bytes that do not yet complete a character wait;
//!   this is exact for every sequence of ids, as replacement of invalid UTF-8 looks ahead no
//!   further.
//! - All others: a short window of earlier ids is decoded with and without the new one, and the
//!   difference is the new text. While the text ends in U+FFFD, which is how decoders show half a
//!   character, it waits. A run of byte tokens that is not UTF-8 as a whole is turned into U+FFFD
//!   entirely by the decoder, but its valid beginning has been handed out by then; only such text
//!   differs from decoding everything at once.

use super::{TextError, Tokenizer};

/// Most ids that wait for a character to complete. Characters have at most four bytes; a longer
/// wait means that U+FFFD is what the text says.
const MAX_WAITING_IDS: usize = 16;

/// Turns ids into text, one by one.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// What the last call handed out.
    piece: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Bytes that do not complete a character yet: at most three between calls.
    Bytes(Vec<u8>),
    Window {
        /// Earlier ids for context, then those that wait.
        ids: Vec<u32>,
        /// How many of `ids` have been handed out.
        done: usize,
        /// Decoded text of `ids[..done]`.
        context: String,
    },
}

impl<'a> TextStream<'a> {
    /// A stream at the beginning of a text. With `skip_special`, special tokens have no text.
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        let state = if tokenizer.is_byte_level() {
            State::Bytes(Vec::new())
        } else {
            State::Window { ids: Vec::new(), done: 0, context: String::new() }
        };
        Self { tokenizer, skip_special, piece: String::new(), state }
    }

    /// The text that `id` completes: whole characters, often none. Valid until the next call.
    ///
    /// # Errors
    /// [`TextError::Decode`] when the checkpoint's decoder refuses the tokens.
    pub fn push(&mut self, id: u32) -> Result<&str, TextError> {
        self.piece.clear();
        // As decoding passes over them, they are no context either.
        let Some(spelling) = self.tokenizer.spelling(id) else { return Ok("") };
        if self.skip_special && self.tokenizer.is_special_text(&spelling) {
            return Ok("");
        }
        match &mut self.state {
            State::Bytes(pending) => {
                push_bytes(pending, &spelling);
                emit_complete(pending, &mut self.piece);
            }
            State::Window { ids, done, context } => {
                ids.push(id);
                let text = self.tokenizer.decode(ids, self.skip_special)?;
                if text.ends_with('\u{fffd}') && ids.len() - *done < MAX_WAITING_IDS {
                    return Ok("");
                }
                self.piece.push_str(&text[common_len(context, &text)..]);
                let recent = self.tokenizer.decode(&ids[*done..], self.skip_special)?;
                // Context must have text: a decoder strips the beginning of what it is given.
                if recent.is_empty() {
                    *context = text;
                } else {
                    ids.drain(..*done);
                    *context = recent;
                }
                *done = ids.len();
            }
        }
        Ok(&self.piece)
    }

    /// What still waits, with U+FFFD for a character that was not completed. The stream is then at
    /// the beginning of a new text.
    ///
    /// # Errors
    /// [`TextError::Decode`] when the checkpoint's decoder refuses the tokens.
    pub fn finish(&mut self) -> Result<&str, TextError> {
        self.piece.clear();
        match &mut self.state {
            State::Bytes(pending) => {
                self.piece.push_str(&String::from_utf8_lossy(pending));
                pending.clear();
            }
            State::Window { ids, done, context } => {
                if ids.len() > *done {
                    let text = self.tokenizer.decode(ids, self.skip_special)?;
                    self.piece.push_str(&text[common_len(context, &text)..]);
                }
                ids.clear();
                *done = 0;
                context.clear();
            }
        }
        Ok(&self.piece)
    }
}

/// Length of the longest common beginning in whole characters: all of `context` but for runs of
/// byte tokens that turned out invalid.
fn common_len(context: &str, text: &str) -> usize {
    if text.starts_with(context) {
        return context.len();
    }
    let same = context.chars().zip(text.chars()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// Appends the bytes that a byte-level token spells; a token that is not in that alphabet (an added
/// one) stands for its own text.
fn push_bytes(pending: &mut Vec<u8>, spelling: &str) {
    let start = pending.len();
    for c in spelling.chars() {
        match byte_of(c) {
            Some(byte) => pending.push(byte),
            None => {
                pending.truncate(start);
                pending.extend_from_slice(spelling.as_bytes());
                return;
            }
        }
    }
}

/// The byte that a character of the byte-level alphabet stands for: printable Latin-1 characters
/// stand for themselves, the others take U+0100 and up in order.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        c @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(c as u8),
        c @ 0x100..=0x120 => Some((c - 0x100) as u8),
        c @ 0x121..=0x142 => Some((c - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Moves the complete characters of `pending` to `piece`, with U+FFFD for what can be none.
fn emit_complete(pending: &mut Vec<u8>, piece: &mut String) {
    let mut start = 0;
    for chunk in pending.utf8_chunks() {
        piece.push_str(chunk.valid());
        start += chunk.valid().len();
        let invalid = chunk.invalid();
        let rest = &pending[start..];
        let incomplete = invalid.len() == rest.len()
            && std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
        if incomplete {
            break;
        }
        if !invalid.is_empty() {
            piece.push('\u{fffd}');
        }
        start += invalid.len();
    }
    pending.drain(..start);
}

#[cfg(test)]
mod tests;
