//! Text to token ids and back.

use gristmill_formats::source::{SpecialToken, TextAssets};
use gristmill_formats::tokenizer::TokenizerData;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper};

use super::TextError;

/// A tokenizer as the checkpoint defines it.
///
/// It never truncates or pads, whatever `tokenizer.json` says: those settings belong to training
/// batches.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    vocab_size: usize,
    adds_bos: bool,
    byte_level: bool,
}

/// An element of `added_tokens`.
#[derive(Deserialize)]
struct DeclaredToken {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

fn invalid(error: impl ToString) -> TextError {
    TextError::InvalidTokenizer(error.to_string())
}

impl Tokenizer {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// [`TextError::InvalidTokenizer`] when a part is missing, malformed or contradicts another,
    /// and [`TextError::AddedTokenId`] when an added token would not get its declared id.
    pub fn from_data(data: &TokenizerData, text: &TextAssets) -> Result<Self, TextError> {
        let mut json: Value = serde_json::from_str(&data.json).map_err(invalid)?;
        let added: Vec<DeclaredToken> = match json.get_mut("added_tokens").map(Value::take) {
            None | Some(Value::Null) => Vec::new(),
            Some(tokens) => serde_json::from_value(tokens).map_err(invalid)?,
        };
        check(&json)?;
        // The library builds every part from the JSON it knows, only without the large tables.
        json["added_tokens"] = Value::Array(Vec::new());
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        let mut inner = tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(invalid)?;
        if data.is_compact() {
            let ModelWrapper::BPE(options) = inner.get_model() else {
                return Err(invalid("merges are given for a model that is not byte-pair"));
            };
            let bpe = byte_pair(data, options)?;
            inner.with_model(bpe);
        }
        add_tokens(&mut inner, added)?;
        let vocab_size = ids_len(&inner, data);
        let byte_level = match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(sequence)) => {
                matches!(sequence.get_decoders(), [DecoderWrapper::ByteLevel(_)])
            }
            _ => false,
        };
        let (bos, eos) = (text.bos.clone(), text.eos.clone());
        let mut tokenizer = Self { inner, bos, eos, vocab_size, adds_bos: false, byte_level };
        tokenizer.adds_bos = match tokenizer.bos_id() {
            Some(bos) => tokenizer.encode("", true)?.first() == Some(&bos),
            None => false,
        };
        Ok(tokenizer)
    }

    /// Token ids of a text. With `add_special`, what the checkpoint puts around every input (often
    /// a beginning-of-sequence token) is added; a rendered chat brings its own and wants `false`.
    ///
    /// Special tokens that are spelled in the text become those tokens.
    ///
    /// # Errors
    /// [`TextError::Encode`] when the model has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        match self.inner.encode_fast(text, add_special) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(TextError::Encode(error.to_string())),
        }
    }

    /// The text of token ids. Ids beyond the vocabulary are passed over. For one id after another
    /// use [`TextStream`](super::TextStream).
    ///
    /// # Errors
    /// [`TextError::Decode`] when the checkpoint's decoder refuses the tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.inner.decode(ids, skip_special).map_err(|e| TextError::Decode(e.to_string()))
    }

    /// The vocabulary's spelling of a token (byte-level vocabularies spell a blank `Ġ`), for
    /// display.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token by the vocabulary's spelling.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Number of ids: one more than the largest. A model's logits may be wider, for alignment.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Beginning-of-sequence token.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// Id of the beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos.as_ref().map(|token| token.id)
    }

    /// End-of-sequence token.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// Id of the end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos.as_ref().map(|token| token.id)
    }

    /// Whether [`encode`](Self::encode) with special tokens puts the beginning-of-sequence token
    /// first.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether a token is special: control, not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.spelling(id).is_some_and(|text| self.is_special_text(&text))
    }

    /// Whether what [`spelling`](Self::spelling) gives is that of a special token.
    pub(super) fn is_special_text(&self, spelling: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(spelling)
    }

    /// What the decoder is given for a token.
    pub(super) fn spelling(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary().simple_id_to_token(id);
        added.or_else(|| self.inner.id_to_token(id))
    }

    /// Whether tokens spell bytes and decoding is nothing but joining them.
    pub(super) fn is_byte_level(&self) -> bool {
        self.byte_level
    }
}

