//! The measurements on a small random model in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gristmill_eval::{
    BenchConfig, EarlierReport, EvalError, MAX_KV_KLD, PositionQuality, Protocol, QualityConfig,
    QualityReport, QualityVerdict, TextTokens, TokenPath, bench, choose_kv, quality,
};
use gristmill_formats::codec::Codec;
use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
    RopeScaling, RopeSpec,
};
use gristmill_formats::source::{GenerationDefaults, Layout, ModelSource, TensorData, TextAssets};
use gristmill_formats::tokenizer::TokenizerData;
use gristmill_formats::{FormatError, Progress, SharedBytes, Silent};
use gristmill_runtime::{Engine, EngineConfig, KvType, Model};

/// A model whose weights are made from its tensors' names.
#[derive(Debug)]
struct TinyModel {
    spec: ModelSpec,
    seed: u64,
    text: TextAssets,
    generation: GenerationDefaults,
}

impl TinyModel {
    fn load(seed: u64, vocab_size: u32) -> Arc<Model> {
        let norm = NormSpec { eps: 1e-5, plus_one: false };
        let block = |mixer| BlockSpec { pre_norm: norm, post_norm: None, mixer };
        let attention = AttentionSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            scale: 0.25,
            window: None,
            softcap: None,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            rope: Some(RopeSpec { base: 10_000.0, scaling: RopeScaling::None }),
        };
        let mlp = MlpSpec { d_ff: 96, activation: Activation::Silu, bias: false };
        let layer =
            LayerSpec { blocks: vec![block(Mixer::Attention(attention)), block(Mixer::Mlp(mlp))] };
        let spec = ModelSpec {
            architecture: "tiny".into(),
            vocab_size,
            d_model: 64,
            max_context: 256,
            embedding_scale: 1.0,
            tied_head: true,
            logit_softcap: None,
            final_norm: norm,
            layers: vec![layer.clone(), layer],
        };
        let (text, generation) = Default::default();
        let source = Self { spec, seed, text, generation };
        Arc::new(Model::load(Arc::new(source)).expect("a complete model"))
    }
}

impl ModelSource for TinyModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tensor(&self, name: &str) -> gristmill_formats::Result<TensorData> {
        let tensors = self.spec.tensors();
        let spec = tensors.into_iter().find(|t| t.name == name);
        let spec = spec.ok_or_else(|| FormatError::MissingTensor(name.into()))?;
        let count = spec.shape.iter().product::<u64>() as usize;
        // SplitMix64 from the digest of seed and name.
        let digest = blake3::hash(format!("{} {name}", self.seed).as_bytes());
        let mut state = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("8 bytes"));
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let vector = spec.shape.len() == 1;
        let values = (0..count).map(|_| if vector { 1.0 } else { 0.3 * uniform() });
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        Ok(TensorData {
            shape: spec.shape,
            codec: Codec::F32,
            layout: Layout::RowMajor,
            bytes: SharedBytes::from_vec(bytes),
        })
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
        self.spec.parameter_count() * 4
    }

    fn fingerprint(&self) -> String {
        format!("tiny-{}", self.seed)
    }
}

const VOCAB: u32 = 101;

fn engine(seed: u64, context: usize, kv: KvType, threads: usize) -> Engine {
    let config = EngineConfig {
        threads: Some(threads),
        context: Some(context),
        kv,
        ..EngineConfig::default()
    };
    Engine::new(TinyModel::load(seed, VOCAB), &config).expect("a small engine")
}

fn text(tokens: usize, bos: Option<u32>) -> TextTokens {
    let ids = (0..tokens as u32).map(|i| (i * i * 7 + i * 3) % VOCAB).collect();
    TextTokens::new(b"the text", ids, bos)
}

/// Loss of predicting `tokens[i + 1]` for each index, token by token and in double precision.
fn losses(engine: &mut Engine, tokens: &[u32]) -> Vec<f64> {
    engine.reset();
    let predict = |(i, &next): (usize, &u32)| {
        let logits = engine.decode(tokens[i]).expect("fits");
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        sum.ln() - f64::from(logits[next as usize])
    };
    tokens[1..].iter().enumerate().map(predict).collect()
}

