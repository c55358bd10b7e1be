//! Chat templates: messages to the prompt that the checkpoint was trained on.
//!
//! Rendered as transformers renders them (`apply_chat_template`): Jinja with `trim_blocks`,
//! `lstrip_blocks`, `break` and `continue`, the methods of Python's strings and dicts, `tojson` as
//! `json.dumps` writes, `raise_exception`, `strftime_now`, and `{% generation %}`, which marks the
//! assistant's part for training and has no effect here. A template sees `messages`,
//! `add_generation_prompt`, `tools` and `documents` (none unless given), the checkpoint's special
//! tokens as `bos_token`, `eos_token`, `pad_token` and `unk_token` where it has them, and whatever
//! the caller passes.
//!
//! What differs from Jinja in Python: `%` between a string and values is an error (use the `format`
//! filter or method), and `mapping.items` without a call is the entry of that name, never the
//! method.
//!
//! A template is a program out of a downloaded file. It can read nothing but these values, and its
//! steps, its depth and its output are bounded by the constants below. Strings that it builds
//! without printing them are bounded only by its steps.

mod clock;
mod python;

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use gristmill_formats::source::TextAssets;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::TextError;

/// Longest template in bytes. Those of current models have 1 to 30 thousand.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Most steps of one rendering. A long conversation with tools takes some hundred thousand.
pub const MAX_TEMPLATE_STEPS: u64 = 10_000_000;
/// Deepest nesting of macro calls.
pub const MAX_TEMPLATE_DEPTH: usize = 100;
/// Longest rendered prompt in bytes.
pub const MAX_RENDERED_BYTES: usize = 64 << 20;

const NAME: &str = "chat_template";
/// What a message's reasoning is called; templates read the first.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub role: String,
    /// A string, or a list of parts for templates that take them. Absent is not the same as null.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// Everything else, such as `tool_calls`, `name` or `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let content = Some(Value::String(content.into()));
        Self { role: role.into(), content, extra: Map::new() }
    }

    /// The message as a template sees it: as given, and reasoning under every name for it.
    fn to_value(&self) -> Value {
        let reasoning = REASONING_FIELDS
            .iter()
            .find_map(|field| self.extra.get(*field).filter(|value| !value.is_null()));
        let mut map = Map::new();
        if let Some(reasoning) = reasoning {
            map.insert("thinking".into(), reasoning.clone());
        }
        map.insert("role".into(), self.role.clone().into());
        if let Some(content) = &self.content {
            map.insert("content".into(), content.clone());
        }
        for (key, value) in &self.extra {
            map.insert(key.clone(), value.clone());
        }
        if let Some(reasoning) = reasoning {
            map.insert("reasoning_content".into(), reasoning.clone());
        }
        Value::Object(map)
    }
}

/// An explicit null is content, too.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: Map<String, Value>,
    now: Option<i64>,
}

impl ChatTemplate {
    /// Compiles the checkpoint's template.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`] when there is none, [`TextError::ChatTemplate`] when it is not
    /// valid.
    pub fn new(text: &TextAssets) -> Result<Self, TextError> {
        let source = text.chat_template.as_deref().ok_or(TextError::NoChatTemplate)?;
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TextError::ChatTemplate(format!(
                "it has {} bytes, at most {MAX_TEMPLATE_BYTES} are supported",
                source.len()
            )));
        }
        let mut special = Map::new();
        for (name, token) in [
            ("bos_token", &text.bos),
            ("eos_token", &text.eos),
            ("pad_token", &text.pad),
            ("unk_token", &text.unk),
        ] {
            if let Some(token) = token {
                special.insert(name.into(), token.text.clone().into());
            }
        }
        let mut environment = environment()?;
        environment
            .add_template_owned(NAME, python::replace_generation_tags(source))
            .map_err(|error| failure(&error))?;
        Ok(Self { environment, special, now: None })
    }

    /// Fixes what `strftime_now` sees: seconds since 1970 on the clock that the template should
    /// show. The default is the system's clock in UTC.
    #[must_use]
    pub fn with_now(mut self, unix_seconds: i64) -> Self {
        self.now = Some(unix_seconds);
        self
    }

    /// The prompt for a conversation. With `add_generation_prompt` it ends where the assistant
    /// begins to speak. `kwargs` are further variables: `tools`, `documents`, `enable_thinking` and
    /// the like.
    ///
    /// Encode the result without special tokens: it has its own.
    ///
    /// # Errors
    /// [`TextError::ChatRefused`] when the template refuses the messages,
    /// [`TextError::ChatTemplate`] when it fails or passes a limit.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        kwargs: Map<String, Value>,
    ) -> Result<String, TextError> {
        let mut variables = self.special.clone();
        // Templates tell "none" from "undefined", and transformers always passes these.
        variables.insert("tools".into(), Value::Null);
        variables.insert("documents".into(), Value::Null);
        variables.extend(kwargs);
        let messages = messages.iter().map(Message::to_value).collect();
        variables.insert("messages".into(), Value::Array(messages));
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        variables.insert(clock::VARIABLE.into(), self.now.unwrap_or_else(system_now).into());

        let template = self.environment.get_template(NAME).map_err(|error| failure(&error))?;
        let mut output = Bounded(Vec::new());
        template
            .render_captured_to(minijinja::value::Serde(&variables), &mut output)
            .map_err(|error| failure(&error))?;
        String::from_utf8(output.0).map_err(|error| TextError::ChatTemplate(error.to_string()))
    }
}

fn environment() -> Result<Environment<'static>, TextError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| failure(&error))?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(MAX_TEMPLATE_DEPTH);
    environment.set_fuel(Some(MAX_TEMPLATE_STEPS));
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::print);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("wordcount", python::wordcount);
    environment.add_test("callable", python::is_callable);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", clock::strftime_now);
    Ok(environment)
}

fn system_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// What a template says when it refuses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<String, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refusal(message)))
}

fn failure(error: &Error) -> TextError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(Refusal(message)) = inner.downcast_ref() {
            return TextError::ChatRefused(message.clone());
        }
        source = inner.source();
    }
    TextError::ChatTemplate(error.to_string())
}

/// Output that ends with an error instead of growing beyond its limit.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_RENDERED_BYTES - self.0.len() {
            let message = format!("the prompt has more than {MAX_RENDERED_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
