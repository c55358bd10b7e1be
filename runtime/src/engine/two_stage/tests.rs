use std::sync::Arc;

use gristmill_formats::SharedBytes;
use gristmill_formats::codec::{BLOCK_COLS, Codec, CodecId, PANEL_ROWS, QuantizedRow, block_count};
use gristmill_formats::model::{ModelSpec, NormSpec};
use gristmill_formats::source::{GenerationDefaults, Layout, ModelSource, TensorData, TextAssets};
use gristmill_formats::tokenizer::TokenizerData;
use proptest::prelude::*;

use crate::{Engine, EngineConfig, Head, Isa, Model, Result};

/// A model without layers: logits of a token are the products of its normed embedding with all embeddings.
#[derive(Debug)]
struct HeadOnly {
    spec: ModelSpec,
    embed: TensorData,
    gain: TensorData,
    text: TextAssets,
    generation: GenerationDefaults,
}

impl ModelSource for HeadOnly {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn tensor(&self, name: &str) -> gristmill_formats::Result<TensorData> {
        Ok(if name == "embed" { self.embed.clone() } else { self.gain.clone() })
    }
    fn tokenizer(&self) -> gristmill_formats::Result<Option<TokenizerData>> {
        Ok(None)
    }
    fn text(&self) -> &TextAssets {
        &self.text
    }
    fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }
    fn file_bytes(&self) -> u64 {
        self.embed.bytes.len() as u64
    }
    fn fingerprint(&self) -> String {
        "head-only".into()
    }
}

#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    rows: usize,
    cols: usize,
    codec: CodecId,
    layout: Layout,
    /// Size of the rows that are huge; 1e18 is beyond the norms that are bounded.
    huge: f32,
    /// Power of ten of the activations.
    magnitude: i32,
    softcap: Option<f32>,
    top: usize,
    threads: usize,
    isa: Isa,
}

fn cases() -> impl Strategy<Value = Case> {
    let codecs = vec![
        (CodecId::F32, Layout::RowMajor),
        (CodecId::F32, Layout::Panels),
        (CodecId::Bf16, Layout::RowMajor),
        (CodecId::Bf16, Layout::Panels),
        (CodecId::F16, Layout::Panels),
        (CodecId::Q8, Layout::Panels),
    ];
    let shape = (1..300usize, 1..150usize, prop::sample::select(vec![1e3f32, 1e18]));
    let x = (-25..=12i32, prop::option::of(prop::sample::select(vec![0.5f32, 30.0])));
    let search = (1..40usize, 1..4usize);
    let isas = prop::sample::select(Isa::available().collect::<Vec<_>>());
    (any::<u64>(), shape, prop::sample::select(codecs), x, search, isas).prop_map(
        |(seed, (rows, cols, huge), (codec, layout), (magnitude, softcap), (top, threads), isa)| {
            Case {
                seed,
                rows,
                cols,
                codec,
                layout,
                huge: if codec == CodecId::F16 { 1e3 } else { huge },
                magnitude,
                softcap,
                top,
                threads,
                isa,
            }
        },
    )
}

/// Numbers of a seed.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Bell-shaped, of about unit size.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0).sum()
    }
}

/// Row `row` in place: most are ordinary; some are zero, huge, tiny, spiked, or equal or close to an
/// earlier one.
fn fill(rows: &mut [f32], row: usize, cols: usize, huge: f32, random: &mut Random) {
    let (before, rest) = rows.split_at_mut(row * cols);
    let to = &mut rest[..cols];
    to.fill_with(|| random.normal());
    let other = random.below(row.max(1));
    let earlier = before.get(other * cols..(other + 1) * cols);
    match (random.below(12), earlier) {
        (0, _) => to.fill(0.0),
        (1, _) => to.iter_mut().for_each(|x| *x *= huge),
        (2, _) => to.iter_mut().for_each(|x| *x /= huge),
        (3, _) => to[random.below(cols)] = 1e3,
        (4 | 5, Some(earlier)) => to.copy_from_slice(earlier),
        (6 | 7, Some(earlier)) => {
            to.copy_from_slice(earlier);
            let at = random.below(cols);
            to[at] *= 1.001;
        }
        _ => {}
    }
}

fn tensor(case: &Case, random: &mut Random) -> TensorData {
    let Case { rows, cols, layout, .. } = *case;
    let codec = match case.codec {
        CodecId::F32 => Codec::F32,
        CodecId::Bf16 => Codec::Bf16,
        CodecId::F16 => Codec::F16,
        _ => Codec::Q8,
    };
    let mut values = vec![0.0; rows * cols];
    (0..rows).for_each(|row| fill(&mut values, row, cols, case.huge, random));
    let bytes = match (codec.id().is_dense(), layout) {
        (true, Layout::RowMajor) => codec.encode_linear(&values),
        _ => {
            let mut bytes = Vec::new();
            for rows in values.chunks(PANEL_ROWS * cols) {
                let mut panel = vec![0; codec.panel_bytes(cols)];
                if codec.id().is_dense() {
                    codec.encode_dense_panel(rows, cols, &mut panel);
                } else {
                    let rows: Vec<_> = rows.chunks(cols).map(round_q8).collect();
                    codec.pack_panel(&rows, cols, &mut panel);
                }
                bytes.extend(panel);
            }
            bytes
        }
    };
    let shape = vec![rows as u64, cols as u64];
    TensorData { shape, codec, layout, bytes: SharedBytes::from_vec(bytes) }
}

