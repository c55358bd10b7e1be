//! The arguments, as users type them. See `verbs` for what they do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueHint};
use gristmill_eval::{Family, Protocol, Subject, TokenPath};
use gristmill_quantize::{Calibration, GgufFileType, Method, Objective};
use gristmill_runtime::text::SamplerConfig;
use gristmill_runtime::{EngineConfig, Head, Isa, KvType, Residency};

use crate::knobs;
use crate::kv::KvArg;

const MODEL_HELP: &str =
    "A .grist file, a Hugging Face directory, or org/name[@revision] in the hub cache";

/// How far stored figures may be off: results are the same bits on every machine, so this only leaves room
/// for sums in another order.
const MAX_DRIFT: f64 = 1e-6;

/// Quantize Hugging Face models to one packed file, run it, and measure what the packing cost.
#[derive(Debug, Parser)]
#[command(
    name = "gristmill",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Start with `gristmill demo`. MODEL is a .grist file, a Hugging Face directory, or \
                  org/name[@revision] in the hub cache.\nExit codes: 0 done, 1 failed, 2 wrong usage, \
                  3 a check failed, 130 interrupted.",
    after_long_help = long_help()
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,

    /// Print one JSON document instead of text
    #[arg(long, global = true, display_order = 100)]
    pub(crate) json: bool,
}

fn long_help() -> String {
    format!(
        "Start with `gristmill demo`. MODEL is a .grist file, a Hugging Face directory, or \
         org/name[@revision] in the hub cache.\n\nExit codes: 0 done, 1 failed, 2 wrong usage, \
         3 a check failed, 130 interrupted.\n\n{}",
        knobs::help()
    )
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Demo(DemoArgs),
    Quantize(QuantizeArgs),
    Run(RunArgs),
    Chat(ChatArgs),
    Eval(EvalArgs),
    Bench(BenchArgs),
    Hwbench(HwbenchArgs),
    Predict(PredictArgs),
    Pareto(ParetoArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
}

/// Show everything on a small built-in model: quantize, verify, measure, generate
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gristmill demo --out demo")]
pub(crate) struct DemoArgs {
    /// Keep the checkpoint, the packed files and report.json in this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) out: Option<PathBuf>,
}

/// Pack a model into one .grist file
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gristmill quantize ./SmolLM2-135M -o smol-q4.grist\n  \
    gristmill quantize ./SmolLM2-135M -o smol.grist --size 84MB\n  \
    gristmill quantize org/name -o m.grist --codec '^embed$=q8' --measure heldout.txt\n  \
    gristmill quantize ./SmolLM2-135M --dry-run --json")]
pub(crate) struct QuantizeArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: String,
    /// File to write; it appears complete or not at all
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(required_unless_present = "dry_run")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rounding: RoundingArgs,
    /// Write a GGUF file of this type for llama.cpp instead: q4_0, q4_1, q8_0, q4_k_s, bf16, f16 or f32
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["bits", "bpw", "size", "codecs", "measure"])]
    #[arg(conflicts_with_all = ["dry_run", "objective", "refine", "tune"])]
    pub(crate) gguf: Option<GgufFileType>,
    /// Continue an interrupted run with the same arguments
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) resume: bool,
    /// Write what was done to every tensor, as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) report: Option<PathBuf>,
    /// Measure PPL and KLD against MODEL on this text (up to 40 windows of 512 tokens) and store them
    #[arg(long, value_name = "TEXT_FILE", conflicts_with = "dry_run")]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) measure: Option<PathBuf>,
    /// Only say how large the file would be
    #[arg(long, conflicts_with = "report")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArg,
}

