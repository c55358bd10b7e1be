//! `inspect`: what is in a packed file or a checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use gristmill_formats::codec::CodecId;
use gristmill_formats::container::{Provenance, QualityReport};
use gristmill_formats::model::{Mixer, ModelSpec, TensorRole};
use gristmill_formats::source::GenerationDefaults;
use serde::Serialize;

use super::Session;
use crate::args::InspectArgs;
use crate::error::Outcome;
use crate::render::{self, Facts, Render, SCHEMA_VERSION, Table};
use crate::source::{Kind, Source};

#[derive(Debug, Serialize)]
struct Inspection {
    schema_version: u32,
    path: PathBuf,
    /// `grist` or `checkpoint`.
    kind: &'static str,
    /// Version of the file format.
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<String>,
    fingerprint: String,
    parameters: u64,
    file_bytes: u64,
    bits_per_weight: f64,
    codecs: Vec<CodecShare>,
    parts: Vec<Part>,
    model: ModelSpec,
    tokenizer: bool,
    chat_template: bool,
    stop_ids: Vec<u32>,
    generation: GenerationDefaults,
    licence: Option<String>,
    provenance: Option<Provenance>,
    quality: Option<QualityReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor>>,
}

/// What one codec holds.
#[derive(Debug, Serialize)]
struct CodecShare {
    codec: CodecId,
    tensors: usize,
    weights: u64,
    bytes: u64,
    bits_per_weight: f64,
}

/// Bytes of one part, scales included; together they are the whole.
#[derive(Debug, Serialize)]
struct Part {
    part: &'static str,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    codec: CodecId,
    bytes: u64,
    bits_per_weight: f64,
    /// As the quality report has it: squared error of the weights over their squared norm.
    relative_error: Option<f64>,
    #[serde(skip)]
    role: TensorRole,
}

pub(super) fn run(session: Session, args: &InspectArgs) -> Result<Outcome> {
    let inspection = inspect(&Source::open(&args.model)?, args.tensors)?;
    render::emit(&inspection, session.json)?;
    Ok(Outcome::Done)
}

fn inspect(source: &Source, list_tensors: bool) -> Result<Inspection> {
    let model = source.model_source();
    let spec = model.spec().clone();
    let (kind, format, provenance, quality, licence) = match &source.kind {
        Kind::Packed(file) => {
            let (header, version) = (file.header(), file.superblock().version);
            let provenance = header.provenance.clone();
            let licence = provenance.licence.clone();
            let format = Some(format!("{}.{}", version.0, version.1));
            ("grist", format, Some(provenance), header.quality.clone(), licence)
        }
        Kind::Checkpoint(checkpoint) => {
            ("checkpoint", None, None, None, checkpoint.licence().statement())
        }
    };

    let mut tensors = Vec::new();
    for tensor in spec.tensors() {
        let data = model.tensor(&tensor.name)?;
        let bytes = data.bytes.len() as u64;
        let weights: u64 = tensor.shape.iter().product();
        let measured = quality.iter().flat_map(|q| &q.tensors).find(|t| t.name == tensor.name);
        tensors.push(Tensor {
            relative_error: measured.map(|t| t.relative_error),
            name: tensor.name,
            shape: tensor.shape,
            codec: data.codec.id(),
            bytes,
            bits_per_weight: bits_per_weight(bytes, weights),
            role: tensor.role,
        });
    }
    let parameters = spec.parameter_count();
    let tokenizer = match &source.kind {
        Kind::Packed(file) => file.header().tokenizer.is_some(),
        Kind::Checkpoint(_) => model.tokenizer()?.is_some(),
    };
    Ok(Inspection {
        schema_version: SCHEMA_VERSION,
        path: source.path.clone(),
        kind,
        format,
        fingerprint: model.fingerprint(),
        parameters,
        file_bytes: model.file_bytes(),
        bits_per_weight: bits_per_weight(model.file_bytes(), parameters),
        codecs: codec_shares(&tensors),
        parts: parts(source, &tensors, model.file_bytes()),
        tokenizer,
        chat_template: model.text().chat_template.is_some(),
        stop_ids: model.text().stop_ids.clone(),
        generation: model.generation().clone(),
        licence,
        provenance,
        quality,
        tensors: list_tensors.then_some(tensors),
        model: spec,
    })
}

