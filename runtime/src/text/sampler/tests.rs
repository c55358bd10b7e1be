use proptest::prelude::*;

use super::*;
use gristmill_formats::source::GenerationDefaults;

fn sampler(config: &SamplerConfig, vocab_size: usize) -> Sampler {
    Sampler::new(config.clone(), vocab_size).unwrap()
}

fn open() -> SamplerConfig {
    SamplerConfig { top_k: 0, ..SamplerConfig::default() }
}

/// Random logits of a few distinct values, so that ties happen, with some that cannot be drawn.
fn logits(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|n| match (uniform(seed, n) * 1000.0) as u32 {
            0..10 => f32::NAN,
            10..30 => f32::NEG_INFINITY,
            value if seed.is_multiple_of(2) => (value / 50) as f32 - 8.0,
            value => value as f32 / 60.0 - 8.0 + (n as f32).sin(),
        })
        .collect()
}

/// What must stay, by sorting everything. Weights are those of the sampler, so that both stand on the
/// same side of every limit.
fn naive(config: &SamplerConfig, logits: &[f32]) -> Vec<u32> {
    let (_, max) = largest(logits).unwrap();
    let weight = |logit: f32| ((logit - max) / config.temperature).exp();
    let mut all: Vec<(u32, f32)> = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
        .map(|(id, &logit)| (id as u32, logit))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if config.top_k > 0 {
        all.truncate(config.top_k as usize);
    }
    if config.top_p < 1.0 {
        let total: f64 = all.iter().map(|(_, logit)| f64::from(weight(*logit))).sum();
        let mut before = 0.0;
        all.retain(|(_, logit)| {
            let stays = before < f64::from(config.top_p) * total || before == 0.0;
            before += f64::from(weight(*logit));
            stays
        });
    }
    all.retain(|(_, logit)| weight(*logit) >= config.min_p);
    all.into_iter().map(|(id, _)| id).collect()
}

fn survivors(config: &SamplerConfig, logits: &[f32]) -> Vec<u32> {
    let mut sampler = sampler(config, logits.len());
    let (_, max) = largest(logits).unwrap();
    sampler.candidates.filter(config, logits, max);
    let mut ids = sampler.candidates.ids();
    let order = |id: &u32| (-logits[*id as usize], *id);
    ids.sort_by(|a, b| order(a).partial_cmp(&order(b)).unwrap());
    ids
}

#[test]
fn greedy_takes_the_largest_and_of_equal_ones_the_lowest_id() {
    let mut greedy = sampler(&SamplerConfig::greedy(), 5);
    assert_eq!(greedy.sample(&mut [0.0, 3.0, 1.0, 3.0, -1.0]), 1);
    assert_eq!(greedy.sample(&mut [f32::NAN, -0.0, 0.0, f32::NAN, -1.0]), 1);
    assert_eq!(greedy.sample(&mut [f32::NEG_INFINITY, f32::INFINITY, 1.0]), 1);
}

#[test]
fn without_any_usable_logit_the_token_is_0() {
    for config in [SamplerConfig::greedy(), SamplerConfig::default()] {
        let mut sampler = sampler(&config, 4);
        assert_eq!(sampler.sample(&mut [f32::NAN, f32::NEG_INFINITY, f32::NAN]), 0);
        assert_eq!(sampler.sample(&mut []), 0);
    }
}

#[test]
fn nan_and_minus_infinity_are_never_drawn() {
    let mut sampler = sampler(&SamplerConfig { temperature: 100.0, ..open() }, 4);
    for _ in 0..1000 {
        let id = sampler.sample(&mut [f32::NAN, 1.0, f32::NEG_INFINITY, 2.0]);
        assert!(id == 1 || id == 3);
    }
}

#[test]
fn one_candidate_is_what_greedy_takes() {
    for seed in 0..50 {
        let mut values = logits(seed, 300);
        let expected = sampler(&SamplerConfig::greedy(), 300).sample(&mut values);
        for config in [
            SamplerConfig { top_k: 1, seed, ..open() },
            SamplerConfig { top_p: 0.0, seed, ..open() },
            SamplerConfig { min_p: 1.0, temperature: 1e-3, top_k: 1, seed, ..open() },
        ] {
            assert_eq!(sampler(&config, 300).sample(&mut values), expected, "{config:?}");
        }
    }
}