/// The byte-pair model with the options of `options` and the tables of `data`.
fn byte_pair(data: &TokenizerData, options: &BPE) -> Result<BPE, TextError> {
    let prefix = options.continuing_subword_prefix.as_deref().unwrap_or("");
    let max_len = data.vocab.iter().map(String::len).max().unwrap_or(0);
    let text = |id: u32| {
        data.vocab.get(id as usize).ok_or_else(|| invalid(format!("a merge uses token {id}")))
    };
    let mut merges = Vec::with_capacity(data.merges.len());
    for &(left, right) in &data.merges {
        let (left, right) = (text(left)?, text(right)?);
        check_merge(left, right, prefix, max_len)?;
        merges.push((left.clone(), right.clone()));
    }
    let vocab = data.vocab.iter().enumerate().map(|(id, text)| (text.clone(), id as u32));
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab.collect::<Vocab>(), merges)
        .fuse_unk(options.fuse_unk)
        .byte_fallback(options.byte_fallback)
        .ignore_merges(options.ignore_merges);
    if let Some(dropout) = options.dropout {
        builder = builder.dropout(dropout);
    }
    if let Some(token) = &options.unk_token {
        builder = builder.unk_token(token.clone());
    }
    if let Some(prefix) = &options.continuing_subword_prefix {
        builder = builder.continuing_subword_prefix(prefix.clone());
    }
    if let Some(suffix) = &options.end_of_word_suffix {
        builder = builder.end_of_word_suffix(suffix.clone());
    }
    builder.build().map_err(invalid)
}

/// The library indexes by these lengths without looking.
fn check_merge(left: &str, right: &str, prefix: &str, max_len: usize) -> Result<(), TextError> {
    match right.get(prefix.len()..) {
        Some(rest) if left.len() + rest.len() <= max_len => Ok(()),
        _ => Err(invalid(format!("merge `{left}` `{right}` spells no token"))),
    }
}

/// Refuses what makes the library panic instead of failing.
fn check(json: &Value) -> Result<(), TextError> {
    let model = json.get("model").ok_or_else(|| invalid("it has no `model`"))?;
    if let (Some(Value::Object(vocab)), Some(Value::Array(merges))) =
        (model.get("vocab"), model.get("merges"))
    {
        let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("");
        let max_len = vocab.keys().map(String::len).max().unwrap_or(0);
        for merge in merges {
            let pair = match merge {
                Value::String(line) => line.split_once(' '),
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(left), Value::String(right)] => Some((&**left, &**right)),
                    _ => None,
                },
                _ => None,
            };
            // What is no pair, or uses no token, the library refuses by itself.
            if let Some((left, right)) = pair
                && vocab.contains_key(left)
                && vocab.contains_key(right)
            {
                check_merge(left, right, prefix, max_len)?;
            }
        }
    }
    check_decoder(json.get("decoder").unwrap_or(&Value::Null))
}

/// Stripping the end of tokens panics on tokens shorter than the strip.
fn check_decoder(decoder: &Value) -> Result<(), TextError> {
    let strips_end = decoder.get("type").and_then(Value::as_str) == Some("Strip")
        && decoder.get("stop").and_then(Value::as_u64) != Some(0);
    if strips_end {
        return Err(invalid("decoders that strip the end of a text are not supported"));
    }
    let inner = decoder.get("decoders").and_then(Value::as_array);
    inner.into_iter().flatten().try_for_each(check_decoder)
}

fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    declared: Vec<DeclaredToken>,
) -> Result<(), TextError> {
    let ids: Vec<_> =
        declared.iter().map(|added| (added.token.content.clone(), added.id)).collect();
    inner.add_tokens(declared.into_iter().map(|added| added.token)).map_err(invalid)?;
    for (text, declared) in ids {
        match inner.token_to_id(&text) {
            Some(actual) if actual != declared => {
                return Err(TextError::AddedTokenId { text, declared, actual });
            }
            _ => {}
        }
    }
    Ok(())
}

/// One more than the largest id.
fn ids_len(inner: &tokenizers::Tokenizer, data: &TokenizerData) -> usize {
    let added = inner.get_added_vocabulary().get_added_tokens_decoder().keys().max();
    let added = added.map_or(0, |id| *id as usize + 1);
    let model = if data.is_compact() {
        data.vocab.len()
    } else {
        inner.get_vocab(false).values().max().map_or(0, |id| *id as usize + 1)
    };
    model.max(added)
}

#[cfg(test)]
pub(in crate::text) mod tests;