#[test]
fn perplexity_is_that_of_the_protocol() {
    let (ctx, bos) = (40, Some(1));
    let text = text(130, bos);
    for protocol in Protocol::ALL {
        let mut engine = engine(1, 64, KvType::F32, 2);
        let mut expected = Vec::new();
        for w in 0..3 {
            let mut tokens = text.ids[w * ctx..(w + 1) * ctx].to_vec();
            match protocol {
                Protocol::Chunk => {
                    tokens[0] = 1;
                    expected.extend_from_slice(&losses(&mut engine, &tokens)[ctx / 2..]);
                }
                Protocol::Window => expected.extend(losses(&mut engine, &tokens)),
            }
        }
        let n = expected.len() as f64;
        let mean = expected.iter().sum::<f64>() / n;
        let variance = expected.iter().map(|x| x * x).sum::<f64>() / n - mean * mean;

        let config = QualityConfig { ctx, ..QualityConfig::new(protocol) };
        let report = quality(&mut engine, None, &text, &config, &Silent).expect("measured");
        assert_eq!(report.windows, 3);
        assert_eq!(report.tokens, n as u64);
        assert!((report.ppl.value - mean.exp()).abs() < 1e-5, "{protocol}");
        // As llama.cpp computes it.
        let stderr = mean.exp() * (variance / (n - 1.0)).sqrt();
        assert!((report.ppl.stderr - stderr).abs() < 1e-5, "{protocol}");
        assert!(report.kld.is_none() && report.ppl_ratio.is_none());
        assert_eq!(report.bos, if protocol == Protocol::Chunk { bos } else { None });
        assert_eq!(report.model.bits_per_weight, 32.0);
        assert_eq!(report.kv, "f32");
    }
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let text = text(300, None);
    let config =
        QualityConfig { ctx: 70, windows: Some(4), ..QualityConfig::new(Protocol::Window) };
    let mut student = engine(1, 70, KvType::F16, 2);
    let mut same = engine(1, 128, KvType::F16, 1);
    let report = quality(&mut student, Some(&mut same), &text, &config, &Silent).expect("measured");
    let kld = report.kld.expect("there is a reference");
    assert_eq!((kld.mean, kld.max, kld.ci95), (0.0, 0.0, Some([0.0, 0.0])));
    assert_eq!(report.same_top1, Some(1.0));
    assert_eq!(report.same_top1_ci95, Some([1.0, 1.0]));
    assert_eq!(report.delta_p_rms, Some(0.0));
    let ratio = report.ppl_ratio.expect("there is a reference");
    assert_eq!((ratio.value, ratio.ci95), (1.0, Some([1.0, 1.0])));
    assert_eq!(report.reference.as_ref().expect("there is one").ppl, report.ppl);
}

#[test]
fn another_model_diverges_and_the_figures_agree_with_each_other() {
    let text = text(300, None);
    let config = QualityConfig { ctx: 100, ..QualityConfig::new(Protocol::Chunk) };
    let mut student = engine(1, 100, KvType::F16, 1);
    let alone = quality(&mut student, None, &text, &config, &Silent).expect("measured");
    let mut other = engine(2, 100, KvType::Int8, 2);
    let report =
        quality(&mut student, Some(&mut other), &text, &config, &Silent).expect("measured");
    assert_eq!(report.ppl, alone.ppl, "a reference changes nothing");
    let kld = report.kld.expect("there is a reference");
    let [low, high] = kld.ci95.expect("three windows");
    assert!(low <= kld.mean && kld.mean <= high);
    let ordered = [0.0, kld.median, kld.p90, kld.p99, kld.p999, kld.max];
    assert!(ordered.is_sorted() && kld.max > 0.01, "{ordered:?}");
    let reference = report.reference.as_ref().expect("there is one");
    let ratio = report.ppl_ratio.expect("there is a reference").value;
    assert!((ratio - report.ppl.value / reference.ppl.value).abs() < 1e-9);
    assert_eq!(report.per_window.len(), 3);
    let mean = report.per_window.iter().filter_map(|w| w.kld).sum::<f64>() / 3.0;
    assert!((mean - kld.mean).abs() < 1e-12);
    assert_eq!((report.kv.as_str(), reference.kv.as_str()), ("f16", "int8"));

    let json = serde_json::to_value(&report).expect("plain data");
    for key in ["file_bytes", "bits_per_weight", "windows", "same_top1", "host", "isa"] {
        assert!(!json[key].is_null(), "{key}");
    }
    assert_eq!(json["protocol"], "chunk");
    for (of, keys) in
        [("ppl", ["value", "stderr"]), ("kld", ["mean", "ci95"]), ("kld", ["p999", "max"])]
    {
        for key in keys {
            assert!(!json[of][key].is_null(), "{of}.{key}");
        }
    }
    let back: gristmill_eval::QualityReport = serde_json::from_value(json).expect("the same shape");
    assert_eq!(back, report);
    assert!(report.table().contains("KLD mean"));
}