fn bits_per_weight(bytes: u64, weights: u64) -> f64 {
    bytes as f64 * 8.0 / weights as f64
}

/// Widest codec first.
fn codec_shares(tensors: &[Tensor]) -> Vec<CodecShare> {
    let mut shares: BTreeMap<CodecId, CodecShare> = BTreeMap::new();
    for tensor in tensors {
        let codec = tensor.codec;
        let share = shares.entry(codec).or_insert(CodecShare {
            codec,
            tensors: 0,
            weights: 0,
            bytes: 0,
            bits_per_weight: 0.0,
        });
        share.tensors += 1;
        share.weights += tensor.shape.iter().product::<u64>();
        share.bytes += tensor.bytes;
        share.bits_per_weight = bits_per_weight(share.bytes, share.weights);
    }
    shares.into_values().collect()
}

fn parts(source: &Source, tensors: &[Tensor], file_bytes: u64) -> Vec<Part> {
    let of = |role| tensors.iter().filter(|t| t.role == role).map(|t| t.bytes).sum::<u64>();
    let mut parts = vec![
        Part { part: "embeddings", bytes: of(TensorRole::Embedding) },
        Part { part: "head", bytes: of(TensorRole::Head) },
        Part { part: "linears", bytes: of(TensorRole::Linear) },
        Part { part: "vectors", bytes: of(TensorRole::Vector) },
    ];
    let rest = match &source.kind {
        Kind::Packed(file) => {
            let tokenizer = file.header().tokenizer.as_ref().map_or(0, |section| section.bytes);
            parts.push(Part { part: "tokenizer", bytes: tokenizer });
            parts.push(Part { part: "header", bytes: file.superblock().header_bytes });
            "container"
        }
        Kind::Checkpoint(_) => "other",
    };
    let counted: u64 = parts.iter().map(|part| part.bytes).sum();
    parts.push(Part { part: rest, bytes: file_bytes.saturating_sub(counted) });
    parts.retain(|part| part.bytes > 0);
    parts
}

/// The model in one line.
fn summary(spec: &ModelSpec) -> String {
    let mut words = vec![
        format!("{} layers", spec.layers.len()),
        format!("width {}", spec.d_model),
        format!("vocabulary {}{}", spec.vocab_size, if spec.tied_head { " (tied)" } else { "" }),
    ];
    let blocks = spec.layers.first().into_iter().flat_map(|layer| &layer.blocks);
    for block in blocks {
        words.push(match &block.mixer {
            Mixer::Attention(a) => {
                format!("{} heads of {}, {} KV heads", a.heads, a.head_dim, a.kv_heads)
            }
            Mixer::Mlp(m) => format!("feed-forward {}", m.d_ff),
        });
    }
    words.push(format!("context {}", spec.max_context));
    words.join(", ")
}