/// How weights are rounded: all that a recipe is.
#[derive(Debug, Clone, Args)]
pub(crate) struct RoundingArgs {
    /// Bits per weight of the matrices: 2 (q2), 3, 4, 5, 6, 8 (q8), 16 (bf16) or 32 (f32)
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) bits: u32,
    /// Bytes of the whole file, e.g. 84MB or 76MiB: each matrix gets the codec that serves best
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["bits", "bpw"], value_parser = size_parser)]
    pub(crate) size: Option<u64>,
    /// Bits per weight of the whole file, everything counted: as --size
    #[arg(long, value_name = "X", conflicts_with = "bits")]
    pub(crate) bpw: Option<f64>,
    /// Codec of the tensors whose name matches: f32, bf16, f16, q8, q6, q5, q4, q3, q2; the first match counts
    #[arg(long = "codec", value_name = "REGEX=ID")]
    pub(crate) codecs: Vec<String>,
    /// How weights are rounded [default: rtn; gptq with an option that calibrates]
    #[arg(long, value_name = "NAME", value_parser = method_parser())]
    pub(crate) method: Option<Method>,
    /// What error feedback keeps small: fisher (the model's loss), guided or inputs (a layer's error)
    #[arg(long, value_name = "NAME", default_value_t, value_parser = objective_parser())]
    pub(crate) objective: Objective,
    /// Text to calibrate on, UTF-8 [default: built in]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) calib: Option<PathBuf>,
    /// Tokens of the calibration text to look at
    #[arg(long, value_name = "N", default_value_t = Calibration::DEFAULT_TOKENS)]
    pub(crate) calib_tokens: usize,
    /// Go over each matrix this often with coordinate descent after error feedback
    #[arg(long, value_name = "SWEEPS", default_value_t = 0)]
    pub(crate) refine: usize,
    /// Then tune scales, tables and norms on this many passes over the calibration text; holds the model as f32
    #[arg(long, value_name = "PASSES", default_value_t = 0)]
    pub(crate) tune: usize,
}

/// A recipe on its own.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct RecipeArgs {
    #[command(flatten)]
    pub(crate) rounding: RoundingArgs,
}

/// Continue a text
#[derive(Debug, Args)]
#[command(after_help = "The continuation alone goes to standard output. Without --seed every run \
    differs; --temp 0 always takes the likeliest token.\n\nExamples:\n  \
    gristmill run m.grist -p 'Once upon a time' -n 64\n  \
    gristmill run m.grist -f prompt.txt --temp 0 --raw --stats\n  \
    echo 'Name three rivers.' | gristmill run m.grist --system 'Be brief.' --json")]
pub(crate) struct RunArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: String,
    /// The prompt; without -p and -f it is read from standard input
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// File with the prompt
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Apply no chat template, even if the model has one
    #[arg(long, conflicts_with = "system")]
    pub(crate) raw: bool,
    /// System message for the chat template
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Stop before this text; may be repeated
    #[arg(long, value_name = "STRING", value_parser = non_empty)]
    pub(crate) stop: Vec<String>,
    /// Print speeds on standard error
    #[arg(long)]
    pub(crate) stats: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// Talk with a model
#[derive(Debug, Args)]
#[command(after_help = "One line is one message; /reset forgets the conversation, /exit ends it. \
    Ctrl-C stops a reply.\n\nExamples:\n  gristmill chat m.grist\n  \
    printf 'Hi!\\nWhat did I say?\\n' | gristmill chat m.grist --temp 0")]
pub(crate) struct ChatArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: String,
    /// Most tokens of one reply
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024)]
    pub(crate) max_tokens: usize,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Print speeds on standard error
    #[arg(long)]
    pub(crate) stats: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// Measure perplexity, divergence from a reference, or answers to questions