proptest! {
    #[test]
    fn filters_keep_what_sorting_everything_keeps(
        seed: u64, len in 1usize..1500, temperature in 0.2f32..3.0, k in 0u32..200, p in 0.0f32..1.2, min_p in -0.2f32..0.5,
    ) {
        let mut values = logits(seed, len);
        values[len / 2] = 0.5;
        let config = SamplerConfig { temperature, top_k: k, top_p: p.min(1.0), min_p: min_p.max(0.0), ..open() };
        let (found, expected) = (survivors(&config, &values), naive(&config, &values));
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_logits_give_a_token_of_the_vocabulary(
        values in prop::collection::vec(any::<f32>(), 1..100), seed: u64, temperature in 0.0f32..2.0, k in 0u32..20, p in 0.0f32..1.0,
    ) {
        let config = SamplerConfig { temperature, top_k: k, top_p: p, repetition_penalty: 1.3, seed, ..open() };
        let mut sampler = sampler(&config, values.len());
        for _ in 0..4 {
            let id = sampler.sample(&mut values.clone());
            prop_assert!((id as usize) < values.len());
            sampler.accept(id);
        }
    }

    #[test]
    fn history_holds_the_distinct_tokens_of_its_window(ids in prop::collection::vec(0u32..12, 0..80), window in 0u32..9) {
        for last_n in [window, SamplerConfig::WHOLE_SEQUENCE] {
            let mut history = History::new(last_n, 10);
            for (at, &id) in ids.iter().enumerate() {
                history.push(id);
                let known: Vec<u32> = ids[..=at].iter().copied().filter(|id| *id < 10).collect();
                let start = known.len().saturating_sub(last_n as usize);
                let mut expected = known[start..].to_vec();
                expected.sort();
                expected.dedup();
                let mut found = history.distinct().to_vec();
                found.sort();
                prop_assert_eq!(found, expected);
            }
            history.clear();
            prop_assert!(history.distinct().is_empty());
        }
    }
}

#[test]
fn repetition_penalty_divides_positive_and_multiplies_negative_logits_once() {
    let config = SamplerConfig { repetition_penalty: 2.0, ..SamplerConfig::greedy() };
    let mut sampler = sampler(&config, 4);
    for id in [0, 1, 1, 99] {
        sampler.accept(id);
    }
    let mut values = [3.0, -1.0, 1.6, -3.0];
    assert_eq!(sampler.sample(&mut values), 2);
    assert_eq!(values, [1.5, -2.0, 1.6, -3.0]);
    sampler.reset();
    let mut values = [3.0, -1.0, 1.6, -3.0];
    assert_eq!(sampler.sample(&mut values), 0);
}

#[test]
fn a_seed_fixes_the_tokens_and_another_seed_changes_them() {
    let run = |seed| {
        let mut sampler = sampler(&SamplerConfig { seed, ..open() }, 50);
        (0..40).map(|_| sampler.sample(&mut [0.0; 50])).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let mut again = sampler(&SamplerConfig { seed: 1, ..open() }, 50);
    again.sample(&mut [0.0; 50]);
    again.reset();
    assert_eq!(again.sample(&mut [0.0; 50]), run(1)[0]);
}

#[test]
fn draws_are_those_of_splitmix64() {
    // The published test vector of seed 1234567, upper 53 bits.
    let first = [6457827717110365317u64, 3203168211198807973, 9817491932198370423];
    for (n, value) in first.into_iter().enumerate() {
        assert_eq!(uniform(1234567, n as u64 + 1), (value >> 11) as f64 / (1u64 << 53) as f64);
    }
}

#[test]
fn tokens_are_drawn_by_their_probability() {
    // Chi-square with 7 degrees of freedom exceeds 24.3 once in a thousand.
    let values: Vec<f32> = (0..8).map(|id| (id as f32 + 1.0).ln() * 2.0).collect();
    for (temperature, seed) in [(2.0, 3), (1.0, 4), (0.7, 5)] {
        for top_k in [0, 8] {
            let config = SamplerConfig { temperature, top_k, seed, ..open() };
            let mut sampler = sampler(&config, 8);
            let mut counts = [0.0; 8];
            let draws = 40_000.0;
            for _ in 0..draws as usize {
                counts[sampler.sample(&mut values.clone()) as usize] += 1.0;
            }
            let weights = values.iter().map(|x| f64::from(x / temperature).exp());
            let total: f64 = weights.clone().sum();
            let chi: f64 = weights
                .zip(counts)
                .map(|(weight, count)| {
                    (count - draws * weight / total).powi(2) / (draws * weight / total)
                })
                .sum();
            assert!(chi < 24.3, "{config:?}: {chi} {counts:?}");
        }
    }
}

#[test]
fn buffers_are_reserved_at_construction_and_never_grow() {
    let values = logits(7, 5000);
    for config in [
        open(),
        SamplerConfig { top_k: 4999, ..open() },
        SamplerConfig {
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.1,
            repeat_last_n: 64,
            ..open()
        },
        SamplerConfig { top_p: 0.9999, repetition_penalty: 1.1, ..open() },
    ] {
        let mut sampler = sampler(&config, 5000);
        let before = (sampler.candidates.buffer(), sampler.history.buffers());
        for _ in 0..300 {
            let id = sampler.sample(&mut values.clone());
            sampler.accept(id);
        }
        assert_eq!((sampler.candidates.buffer(), sampler.history.buffers()), before);
    }
}

#[test]
fn configurations_out_of_range_are_refused_by_name() {
    for (config, name) in [
        (SamplerConfig { temperature: -1.0, ..open() }, "temperature"),
        (SamplerConfig { temperature: f32::NAN, ..open() }, "temperature"),
        (SamplerConfig { top_p: 1.5, ..open() }, "top_p"),
        (SamplerConfig { min_p: -0.1, ..open() }, "min_p"),
        (SamplerConfig { repetition_penalty: 0.0, ..open() }, "repetition_penalty"),
    ] {
        let error = Sampler::new(config, 10).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn checkpoint_defaults_are_followed_and_the_rest_is_default() {
    let none = GenerationDefaults::default();
    assert_eq!(SamplerConfig::from_defaults(&none), SamplerConfig::default());
    let some = GenerationDefaults { temperature: Some(0.6), top_p: Some(0.9), ..none.clone() };
    let config = SamplerConfig::from_defaults(&some);
    assert_eq!((config.temperature, config.top_p, config.top_k), (0.6, 0.9, 50));
    let greedy =
        GenerationDefaults { do_sample: Some(false), repetition_penalty: Some(1.1), ..some };
    let config = SamplerConfig::from_defaults(&greedy);
    assert!(config.is_greedy() && config.repetition_penalty == 1.1);
}

#[test]
fn configuration_reads_partial_json_and_refuses_unknown_keys() {
    let config: SamplerConfig = serde_json::from_str(r#"{"temperature":0.5}"#).unwrap();
    assert_eq!(config, SamplerConfig { temperature: 0.5, ..SamplerConfig::default() });
    assert!(serde_json::from_str::<SamplerConfig>(r#"{"temprature":0.5}"#).is_err());
}

proptest! {
    #[test]
    fn logits_beyond_the_reach_change_nothing(
        seed in any::<u64>(),
        penalty in prop::sample::select(vec![0.5f32, 1.0, 1.5]),
        top_k in 0..8u32,
        temperature in prop::sample::select(vec![0.0f32, 0.7]),
    ) {
        let config =
            SamplerConfig { temperature, top_k, repetition_penalty: penalty, seed, ..open() };
        let mut samplers = [sampler(&config, 60), sampler(&config, 60)];
        for sampler in &mut samplers {
            (0..seed % 20).for_each(|n| sampler.accept((n * n % 60) as u32));
        }
        let all = logits(seed, 60);
        let mut order: Vec<usize> = (0..60).filter(|&i| !all[i].is_nan()).collect();
        order.sort_by(|&a, &b| all[b].total_cmp(&all[a]).then(a.cmp(&b)));
        let mut reached = all.clone();
        for &beyond in order.iter().skip(samplers[0].reach()) {
            reached[beyond] = f32::NEG_INFINITY;
        }
        let [sampler, same] = &mut samplers;
        prop_assert_eq!(sampler.sample(&mut all.clone()), same.sample(&mut reached));
    }
}

#[test]
fn a_copied_sampler_draws_what_the_original_draws() {
    let config = SamplerConfig { temperature: 0.9, top_k: 5, seed: 3, ..SamplerConfig::default() };
    let mut original = Sampler::new(config, 64).expect("a sampler");
    let mut logits: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
    original.sample(&mut logits);
    let mut copy = original.clone();
    for _ in 0..20 {
        assert_eq!(copy.sample(&mut logits.clone()), original.sample(&mut logits.clone()));
    }
}