#[test]
fn token_by_token_is_the_same_to_the_bit() {
    let text = text(300, Some(3));
    for kv in [KvType::F32, KvType::Int8, KvType::Int4] {
        let prefill = QualityConfig { ctx: 60, depth: 70, ..QualityConfig::new(Protocol::Chunk) };
        let decode = QualityConfig { path: TokenPath::Decode, ..prefill };
        let measure = |config: &QualityConfig, reference: bool| {
            let mut reference = reference.then(|| engine(2, 130, KvType::F16, 1));
            let mut student = engine(1, 130, kv, 2);
            quality(&mut student, reference.as_mut(), &text, config, &Silent).expect("measured")
        };
        for reference in [false, true] {
            let (many, one) = (measure(&prefill, reference), measure(&decode, reference));
            assert_eq!(many.per_window, one.per_window, "{}", kv.name());
            assert_eq!((many.ppl, many.kld), (one.ppl, one.kld));
            assert_eq!((many.path, one.path), (TokenPath::Prefill, TokenPath::Decode));
        }
    }
}

#[test]
fn a_depth_is_context_that_is_not_scored() {
    let (ctx, depth) = (20, 33);
    let text = text(100, None);
    for protocol in Protocol::ALL {
        let config = QualityConfig { ctx, depth, ..QualityConfig::new(protocol) };
        let mut engine = engine(1, ctx + depth, KvType::F32, 1);
        // Windows 0 and 1 have no 33 tokens before them.
        let mut expected = Vec::new();
        for w in 2..5 {
            let all = losses(&mut engine, &text.ids[w * ctx - depth..(w + 1) * ctx]);
            let first = if protocol == Protocol::Chunk { ctx / 2 } else { 0 };
            let scored = &all[depth + first..];
            expected.push(scored.iter().sum::<f64>() / scored.len() as f64);
        }
        let report = quality(&mut engine, None, &text, &config, &Silent).expect("measured");
        assert_eq!((report.first_window, report.windows, report.depth), (2, 3, depth));
        for (window, expected) in report.per_window.iter().zip(&expected) {
            assert!((window.nll - expected).abs() < 1e-5, "{protocol}");
        }
        let mut shallow = self::engine(1, ctx, KvType::F32, 1);
        let result = quality(&mut shallow, None, &text, &config, &Silent);
        assert!(matches!(result, Err(EvalError::Config(_))), "the engine has no room");
    }
}