impl Render for Inspection {
    fn text(&self) -> String {
        let mut facts = Facts::default();
        let format = self.format.as_ref().map_or(String::new(), |v| format!(", format {v}"));
        facts.add("file", format_args!("{} ({}{format})", self.path.display(), self.kind));
        let architecture = &self.model.architecture;
        facts.add("model", format_args!("{architecture}: {}", summary(&self.model)));
        facts.add("parameters", format_args!("{:.2} M", self.parameters as f64 / 1e6));
        facts.add(
            "size",
            format_args!(
                "{} ({} bytes), {:.3} bits per weight, everything counted",
                render::bytes(self.file_bytes),
                self.file_bytes,
                self.bits_per_weight
            ),
        );
        facts.add("fingerprint", &self.fingerprint);
        let yes_no = |yes| if yes { "yes" } else { "no" };
        facts.add("tokenizer", yes_no(self.tokenizer));
        facts.add("chat template", yes_no(self.chat_template));
        let licence = self.licence.as_deref().and_then(|text| text.lines().next());
        facts.add("licence", licence.unwrap_or("not stated"));
        if let Some(provenance) = &self.provenance {
            let revision =
                provenance.revision.as_ref().map_or(String::new(), |r| format!(" @ {r}"));
            facts.add("made from", format_args!("{}{revision}", provenance.source));
            facts.add("made by", format_args!("{}: {}", provenance.tool, provenance.recipe));
        }
        if let Some(quality) = &self.quality {
            quality_facts(quality, &mut facts);
        }
        let mut text = facts.text();

        let mut table = Table::new(["codec", "tensors", "weights", "bytes", "bits/weight"]);
        for share in &self.codecs {
            table.row([
                share.codec.to_string(),
                share.tensors.to_string(),
                share.weights.to_string(),
                share.bytes.to_string(),
                format!("{:.3}", share.bits_per_weight),
            ]);
        }
        text.push('\n');
        text.push_str(&table.text());

        let mut table = Table::new(["part", "bytes", "share"]);
        for part in &self.parts {
            let share = 100.0 * part.bytes as f64 / self.file_bytes as f64;
            table.row([part.part.into(), part.bytes.to_string(), format!("{share:.1} %")]);
        }
        text.push('\n');
        text.push_str(&table.text());

        if let Some(tensors) = &self.tensors {
            let mut table =
                Table::new(["tensor", "shape", "codec", "bytes", "bits/weight", "error"]);
            for tensor in tensors {
                let shape: Vec<_> = tensor.shape.iter().map(u64::to_string).collect();
                table.row([
                    tensor.name.clone(),
                    shape.join("x"),
                    tensor.codec.to_string(),
                    tensor.bytes.to_string(),
                    format!("{:.3}", tensor.bits_per_weight),
                    tensor.relative_error.map_or("-".into(), |error| format!("{error:.2e}")),
                ]);
            }
            text.push('\n');
            text.push_str(&table.text());
        }
        text
    }
}

fn quality_facts(quality: &QualityReport, facts: &mut Facts) {
    let Some(ppl) = quality.ppl else {
        facts.add("quality", "not measured (quantize --measure TEXT_FILE does)");
        return;
    };
    let spread = quality.ppl_ci95.map_or(String::new(), |[l, h]| format!(" ({l:.4} … {h:.4})"));
    let reference = quality.ppl_reference.map_or(String::new(), |r| format!(", source {r:.4}"));
    facts.add("quality", format_args!("PPL {ppl:.4}{spread}{reference}"));
    if let Some(kld) = quality.kld_mean {
        let spread = quality.kld_ci95.map_or(String::new(), |ci95| format!(" ± {ci95:.6}"));
        let percentiles = [("p99", quality.kld_p99), ("p99.9", quality.kld_p999)];
        let percentiles = percentiles.map(|(name, value)| {
            value.map_or(String::new(), |value| format!(", {name} {value:.4}"))
        });
        facts.add("", format_args!("KLD {kld:.6}{spread}{}", percentiles.concat()));
    }
    let shares = [("same top 1", quality.same_top1), ("RMS Δp", quality.delta_p_rms)];
    let shares: Vec<_> = shares
        .into_iter()
        .filter_map(|(name, share)| Some(format!("{name} {:.2} %", share? * 100.0)))
        .collect();
    if !shares.is_empty() {
        facts.add("", shares.join(", "));
    }
    let tokens = quality.tokens.map_or(String::new(), |count| format!(", {count} tokens scored"));
    let kv = quality.kv.as_ref().map_or(String::new(), |kv| format!(", KV {kv}"));
    let by = quality.measured_by.as_ref().map_or(String::new(), |by| format!(", by {by}"));
    facts.add("measured", format_args!("{}{tokens}{kv}{by}", quality.protocol));
    if let Some(digest) = &quality.text_blake3 {
        facts.add("", format_args!("text BLAKE3 {digest}"));
    }
}
