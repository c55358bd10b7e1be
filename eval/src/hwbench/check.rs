//! Whether the dispatcher's choice is the fastest class.

use gristmill_kernels::Isa;
use serde::Serialize;

use super::case::Case;
use super::report::{HwBenchRow, isa_name};
use crate::error::Result;

/// By how much another class may be faster than the chosen one, as a share of the chosen one's rate:
/// what noise leaves of medians.
pub const TOLERANCE: f64 = 0.1;

/// A case in which another class than the chosen one is faster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlowChoice {
    /// What was measured.
    #[serde(flatten)]
    pub case: Case,
    /// Threads.
    pub threads: usize,
    /// Rate of the chosen class.
    pub chosen_rate: f64,
    /// The fastest class.
    #[serde(serialize_with = "isa_name")]
    pub faster: Isa,
    /// Its rate.
    pub faster_rate: f64,
}

/// Where another class is faster than the chosen one by more than `tolerance`.
fn slow_choices(rows: &[HwBenchRow], tolerance: f64) -> Vec<SlowChoice> {
    let chosen = rows.iter().filter(|row| row.chosen);
    let slower = chosen.filter_map(|row| {
        let others = rows.iter().filter(|other| {
            !other.chosen && (other.case, other.threads) == (row.case, row.threads)
        });
        let best = others.max_by(|a, b| a.rate.total_cmp(&b.rate))?;
        (best.rate > row.rate * (1.0 + tolerance)).then_some(SlowChoice {
            case: row.case,
            threads: row.threads,
            chosen_rate: row.rate,
            faster: best.isa,
            faster_rate: best.rate,
        })
    });
    slower.collect()
}

/// [`slow_choices`] that are so again when their cases are measured once more by `again`, whose rows
/// replace those of before.
pub(super) fn confirmed_slow_choices(
    rows: &mut [HwBenchRow],
    tolerance: f64,
    again: impl FnOnce(&[Case]) -> Result<Vec<HwBenchRow>>,
) -> Result<Vec<SlowChoice>> {
    let mut suspects: Vec<Case> = Vec::new();
    for choice in slow_choices(rows, tolerance) {
        if !suspects.contains(&choice.case) {
            suspects.push(choice.case);
        }
    }
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    for new in again(&suspects)? {
        let same = |old: &&mut HwBenchRow| {
            (old.case, old.threads, old.isa) == (new.case, new.threads, new.isa)
        };
        if let Some(old) = rows.iter_mut().find(same) {
            *old = new;
        }
    }
    Ok(slow_choices(rows, tolerance))
}

#[cfg(test)]
mod tests {
    use gristmill_formats::codec::CodecId;

    use super::super::case::{Family, Origin, Subject};
    use super::*;
    use crate::error::EvalError;

    const CODECS: [CodecId; 2] = [CodecId::Q4, CodecId::Q8];

    fn row(codec: CodecId, isa: Isa, rate: f64) -> HwBenchRow {
        let subject = Subject::Codec(codec);
        let case =
            Case { family: Family::Gemv, subject, tokens: 1, depth: None, from: Origin::Memory };
        HwBenchRow {
            case,
            threads: 1,
            isa,
            chosen: isa == Isa::Avx512Vnni,
            rate,
            unit: case.unit(),
            rate_by_repeat: vec![rate],
            ceiling: None,
            share: None,
            cost: None,
        }
    }

    /// Both codecs on two classes; the chosen one is the second of each pair.
    fn rows(rates: [[f64; 2]; 2]) -> Vec<HwBenchRow> {
        let pair = |(codec, [other, chosen]): (CodecId, [f64; 2])| {
            [row(codec, Isa::Avx2, other), row(codec, Isa::Avx512Vnni, chosen)]
        };
        CODECS.into_iter().zip(rates).flat_map(pair).collect()
    }

    fn never(_: &[Case]) -> Result<Vec<HwBenchRow>> {
        panic!("nothing is to be measured again")
    }

    #[test]
    fn a_choice_may_be_slower_within_the_tolerance() {
        let mut rows = rows([[10.9, 10.0], [5.0, 20.0]]);
        assert_eq!(confirmed_slow_choices(&mut rows, 0.1, never).unwrap(), []);
    }

    #[test]
    fn a_slow_choice_is_measured_again_and_then_named() {
        let mut rows = rows([[12.0, 10.0], [5.0, 20.0]]);
        let again = |cases: &[Case]| {
            assert_eq!(cases.iter().map(|c| c.subject.name()).collect::<Vec<_>>(), ["q4"]);
            Ok(vec![row(CodecId::Q4, Isa::Avx2, 13.0), row(CodecId::Q4, Isa::Avx512Vnni, 11.0)])
        };
        let slow = confirmed_slow_choices(&mut rows, 0.1, again).unwrap();
        assert_eq!(slow.len(), 1);
        assert_eq!((slow[0].faster, slow[0].faster_rate), (Isa::Avx2, 13.0));
        assert_eq!((slow[0].case.subject.name(), slow[0].chosen_rate), ("q4", 11.0));
        assert_eq!(rows.iter().map(|row| row.rate).collect::<Vec<_>>(), [13.0, 11.0, 5.0, 20.0]);
    }

    #[test]
    fn noise_that_does_not_come_again_is_forgiven() {
        let mut rows = rows([[12.0, 10.0], [40.0, 20.0]]);
        let again = |cases: &[Case]| {
            assert_eq!(cases.len(), 2);
            Ok(vec![row(CodecId::Q4, Isa::Avx512Vnni, 12.0), row(CodecId::Q8, Isa::Avx2, 21.0)])
        };
        assert_eq!(confirmed_slow_choices(&mut rows, 0.1, again).unwrap(), []);
    }

    #[test]
    fn a_failure_to_measure_again_is_no_verdict() {
        let mut rows = rows([[12.0, 10.0], [5.0, 20.0]]);
        let verdict = confirmed_slow_choices(&mut rows, 0.1, |_| Err(EvalError::Cancelled));
        assert!(matches!(verdict, Err(EvalError::Cancelled)));
    }
}
