//! `eval --against-embedded`: whether a packed file still has the figures that were stored in it.

use std::fmt::Write;

use anyhow::{Context, Result};
use gristmill_eval::{QualityConfig, QualityReport};
use gristmill_formats::container;
use gristmill_runtime::{Engine, KvType};
use serde::Serialize;

use crate::embedded::HELDOUT;
use crate::error::WithHint;
use crate::source::{Kind, Source};

/// Figures stored in a file, and how to measure them again.
#[derive(Debug)]
pub(super) struct Embedded {
    stored: container::QualityReport,
    ppl: f64,
    text_blake3: String,
    pub(super) config: QualityConfig,
    pub(super) kv: KvType,
}

/// The stored figures beside those measured now.
#[derive(Debug, Serialize)]
pub(super) struct Drift {
    /// Relative.
    pub(super) ppl: Drifted,
    /// In nats; null where there are not two.
    pub(super) kld: Option<Drifted>,
    /// Why that is null.
    kld_reason: Option<&'static str>,
    /// Program and version that measured when the file was made; older files do not say.
    measured_by: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Drifted {
    stored: f64,
    measured: f64,
    /// Distance of the two.
    pub(super) drift: f64,
}

impl Embedded {
    /// Of a packed file that has been measured.
    pub(super) fn of(source: &Source) -> Result<Self> {
        let shown = source.path.display();
        let Kind::Packed(file) = &source.kind else {
            return Err(anyhow::anyhow!(
                "{shown} is a checkpoint: only packed files carry figures"
            ))
            .hint("give a .grist file that `quantize --measure TEXT_FILE` made");
        };
        let stored = file.header().quality.clone();
        let found = stored.and_then(|s| Some((s.ppl?, s.text_blake3.clone()?, s)));
        let Some((ppl, text_blake3, stored)) = found else {
            return Err(anyhow::anyhow!("{shown} carries no measured figures"))
                .hint("quantize with --measure TEXT_FILE stores them");
        };
        let unknown = |what: &str, name: &str| {
            format!(
                "{shown} was measured with the {what} `{name}`, which this version does not know"
            )
        };
        let config = QualityConfig::from_label(&stored.protocol)
            .with_context(|| unknown("protocol", &stored.protocol))?;
        // Files that do not say were measured with this one.
        let kv = stored.kv.as_deref().unwrap_or(KvType::F16.name());
        let known = KvType::ALL.into_iter().find(|known| known.name() == kv);
        let kv = known.with_context(|| unknown("cache type", kv))?;
        Ok(Self { ppl, text_blake3, config, kv, stored })
    }

    /// The text, if it is the one that was measured.
    pub(super) fn check_text(&self, text: String) -> Result<String> {
        let digest = blake3::hash(text.as_bytes()).to_hex();
        if digest.as_str() == self.text_blake3 {
            return Ok(text);
        }
        Err(anyhow::anyhow!(
            "this is not the text that the file was measured on: BLAKE3 {digest}, the file has {}",
            self.text_blake3
        ))
        .hint("give the text that `quantize --measure` was given; line ends count")
    }

    /// The built-in text, if it is the one that was measured.
    pub(super) fn built_in_text(&self) -> Result<String> {
        if blake3::hash(HELDOUT).to_hex().as_str() == self.text_blake3 {
            return Ok(std::str::from_utf8(HELDOUT)?.to_owned());
        }
        let digest = &self.text_blake3;
        Err(anyhow::anyhow!("the text that the file was measured on is needed, BLAKE3 {digest}"))
            .hint("give it with --text FILE")
    }

    /// Whether the file was compared with this model.
    pub(super) fn check_reference(&self, reference: &Engine) -> Result<()> {
        let found = reference.model().source().fingerprint();
        match &self.stored.reference {
            Some(stored) if *stored != found => Err(anyhow::anyhow!(
                "the file was measured against another model: fingerprint {stored}, this one has {found}"
            ))
            .hint("give the checkpoint that the file was made from"),
            _ => Ok(()),
        }
    }

    /// The figures beside those of a report.
    pub(super) fn drift(&self, report: &QualityReport) -> Drift {
        let (stored, measured) = (self.ppl, report.ppl.value);
        let drift = (measured / stored - 1.0).abs();
        let kld = match (self.stored.kld_mean, report.kld) {
            (Some(stored), Some(kld)) => {
                let drift = (kld.mean - stored).abs();
                Ok(Drifted { stored, measured: kld.mean, drift })
            }
            (None, _) => Err("the file carries no divergence"),
            (_, None) => Err("no reference was given"),
        };
        Drift {
            ppl: Drifted { stored, measured, drift },
            kld: kld.ok(),
            kld_reason: kld.err(),
            measured_by: self.stored.measured_by.clone(),
        }
    }
}

impl Drift {
    pub(super) fn text(&self) -> String {
        let by = self.measured_by.as_deref().unwrap_or("an earlier version");
        let Drifted { stored, measured, drift } = self.ppl;
        let mut text =
            format!("stored by {by}: PPL {stored:.6}, now {measured:.6}, drift {drift:.2e}\n");
        let _ = match (self.kld, self.kld_reason) {
            (Some(Drifted { stored, measured, drift }), _) => {
                writeln!(text, "stored KLD {stored:.8}, now {measured:.8}, drift {drift:.2e} nats")
            }
            (None, reason) => writeln!(text, "KLD not compared: {}", reason.unwrap_or_default()),
        };
        text
    }
}