#[test]
fn positions_and_intervals_agree_with_the_whole() {
    let text = text(2000, None);
    let config = QualityConfig { ctx: 100, ..QualityConfig::new(Protocol::Window) };
    let mut student = engine(1, 100, KvType::F16, 1);
    let mut other = engine(2, 100, KvType::F16, 1);
    let report =
        quality(&mut student, Some(&mut other), &text, &config, &Silent).expect("measured");
    let bounds: Vec<_> = report.by_position.iter().map(|bin| (bin.from, bin.to)).collect();
    assert_eq!(bounds, [(0, 16), (16, 32), (32, 64), (64, 99)]);
    assert_eq!(report.by_position.iter().map(|bin| bin.tokens).sum::<u64>(), report.tokens);
    let whole = |figure: fn(&PositionQuality) -> f64| {
        let sum: f64 = report.by_position.iter().map(|b| figure(b) * b.tokens as f64).sum();
        sum / report.tokens as f64
    };
    let kld = report.kld.expect("there is a reference");
    assert!((whole(|bin| bin.nll).exp() / report.ppl.value - 1.0).abs() < 1e-12);
    assert!((whole(|bin| bin.kld.expect("paired")) / kld.mean - 1.0).abs() < 1e-12);
    let same = whole(|bin| bin.same_top1.expect("paired"));
    assert!((same - report.same_top1.expect("paired")).abs() < 1e-12);
    // One bin against the sum over its tokens, token by token.
    let mut engine = engine(1, 100, KvType::F16, 1);
    let expected: f64 = (0..20)
        .map(|w| losses(&mut engine, &text.ids[w * 100..(w + 1) * 100])[16..32].iter().sum::<f64>())
        .sum();
    assert!((report.by_position[1].nll - expected / 320.0).abs() < 1e-5);

    let inside = |value: f64, ci95: Option<[f64; 2]>| {
        let [low, high] = ci95.expect("twenty windows");
        assert!(low <= value && value <= high && low < high, "{low} {value} {high}");
    };
    inside(report.ppl.value, report.ppl.ci95);
    inside(report.delta_p_rms.expect("paired"), report.delta_p_rms_ci95);
    let difference = report.ppl_difference.expect("paired");
    let reference = report.reference.as_ref().expect("there is one");
    assert!((difference.value - (report.ppl.value - reference.ppl.value)).abs() < 1e-9);
    inside(difference.value, difference.ci95);
    let ratio = report.ppl_ratio.expect("paired");
    inside(ratio.value, ratio.unpaired_ci95);
    assert!(ratio.times_tighter.is_some_and(|times| times > 0.0));
}