/// One scale for all blocks but the odd ones, which have half of it.
fn round_q8(row: &[f32]) -> QuantizedRow {
    let absmax = row.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
    let row_scale = half::bf16::from_f32(absmax / (127.0 * 100.0));
    let block_scales: Vec<u8> = (0..block_count(row.len())).map(|b| 100 >> (b % 2)).collect();
    let code = |(col, x): (usize, &f32)| {
        let scale = row_scale.to_f32() * f32::from(block_scales[col / BLOCK_COLS]);
        (x / scale).round().clamp(-127.0, 127.0) as i8 as u8
    };
    let mut codes: Vec<u8> = row.iter().enumerate().map(code).collect();
    codes.resize(block_scales.len() * BLOCK_COLS, 0);
    QuantizedRow { row_scale, block_scales, codes }
}

fn model(case: &Case, head: Head) -> Result<Model> {
    let mut random = Random(case.seed);
    let embed = tensor(case, &mut random);
    let size = 10f32.powi(case.magnitude);
    // A few activations are much larger than the others.
    let gain = (0..case.cols).map(|_| size * [1.0, 1.0, 1.0, 50.0][random.below(4)]);
    let gain = TensorData {
        shape: vec![case.cols as u64],
        codec: Codec::F32,
        layout: Layout::RowMajor,
        bytes: SharedBytes::from_vec(gain.flat_map(f32::to_le_bytes).collect()),
    };
    let spec = ModelSpec {
        architecture: "head-only".into(),
        vocab_size: case.rows as u32,
        d_model: case.cols as u32,
        max_context: 8,
        embedding_scale: 1.0,
        tied_head: true,
        logit_softcap: case.softcap,
        final_norm: NormSpec { eps: 1e-5, plus_one: false },
        layers: vec![],
    };
    let (text, generation) = Default::default();
    let mut model = Model::load(Arc::new(HeadOnly { spec, embed, gain, text, generation }))?;
    model.set_head(head, 2)?;
    Ok(model)
}

fn engine(case: &Case, head: Head) -> Engine {
    let config = EngineConfig {
        threads: Some(case.threads),
        isa: Some(case.isa),
        ..EngineConfig::default()
    };
    Engine::new(Arc::new(model(case, head).expect("a model")), &config).expect("an engine")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_largest_logits_are_those_of_the_full_head(case in cases()) {
        let (mut full, mut staged) = (engine(&case, Head::Full), engine(&case, Head::TwoStage));
        for step in 0..4 {
            let token = (step * 7 % case.rows) as u32;
            let expected = full.decode(token).expect("a token").to_vec();
            prop_assert!(expected.iter().all(|x| !x.is_nan()), "the case is one with numbers");
            let found = staged.decode_top(token, case.top).expect("a token");
            let mut sorted = expected.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = sorted[case.top.min(sorted.len()) - 1];
            for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let skipped = *found == f32::NEG_INFINITY && *expected < least;
                let same = found.to_bits() == expected.to_bits();
                prop_assert!(same || skipped, "row {row}: {found:e}, not {expected:e}");
            }
        }
        prop_assert_eq!(staged.head_use().tokens, 4, "in two stages");
    }
}

/// An ordinary head of 4096 rows.
fn ordinary(codec: CodecId) -> Case {
    Case {
        seed: 1,
        rows: 4096,
        cols: 128,
        codec,
        layout: Layout::Panels,
        huge: 1e3,
        magnitude: 0,
        softcap: None,
        top: 1,
        threads: 2,
        isa: Isa::detect(),
    }
}

#[test]
fn few_panels_are_in_doubt() {
    for codec in [CodecId::F32, CodecId::Bf16, CodecId::F16, CodecId::Q8] {
        let mut engine = engine(&ordinary(codec), Head::TwoStage);
        for token in 0..8 {
            engine.decode_top(token, 1).expect("a token");
        }
        let share = engine.model().fine_head_share(engine.head_use()).expect("tokens were decoded");
        assert!(share < 0.5, "{codec}: {share}");
    }
}

#[test]
fn what_cannot_be_bounded_is_computed_in_full() {
    let all = |case: &Case, top: usize| {
        let mut staged = engine(case, Head::TwoStage);
        let found = staged.decode_top(5, top).expect("a token").to_vec();
        assert_eq!(staged.head_use().tokens, 0);
        let expected = engine(case, Head::Full).decode(5).expect("a token").to_vec();
        assert_eq!(found, expected);
    };
    all(&ordinary(CodecId::Q8), Engine::MAX_TOP + 1);
    all(&Case { magnitude: 17, ..ordinary(CodecId::Q8) }, 1);
}