#[derive(Debug, Args)]
#[command(
    after_help = "Protocol chunk is llama.cpp's (second half of each window counts), window is \
    that of Hugging Face and GPTQ.\n\nExamples:\n  \
    gristmill eval m.grist --text heldout.txt\n  \
    gristmill eval m.grist --text heldout.txt --reference ./checkpoint --max-kld 0.05\n  \
    gristmill eval m.grist --choices hellaswag.jsonl --reference ./checkpoint\n  \
    gristmill eval m.grist --against-embedded --text heldout.txt"
)]
pub(crate) struct EvalArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: String,
    /// UTF-8 text to score, read as it is
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(required_unless_present_any = ["choices", "against_embedded"])]
    pub(crate) text: Option<PathBuf>,
    /// Multiple-choice questions to ask instead, one JSON object a line: query, choices and gold, or the
    /// fields of HellaSwag or ARC
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["text", "protocol", "ctx", "windows", "depth", "path", "against"])]
    #[arg(conflicts_with_all = ["against_embedded", "max_ppl", "max_kld"])]
    pub(crate) choices: Option<PathBuf>,
    /// Which predictions count
    #[arg(long, value_name = "NAME", default_value = Protocol::Chunk.name())]
    #[arg(value_parser = protocol_parser())]
    pub(crate) protocol: Protocol,
    /// Tokens of a window [default: 512 for chunk, 2048 for window, the model's limit if that is less]
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<usize>,
    /// Windows from the start of the text [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) windows: Option<usize>,
    /// Tokens of the text before each window, as context that is not scored
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) depth: usize,
    /// How MODEL computes a window: many tokens at a time, or one by one as when it generates
    #[arg(long, value_name = "NAME", default_value = TokenPath::Prefill.name())]
    #[arg(value_parser = names(TokenPath::ALL.map(|path| (path.name(), path))))]
    pub(crate) path: TokenPath,
    /// Model to compare with, usually the original checkpoint
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: Option<String>,
    /// Compare with another model's `eval --json` over the same windows, pair by pair
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) against: Option<PathBuf>,
    /// Measure again what `quantize --measure` stored in the file, on the same --text
    #[arg(long, conflicts_with_all = ["protocol", "ctx", "windows", "depth", "path", "kv"])]
    pub(crate) against_embedded: bool,
    /// Element type of the key/value cache, auto: the smallest that costs little; the reference has
    /// f16, or f32 if this is f32
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_parser())]
    pub(crate) kv: KvArg,
    /// Exit with 3 when the perplexity is above this
    #[arg(long, value_name = "X")]
    pub(crate) max_ppl: Option<f64>,
    /// Exit with 3 when the mean divergence from the reference is above this
    #[arg(long, value_name = "X", requires = "reference")]
    pub(crate) max_kld: Option<f64>,
    /// Exit with 3 when the stored perplexity (relative) or divergence (nats) is further off than this
    #[arg(long, value_name = "X", default_value_t = MAX_DRIFT, requires = "against_embedded")]
    pub(crate) max_drift: f64,
    #[command(flatten)]
    pub(crate) threads: ThreadsArg,
}

/// Measure speed beside the memory bandwidth that bounds it
#[derive(Debug, Args)]
#[command(
    after_help = "Several files, or --rounds, are measured in turns in fresh processes and compared \
    with the first.\n\nExamples:\n  gristmill bench m.grist --threads 1,2 --json\n  \
    gristmill bench m.grist --depth 0,1024,4096 --prompt 128,512\n  \
    gristmill bench a.grist b.grist --rounds 5\n  \
    gristmill bench m.grist --sustained 600\n  \
    gristmill bench m.grist --compare earlier.json --max-slowdown 5"
)]
pub(crate) struct BenchArgs {
    #[arg(help = MODEL_HELP, value_name = "MODEL", required = true)]
    pub(crate) models: Vec<String>,
    /// Numbers of threads to measure [default: all cores]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = threads_parser())]
    pub(crate) threads: Vec<u64>,
    /// Tokens of the prompt [default: 512, or what the model takes]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub(crate) prompt: Vec<usize>,
    /// Tokens to generate [default: 128, in a sustained run 256]
    #[arg(long, value_name = "N")]
    pub(crate) r#gen: Option<usize>,
    /// Tokens in the context before the prompt
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "0")]
    pub(crate) depth: Vec<usize>,
    /// Repeats of each measurement
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) repeat: usize,
    /// Fresh processes that start on a text, and a third as many after the file was dropped from the file
    /// cache; 0: none [default: 3, or the repeats if those are fewer]
    #[arg(long, value_name = "N")]
    pub(crate) cold: Option<usize>,
    /// Then run for so many seconds and report the sustained rate and when it was throttled
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) sustained: Option<u64>,
    /// Share of the first rate below which a sustained run counts as throttled
    #[arg(long, value_name = "X", default_value_t = 0.9, requires = "sustained")]
    #[arg(value_parser = share_parser)]
    pub(crate) throttled_below: f64,
    /// Fresh processes per file, in turns [default: 5 for several files, else none]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) rounds: Option<u64>,
    /// Compare with what --json printed earlier
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) compare: Option<PathBuf>,
    /// Exit with 3 when a rate is lower than the earlier one by more than this, or not comparable
    #[arg(long, value_name = "PERCENT", requires = "compare", value_parser = percent_parser)]
    pub(crate) max_slowdown: Option<f64>,
    /// Element type of the key/value cache; auto measures and takes the smallest that costs little
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_parser())]
    pub(crate) kv: KvArg,
    /// Where the weights are; see `gristmill run --help`
    #[arg(long, value_name = "WHERE", default_value = "auto", value_parser = residency_parser())]
    pub(crate) residency: Residency,
    /// How the output head is computed; see `gristmill run --help`
    #[arg(long, value_name = "HOW", default_value = "full", value_parser = head_parser())]
    pub(crate) head: Head,
    /// One cold start, timed from this moment in nanoseconds since 1970; what `--cold` runs
    #[arg(long, value_name = "NANOSECONDS", hide = true)]
    pub(crate) cold_run: Option<u128>,
}