#[test]
fn an_earlier_report_is_compared_in_pairs() {
    let text = text(1200, None);
    let config = QualityConfig { ctx: 60, ..QualityConfig::new(Protocol::Chunk) };
    let measure = |seed: u64, kv: KvType, reference: Option<u64>| {
        let mut reference = reference.map(|seed| engine(seed, 60, KvType::F16, 1));
        let mut student = engine(seed, 60, kv, 1);
        quality(&mut student, reference.as_mut(), &text, &config, &Silent).expect("measured")
    };
    let read = |report: &QualityReport| {
        EarlierReport::from_json(&serde_json::to_vec(report).expect("plain data")).expect("reads")
    };
    // Against itself int8 loses little and the other model much.
    let int8 = measure(1, KvType::Int8, Some(1));
    let other = measure(2, KvType::F16, Some(1));
    let earlier = read(&other);
    earlier.check(&text, &config).expect("the same windows");
    let comparison = earlier.compare(&int8);
    let kld = comparison.kld.expect("one reference");
    assert_eq!(kld.verdict, QualityVerdict::Better);
    let means = [&int8, &other].map(|report| report.kld.expect("paired").mean);
    assert!((kld.value - (means[0] - means[1])).abs() < 1e-12);
    let ratio = int8.ppl.value / other.ppl.value;
    assert!((comparison.ppl_ratio.value / ratio - 1.0).abs() < 1e-12);
    assert!((comparison.nll.value - ratio.ln()).abs() < 1e-12);
    assert_eq!(
        read(&int8).compare(&other).kld.expect("one reference").verdict,
        QualityVerdict::Worse
    );
    let same = read(&int8).compare(&int8);
    assert_eq!(same.nll.verdict, QualityVerdict::NotDistinguishable);
    assert_eq!(same.kld.expect("one reference").ci95, Some([0.0, 0.0]));
    assert!(comparison.table().contains("better"));

    // Without a reference, or with another, only losses are compared.
    let alone = measure(1, KvType::F16, None);
    for report in [&alone, &measure(1, KvType::F16, Some(2))] {
        let comparison = earlier.compare(report);
        assert!(comparison.kld.is_none() && comparison.kld_reason.is_some());
        assert!(read(report).compare(&int8).kld.is_none());
    }

    let shorter = TextTokens { ids: text.ids[..1199].to_vec(), ..text.clone() };
    let foreign = TextTokens { text_blake3: "00".into(), ..text.clone() };
    let begins = TextTokens { bos: Some(1), ..text.clone() };
    for (text, config, named) in [
        (&foreign, config, "another text"),
        (&shorter, config, "another tokenizer"),
        (&begins, config, "another tokenizer"),
        (&text, QualityConfig { ctx: 40, ..config }, "--ctx 60"),
        (&text, QualityConfig { windows: Some(3), ..config }, "--windows 20"),
        (&text, QualityConfig { depth: 60, ..config }, "--depth 0"),
        (&text, QualityConfig { protocol: Protocol::Window, ..config }, "--protocol chunk"),
    ] {
        let error = earlier.check(text, &config).expect_err("not the same windows").to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
    // The path may differ: it changes nothing in what is scored.
    let decode = QualityConfig { path: TokenPath::Decode, ..config };
    earlier.check(&text, &decode).expect("the same windows");
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let config = QualityConfig { ctx: 64, ..QualityConfig::new(Protocol::Window) };
    let mut small = engine(1, 32, KvType::F16, 1);
    let result = quality(&mut small, None, &text(100, None), &config, &Silent);
    assert!(matches!(result, Err(EvalError::Config(_))));

    let mut fits = engine(1, 64, KvType::F16, 1);
    let mut foreign = text(100, None);
    // Only predicted, never an input.
    foreign.ids[63] = VOCAB;
    let result = quality(&mut fits, None, &foreign, &config, &Silent);
    assert!(matches!(result, Err(EvalError::Runtime(_))));

    let wider = TinyModel::load(1, VOCAB + 1);
    let wider_config =
        EngineConfig { threads: Some(1), context: Some(64), ..EngineConfig::default() };
    let mut wider = Engine::new(wider, &wider_config).expect("a small engine");
    let result = quality(&mut fits, Some(&mut wider), &text(100, None), &config, &Silent);
    assert!(matches!(result, Err(EvalError::VocabularyMismatch { .. })));

    struct Stopped;
    impl Progress for Stopped {
        fn begin(&self, _: &str, _: u64, _: &str) {}
        fn advance(&self, _: u64) {}
        fn note(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let result = quality(&mut fits, None, &text(100, None), &config, &Stopped);
    assert!(matches!(result, Err(EvalError::Cancelled)));
}

#[test]
fn a_benchmark_yields_positive_numbers_and_all_of_its_progress() {
    #[derive(Default)]
    struct Counted(AtomicU64, AtomicU64);
    impl Progress for Counted {
        fn begin(&self, _: &str, total: u64, _: &str) {
            self.0.fetch_add(total, Ordering::Relaxed);
        }
        fn advance(&self, units: u64) {
            self.1.fetch_add(units, Ordering::Relaxed);
        }
        fn note(&self, _: &str) {}
    }
    let config = BenchConfig {
        threads: vec![2, 1],
        prompts: vec![20],
        r#gen: 12,
        depths: vec![16],
        repeat: 2,
        kv: KvType::Int8,
        isa: None,
    };
    let progress = Counted::default();
    let open = || Ok(TinyModel::load(1, VOCAB));
    let report = bench(&open, &config, &progress).expect("measured");
    assert_eq!(progress.0.into_inner(), progress.1.into_inner());
    assert_eq!(report.rows.iter().map(|r| r.threads).collect::<Vec<_>>(), [2, 1]);
    for row in &report.rows {
        let numbers = [
            row.decode_tok_s,
            row.prefill_tok_s,
            row.ttft_ms.p50,
            row.tpot_ms.p50,
            row.achieved_gb_s,
            row.bandwidth_gb_s,
            row.bandwidth_model_sized_gb_s,
            row.share_of_bandwidth,
            row.share_of_model_sized_bandwidth,
            row.predicted_decode_tok_s,
            report.load_ms,
            report.load_warm_ms,
        ];
        assert!(numbers.iter().all(|x| x.is_finite() && *x > 0.0), "{numbers:?}");
        assert!(row.tpot_ms.p50 <= row.tpot_ms.p95 && row.ttft_ms.p50 <= row.ttft_ms.p95);
        assert_eq!(row.decode_tok_s_by_repeat.len(), 2);
        // Two layers, 42 positions at the mean, 2 heads of 16 int8 and a scale, keys and values.
        assert_eq!(row.kv_bytes_per_token, 2 * 42 * 2 * 2 * (16 + 4));
        assert_eq!(row.bytes_per_token, row.weight_bytes_per_token + row.kv_bytes_per_token);
    }
    // The mean position, 41, sees 16 positions before it and its own block of them in f16.
    let config = BenchConfig { threads: vec![1], repeat: 1, kv: KvType::Int4, ..config };
    let int4 = bench(&open, &config, &Silent).expect("measured");
    let (exact, coded) = (26 * 4 * 16, 16 * 2 * (8 + 4));
    assert_eq!(int4.rows[0].kv_bytes_per_token, 2 * 2 * (exact + coded));
    let known = report.memory.anonymous_peak_bytes.is_some();
    assert_eq!(report.memory.reason.is_none(), known);
    assert!(!report.kernels.is_empty() && !report.isa.is_empty());
    let json = serde_json::to_value(&report).expect("plain data");
    assert_eq!(json["gen"], 12);
    let back: gristmill_eval::BenchReport = serde_json::from_value(json).expect("the same shape");
    assert_eq!(back.rows.len(), report.rows.len());
    assert!(report.table().contains("| 2 "));
}

#[test]
fn impossible_benchmarks_are_refused() {
    let open = || Ok(TinyModel::load(1, VOCAB));
    let valid = BenchConfig {
        threads: vec![1],
        prompts: vec![4],
        r#gen: 2,
        repeat: 1,
        ..BenchConfig::default()
    };
    for config in [
        BenchConfig { threads: vec![], ..valid.clone() },
        BenchConfig { prompts: vec![8, 0], ..valid.clone() },
        BenchConfig { r#gen: 0, ..valid.clone() },
        BenchConfig { repeat: usize::MAX, ..valid.clone() },
        BenchConfig { depths: vec![0, usize::MAX], ..valid.clone() },
        BenchConfig { depths: vec![], ..valid.clone() },
        BenchConfig { prompts: vec![], ..valid.clone() },
    ] {
        assert!(matches!(bench(&open, &config, &Silent), Err(EvalError::Config(_))), "{config:?}");
    }
    // More positions than the model has.
    let config = BenchConfig { prompts: vec![300], ..valid.clone() };
    assert!(matches!(bench(&open, &config, &Silent), Err(EvalError::Runtime(_))));
    let closed = || Err("no such file".to_string());
    let result = bench(&closed, &valid, &Silent);
    assert!(matches!(result, Err(EvalError::Open(message)) if message == "no such file"));
}

#[test]
fn the_smallest_cache_that_costs_little_is_chosen_by_measurement() {
    let ids = (0..600u32).map(|i| i * 131 % VOCAB).collect();
    let text = TextTokens::new(b"any", ids, None);
    let model = TinyModel::load(1, VOCAB);
    let config = EngineConfig { threads: Some(1), ..EngineConfig::default() };
    let (kv, choice) = choose_kv(&model, &config, &text, &Silent).expect("measured");
    assert_eq!((choice.kv.as_str(), choice.max_kld), (kv.name(), MAX_KV_KLD));
    // Two windows of the model's 256 tokens, of which the second half is scored.
    assert_eq!(choice.tokens, 2 * 127);
    let measured: Vec<_> = choice.measured.iter().map(|m| (m.kv.as_str(), m.kld)).collect();
    assert!(measured.iter().all(|(_, kld)| *kld > 0.0), "no type is f16: {measured:?}");
    let fits = measured.iter().find(|(_, kld)| *kld <= MAX_KV_KLD);
    assert_eq!(kv.name(), fits.map_or("f16", |(name, _)| name));
    assert_eq!(measured[0].0, "int4");
    assert!(choose_kv(&model, &config, &TextTokens::new(b"", vec![1], None), &Silent).is_err());
}
