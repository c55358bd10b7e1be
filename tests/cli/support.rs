//! Running the program and making models for it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The checkpoint of the repository: 2.2 million parameters, no chat template.
pub(crate) fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/tiny-shakespeare")
}

/// A command in an environment without settings of whoever runs the tests.
pub(crate) fn gristmill(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gristmill"));
    command.args(arguments).stdin(Stdio::null());
    for name in ["GRISTMILL_THREADS", "GRISTMILL_ISA", "GRISTMILL_CACHE", "HF_HOME", "HF_HUB_CACHE"]
    {
        command.env_remove(name);
    }
    command
}

/// What a run said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Said {
    /// Checks the exit code, and that a failure says why.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        if matches!(code, 1 | 2) {
            assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
            assert_eq!(self.stdout, "", "results only on success");
        }
        self
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}:\n{}", self.stdout))
    }
}

/// Runs to the end.
pub(crate) fn run(arguments: &[&str]) -> Said {
    gristmill(arguments).output().expect("the program starts").into()
}

/// Runs with this standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &str) -> Said {
    let mut command = gristmill(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    // The program may end before it has read everything.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("the program ends").into()
}

pub(crate) fn str(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A directory of this test alone.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// The checkpoint packed as q4, made once.
pub(crate) fn packed() -> &'static Path {
    static PACKED: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PACKED.get_or_init(|| {
        let directory = scratch();
        let path = directory.path().join("q4.grist");
        run(&["quantize", str(&checkpoint()), "-o", str(&path)]).expect(0);
        (directory, path)
    });
    path
}

/// A copy of the checkpoint with a chat template that marks speakers and nothing else.
pub(crate) fn with_chat_template(directory: &Path) -> PathBuf {
    let model = directory.join("chatty");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let path = model.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = json!(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant:{% endif %}"
    );
    fs::write(&path, config.to_string()).unwrap();
    model
}

/// A checkpoint of the same vocabulary that takes seconds to pack and milliseconds a token: its weights
/// are arbitrary.
pub(crate) fn slow_checkpoint(directory: &Path) -> PathBuf {
    const WIDTH: u64 = 1024;
    const FEED_FORWARD: u64 = 6144;
    const LAYERS: usize = 2;
    let model = directory.join("slow");
    fs::create_dir(&model).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(checkpoint().join(name), model.join(name)).unwrap();
    }
    let config = fs::read(checkpoint().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for (key, value) in [
        ("hidden_size", json!(WIDTH)),
        ("intermediate_size", json!(FEED_FORWARD)),
        ("num_hidden_layers", json!(LAYERS)),
        ("num_attention_heads", json!(8)),
        ("num_key_value_heads", json!(8)),
        ("head_dim", json!(128)),
        ("max_position_embeddings", json!(8192)),
    ] {
        config[key] = value;
    }
    fs::write(model.join("config.json"), config.to_string()).unwrap();

    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![1024, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        let mut push = |part: &str, shape| {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        };
        push("input_layernorm", vec![WIDTH]);
        push("post_attention_layernorm", vec![WIDTH]);
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            push(&format!("self_attn.{part}"), vec![WIDTH, WIDTH]);
        }
        push("mlp.gate_proj", vec![FEED_FORWARD, WIDTH]);
        push("mlp.up_proj", vec![FEED_FORWARD, WIDTH]);
        push("mlp.down_proj", vec![WIDTH, FEED_FORWARD]);
    }
    let mut header = serde_json::Map::new();
    let mut end = 0u64;
    for (name, shape) in &tensors {
        let start = end;
        end += shape.iter().product::<u64>() * 2;
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    // bf16 values of about ±0.01 with varied digits.
    let mut state = 1u32;
    for _ in 0..end / 2 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let sign = (state >> 16) as u16 & 0x8000;
        bytes.extend((sign | 0x3c00 | (state >> 24) as u16).to_le_bytes());
    }
    fs::write(model.join("model.safetensors"), bytes).unwrap();
    model
}