/// Measure every kernel beside the machine's ceilings
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  gristmill hwbench --quick\n  \
    gristmill hwbench --update KERNELS.md\n  \
    gristmill hwbench --family gemv,small-m --of q4,q3 --threads 1")]
pub(crate) struct HwbenchArgs {
    /// Numbers of threads to measure [default: 1 and all cores]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = threads_parser())]
    pub(crate) threads: Vec<u64>,
    /// Instruction sets to measure [default: all that the CPU has]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = isa_parser())]
    pub(crate) isa: Vec<Isa>,
    /// Families to measure [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = family_parser())]
    pub(crate) family: Vec<Family>,
    /// Codecs, cache types and operations to measure [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = subject_parser())]
    pub(crate) of: Vec<&'static str>,
    /// Small buffers and few repeats: seconds instead of minutes, and rough figures
    #[arg(long)]
    pub(crate) quick: bool,
    /// Exit with 3 when another instruction set is faster than the one that is chosen
    #[arg(long)]
    pub(crate) assert: bool,
    /// Print the tables alone
    #[arg(long, conflicts_with = "json")]
    pub(crate) markdown: bool,
    /// Write the tables between the markers hwbench:begin and hwbench:end of this document
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["family", "of"])]
    pub(crate) update: Option<PathBuf>,
}

/// Predict speed and memory before anything is run, downloaded or packed
#[derive(Debug, Args)]
#[command(
    after_help = "The first prediction probes this machine for some seconds; what it finds is kept. \
    Exit code 3: it does not fit.\n\nExamples:\n  gristmill predict m.grist\n  \
    gristmill predict ./SmolLM2-135M --bits 4 --depth 4000 --kv int8\n  \
    gristmill predict config.json --bits 4 --device pi5\n  \
    gristmill predict                                         # lists devices"
)]
pub(crate) struct PredictArgs {
    #[arg(help = format!("{MODEL_HELP}, or a config.json alone"))]
    pub(crate) model: Option<String>,
    /// As if all matrices were packed with so many bits [default: as they are]
    #[arg(long, value_name = "N")]
    pub(crate) bits: Option<u32>,
    /// As if the tensors whose name matches had this codec; the first match counts
    #[arg(long = "codec", value_name = "REGEX=ID")]
    pub(crate) codecs: Vec<String>,
    /// For a device of the table instead of this machine
    #[arg(long, value_name = "NAME", conflicts_with = "reprobe")]
    pub(crate) device: Option<String>,
    /// Numbers of threads [default: 1 and all cores]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = threads_parser())]
    pub(crate) threads: Vec<u64>,
    /// Tokens of the prompt [default: 512, or what the model takes]
    #[arg(long, value_name = "N")]
    pub(crate) prompt: Option<usize>,
    /// Tokens generated after it
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) r#gen: usize,
    /// Tokens in the context before the prompt
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) depth: usize,
    /// Positions that memory is planned for [default: those of the run]
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<usize>,
    /// Element type of the key/value cache
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    #[arg(value_parser = names(KvType::ALL.map(|kv| (kv.name(), kv))))]
    pub(crate) kv: KvType,
    /// Where the weights are; see `gristmill run --help`
    #[arg(long, value_name = "WHERE", default_value = "auto", value_parser = residency_parser())]
    pub(crate) residency: Residency,
    /// Probe this machine anew
    #[arg(long)]
    pub(crate) reprobe: bool,
}

