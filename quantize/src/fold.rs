//! A model with the scales of its channels moved from where they are produced to where they are read
//! (see [`gristmill_formats::fold`]). It computes the same function from other weights.

use std::collections::HashMap;

use gristmill_formats::codec::Codec;
use gristmill_formats::fold::{FoldPair, FoldProducer};
use gristmill_formats::model::ModelSpec;
use gristmill_formats::source::{GenerationDefaults, Layout, ModelSource, TensorData, TextAssets};
use gristmill_formats::tokenizer::TokenizerData;
use gristmill_formats::{FormatError, SharedBytes};
use rayon::prelude::*;

/// What folding does to each tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Folds(HashMap<String, Change>);

/// What becomes of one tensor.
#[derive(Debug, Clone, Default, PartialEq)]
struct Change {
    /// Factors on the columns.
    columns: Option<Vec<f32>>,
    /// Divisors of the rows, or of the elements of a vector.
    outputs: Option<Vec<f32>>,
    /// What the stored elements are offset from.
    origin: f32,
}

impl Folds {
    /// Divides the producer's channels by `scales` and multiplies the consumers' by them.
    ///
    /// # Panics
    /// When there is not one scale per channel.
    pub fn add(&mut self, pair: &FoldPair, scales: &[f32]) {
        assert_eq!(scales.len(), pair.channels, "one scale per channel");
        let mut divide = |name: &String, origin: f32| {
            let change = self.0.entry(name.clone()).or_default();
            (change.outputs, change.origin) = (Some(scales.to_vec()), origin);
        };
        match &pair.producer {
            FoldProducer::Norm { gain, plus_one } => divide(gain, f32::from(u8::from(*plus_one))),
            FoldProducer::Linear { weight, bias } => {
                divide(weight, 0.0);
                bias.iter().for_each(|bias| divide(bias, 0.0));
            }
        }
        for name in &pair.consumers {
            let columns = (0..pair.columns()).map(|c| scales[pair.channel(c)]).collect();
            self.0.entry(name.clone()).or_default().columns = Some(columns);
        }
    }

    /// Divides the elements of a vector, counted from `origin`; on top of what is done to it already.
    pub(crate) fn divide(&mut self, vector: &str, origin: f32, divisors: &[f32]) {
        let change = self.0.entry(vector.to_owned()).or_default();
        change.origin = origin;
        match &mut change.outputs {
            Some(before) => before.iter_mut().zip(divisors).for_each(|(b, d)| *b *= d),
            None => change.outputs = Some(divisors.to_vec()),
        }
    }

    /// Factors on the columns of a matrix; `None` when they stay.
    pub fn columns(&self, matrix: &str) -> Option<&[f32]> {
        self.0.get(matrix)?.columns.as_deref()
    }

    /// Divisors of the rows of a matrix; `None` when they stay.
    pub fn rows(&self, matrix: &str) -> Option<&[f32]> {
        self.0.get(matrix)?.outputs.as_deref()
    }
}

/// A source under [`Folds`]. Tensors are rescaled when they are asked for.
#[derive(Debug)]
pub struct FoldedSource<'a> {
    source: &'a dyn ModelSource,
    folds: Folds,
}

impl<'a> FoldedSource<'a> {
    /// Of a source.
    pub fn new(source: &'a dyn ModelSource, folds: Folds) -> Self {
        Self { source, folds }
    }

    /// What is done to it.
    pub fn folds(&self) -> &Folds {
        &self.folds
    }
}

impl Change {
    /// Row `r` of `data`, changed.
    fn row(&self, data: &TensorData, r: usize, row: &mut [f32]) {
        data.decode_row(r, row);
        if let Some(factors) = &self.columns {
            row.iter_mut().zip(factors).for_each(|(x, s)| *x *= s);
        }
        match &self.outputs {
            Some(divisors) if data.shape.len() == 1 => {
                let origin = self.origin;
                row.iter_mut().zip(divisors).for_each(|(x, s)| *x = (*x + origin) / s - origin);
            }
            Some(divisors) => row.iter_mut().for_each(|x| *x /= divisors[r]),
            None => {}
        }
    }
}

impl ModelSource for FoldedSource<'_> {
    fn spec(&self) -> &ModelSpec {
        self.source.spec()
    }

    fn tensor(&self, name: &str) -> Result<TensorData, FormatError> {
        let data = self.source.tensor(name)?;
        let Some(change) = self.folds.0.get(name) else { return Ok(data) };
        let row_bytes = data.cols() * size_of::<f32>();
        let mut bytes = vec![0u8; data.rows() * row_bytes];
        bytes.par_chunks_exact_mut(row_bytes.max(1)).enumerate().for_each_init(
            || vec![0.0f32; data.cols()],
            |row, (r, bytes)| {
                change.row(&data, r, row);
                let words = bytes.as_chunks_mut().0.iter_mut();
                words.zip(row).for_each(|(word, x)| *word = x.to_le_bytes());
            },
        );
        let bytes = SharedBytes::from_vec(bytes);
        Ok(TensorData { shape: data.shape, codec: Codec::F32, layout: Layout::RowMajor, bytes })
    }

    fn tokenizer(&self) -> Result<Option<TokenizerData>, FormatError> {
        self.source.tokenizer()
    }

    fn text(&self) -> &TextAssets {
        self.source.text()
    }

    fn generation(&self) -> &GenerationDefaults {
        self.source.generation()
    }

    fn file_bytes(&self) -> u64 {
        self.source.file_bytes()
    }

    fn fingerprint(&self) -> String {
        self.source.fingerprint()
    }
}