/// Compare recipes: size, quality and speed of many files in one table and one page
#[derive(Debug, Args)]
#[command(
    after_help = "A recipe is what quantize takes, such as '--bits 4 --method gptq', or file=FILE for a \
    packed file as it is; its name comes before it: 'tuned=--size 40MB --tune 3'. Without any there is a \
    ladder from 8 bits down to 2.3. What is finished stays in DIR: the same command goes on after an \
    interruption, and measures again only what depends on something that changed.\n\nExamples:\n  \
    gristmill pareto ./SmolLM2-135M --out pareto --text wiki.test.raw --threads 1,2\n  \
    gristmill pareto ./SmolLM2-135M --out pareto --text wiki.test.raw --recipe '--bits 4' --recipe 'mine=file=m.grist'\n  \
    gristmill pareto --out pareto --report-only --peers peers.json --update README.md\n  \
    gristmill pareto --compare monday.json tuesday.json"
)]
pub(crate) struct ParetoArgs {
    /// Models to pack and to compare with, as quantize takes them; NAME=MODEL gives one another name
    #[arg(value_name = "MODEL", required_unless_present_any = ["report_only", "compare"])]
    pub(crate) models: Vec<String>,
    /// Directory for packed files, finished steps, pareto.json and pareto.html
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    #[arg(required_unless_present = "compare")]
    pub(crate) out: Option<PathBuf>,
    /// UTF-8 text to measure quality on
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(required_unless_present_any = ["report_only", "compare"])]
    pub(crate) text: Option<PathBuf>,
    /// What quantize takes to say how weights are rounded, or file=FILE; may be repeated [default: a ladder]
    #[arg(long = "recipe", value_name = "[NAME=]ARGS", allow_hyphen_values = true)]
    pub(crate) recipes: Vec<String>,
    /// More of them: a JSON list of {"name": ..., "args": ...} and {"name": ..., "file": ...}
    #[arg(long = "recipes", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) recipes_file: Option<PathBuf>,
    /// Text that recipes calibrate on which name none [default: built in]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) calib: Option<PathBuf>,
    /// Which predictions count
    #[arg(long, value_name = "NAME", default_value = Protocol::Chunk.name())]
    #[arg(value_parser = protocol_parser())]
    pub(crate) protocol: Protocol,
    /// Tokens of a window, as for eval
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<usize>,
    /// Windows from the start of the text
    #[arg(long, value_name = "N", default_value_t = crate::measure::BRIEF_WINDOWS)]
    pub(crate) windows: usize,
    /// Element type of the key/value cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = names(KvType::ALL.map(|kv| (kv.name(), kv))))]
    pub(crate) kv: KvType,
    /// Numbers of threads to measure speed with [default: all cores]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = threads_parser())]
    pub(crate) threads: Vec<u64>,
    /// Tokens of the prompt [default: 512, or what the models take]
    #[arg(long, value_name = "N")]
    pub(crate) prompt: Option<usize>,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) r#gen: usize,
    /// Rounds in which all files take turns; those already in DIR count
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) rounds: u64,
    /// Measure no speed
    #[arg(long)]
    pub(crate) no_bench: bool,
    /// What other programs reach, as JSON: see EVAL.md
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) peers: Option<PathBuf>,
    /// Write the table between the markers pareto:begin and pareto:end of this document
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) update: Option<PathBuf>,
    /// Measure nothing: write the page and the table anew from DIR/pareto.json
    #[arg(long, conflicts_with_all = ["models", "text", "recipes", "recipes_file", "calib", "no_bench"])]
    pub(crate) report_only: bool,
    /// Say whether the intervals of two pareto.json overlap; exit with 3 when some do not
    #[arg(long, num_args = 2, value_names = ["FILE", "FILE"], value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["models", "out", "text", "recipes", "recipes_file", "peers", "update", "report_only"])]
    pub(crate) compare: Vec<PathBuf>,
}

/// Say what is in a packed file or a checkpoint
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gristmill inspect m.grist --tensors")]
pub(crate) struct InspectArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: String,
    /// List the tensors
    #[arg(long)]
    pub(crate) tensors: bool,
}

/// Check every byte of a packed file; exit with 3 when something is damaged
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gristmill verify m.grist || echo damaged")]
pub(crate) struct VerifyArgs {
    /// A .grist file
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
}

/// How the next token is chosen. What is not given is as the model's generation_config.json says.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (default: as the model asks)")]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 always takes the likeliest token
    #[arg(long, value_name = "X")]
    pub(crate) temp: Option<f32>,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<u32>,
    /// Keep the likeliest tokens that have this probability together
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Divide the logits of tokens already seen by this
    #[arg(long, value_name = "X")]
    pub(crate) repeat_penalty: Option<f32>,
    /// Seed of the draws [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

impl SamplingArgs {
    /// The flags over what the model asks for. `fallback_seed` is used when no flag gives one.
    pub(crate) fn apply(&self, mut config: SamplerConfig, fallback_seed: u64) -> SamplerConfig {
        // A model whose default is greedy was made to be sampled when the user asks for it: the other
        // values are then those of sampling.
        let samples = self.temp.is_some_and(|temp| temp > 0.0);
        if config.is_greedy() && samples {
            let penalty = config.repetition_penalty;
            config = SamplerConfig { repetition_penalty: penalty, ..SamplerConfig::default() };
        }
        config.temperature = self.temp.unwrap_or(config.temperature);
        config.top_k = self.top_k.unwrap_or(config.top_k);
        config.top_p = self.top_p.unwrap_or(config.top_p);
        config.min_p = self.min_p.unwrap_or(config.min_p);
        config.repetition_penalty = self.repeat_penalty.unwrap_or(config.repetition_penalty);
        config.seed = self.seed.unwrap_or(fallback_seed);
        config
    }
}

/// How the model is run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct EngineArgs {
    /// Tokens that prompt and reply may have together [default: the model's limit, at most 4096]
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<usize>,
    /// Element type of the key/value cache; auto measures and takes the smallest that costs little
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_parser())]
    pub(crate) kv: KvArg,
    /// Where the weights are: the mapped file, a copy in huge pages, a copy of what fits with the rest
    /// streamed from the file, or what suits the model's size and the free memory
    #[arg(long, value_name = "WHERE", default_value = "auto", value_parser = residency_parser())]
    pub(crate) residency: Residency,
    /// How the output head is computed: in full, or with a coarse copy first and then where that leaves
    /// doubt, which gives the same tokens and reads less when the head has 8 bits or more and sampling is
    /// greedy or keeps K tokens
    #[arg(long, value_name = "HOW", default_value = "full", value_parser = head_parser())]
    pub(crate) head: Head,
    #[command(flatten)]
    pub(crate) threads: ThreadsArg,
}

/// Threads to use.
#[derive(Debug, Args)]
pub(crate) struct ThreadsArg {
    /// Threads; results do not depend on them [default: all cores]
    #[arg(long, value_name = "N", value_parser = threads_parser())]
    threads: Option<u64>,
}

impl ThreadsArg {
    /// The flag, else the environment, else nothing.
    pub(crate) fn resolve(&self) -> anyhow::Result<Option<usize>> {
        match self.threads {
            Some(threads) => Ok(Some(threads as usize)),
            None => knobs::threads(),
        }
    }
}

fn threads_parser() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=EngineConfig::MAX_THREADS as u64)
}

/// A parser of names, each of which `parse` understands.
fn names<T: Clone + Send + Sync + 'static>(
    all: impl IntoIterator<Item = (&'static str, T)>,
) -> impl TypedValueParser<Value = T> {
    let all: Vec<_> = all.into_iter().collect();
    let possible = PossibleValuesParser::new(all.iter().map(|(name, _)| *name));
    possible.try_map(move |given| {
        let found = all.iter().find(|(name, _)| *name == given);
        found.map(|(_, value)| value.clone()).ok_or("unknown")
    })
}

fn residency_parser() -> impl TypedValueParser<Value = Residency> {
    names(Residency::ALL.map(|residency| (residency.name(), residency)))
}

fn head_parser() -> impl TypedValueParser<Value = Head> {
    names(Head::ALL.map(|head| (head.name(), head)))
}

fn kv_parser() -> impl TypedValueParser<Value = KvArg> {
    names(KvArg::all())
}

fn isa_parser() -> impl TypedValueParser<Value = Isa> {
    names(Isa::ALL.map(|isa| (isa.name(), isa)))
}

fn family_parser() -> impl TypedValueParser<Value = Family> {
    names(Family::ALL.map(|family| (family.name(), family)))
}

/// A codec and a cache type may have one name: both are meant.
fn subject_parser() -> impl TypedValueParser<Value = &'static str> {
    let named: BTreeMap<_, _> = Subject::all().map(|s| (s.name(), s.name())).collect();
    names(named)
}

fn protocol_parser() -> impl TypedValueParser<Value = Protocol> {
    names(Protocol::ALL.map(|protocol| (protocol.name(), protocol)))
}

fn method_parser() -> impl TypedValueParser<Value = Method> {
    names(Method::ALL.map(|method| (method.name(), method)))
}

fn objective_parser() -> impl TypedValueParser<Value = Objective> {
    names(Objective::ALL.map(|objective| (objective.name(), objective)))
}

fn non_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.into()) }
}

/// A share in percent.
fn percent_parser(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..100.0).contains(&percent) => Ok(percent),
        _ => Err("expected a number from 0 to less than 100".into()),
    }
}

/// A number between 0 and 1, without these.
fn share_parser(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("expected a number between 0 and 1".into()),
    }
}

/// Bytes with a decimal (kB, MB, GB) or binary (KiB, MiB, GiB) unit, or none.
fn size_parser(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 7] = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("kB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("B", 1.0),
    ];
    let unit = UNITS.into_iter().find(|(unit, _)| text.ends_with(unit));
    let (number, factor) =
        unit.map_or((text, 1.0), |(unit, factor)| (text.trim_end_matches(unit), factor));
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok((number * factor) as u64),
        _ => Err("expected a size such as 84MB, 80MiB or 84000000".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_override_what_the_model_asks() {
        let flags = |text: &str| {
            let words = ["gristmill", "run", "m"].into_iter().chain(text.split_whitespace());
            match Cli::try_parse_from(words).unwrap().verb {
                Verb::Run(run) => run.sampling,
                other => panic!("{other:?}"),
            }
        };
        let asked = SamplerConfig { temperature: 0.6, top_p: 0.9, ..SamplerConfig::default() };
        let config = flags("--top-k 7").apply(asked.clone(), 5);
        assert_eq!((config.temperature, config.top_k, config.top_p), (0.6, 7, 0.9));
        assert_eq!(config.seed, 5);
        assert!(flags("--temp 0 --seed 9").apply(asked, 5).is_greedy());
        let sampled = flags("--temp 0.7").apply(SamplerConfig::greedy(), 5);
        assert_eq!((sampled.temperature, sampled.top_k), (0.7, SamplerConfig::default().top_k));
    }
}
