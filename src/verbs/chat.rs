//! `chat`: a conversation. The key/value cache is kept for what the next prompt has in common with the
//! sequence so far, which is usually all of it.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use gristmill_eval::KvChoice;
use gristmill_runtime::text::{
    ChatTemplate, Message, Sampler, SamplerConfig, TextError, Tokenizer,
};
use gristmill_runtime::{Engine, RuntimeError};
use serde::Serialize;
use serde_json::Map;

use super::{Session, fresh_seed, note_unused_head};
use crate::args::ChatArgs;
use crate::error::{Outcome, WithHint};
use crate::generate::{Finish, Generated, Request, Timings, generate, printer};
use crate::interrupt;
use crate::render::{self, SCHEMA_VERSION};
use crate::source::Source;

#[derive(Debug, Serialize)]
struct ChatResult {
    schema_version: u32,
    messages: Vec<Message>,
    /// One per reply, since the beginning.
    turns: Vec<Turn>,
    /// Element type of the key/value cache.
    kv: &'static str,
    /// Null when the user named the type.
    kv_choice: Option<KvChoice>,
    fingerprint: String,
}

#[derive(Debug, Serialize)]
struct Turn {
    reply: String,
    finish_reason: Finish,
    timings: Timings,
}

/// What a line of input asks for.
#[derive(Debug, PartialEq)]
enum Input<'a> {
    Message(&'a str),
    Reset,
    Exit,
    Nothing,
    Unknown(&'a str),
}

impl<'a> Input<'a> {
    fn parse(line: &'a str) -> Self {
        match line.trim() {
            "" => Self::Nothing,
            "/exit" | "/quit" | "/bye" => Self::Exit,
            "/reset" | "/clear" => Self::Reset,
            // A path or a fraction is a message, a single word after a slash a mistyped command.
            text if text.starts_with('/') && !text[1..].contains(['/', ' ']) => Self::Unknown(text),
            text => Self::Message(text),
        }
    }
}

pub(super) fn run(session: Session, args: &ChatArgs) -> Result<Outcome> {
    let source = Source::open(&args.model)?;
    let assets = source.model_source();
    let template = match ChatTemplate::new(assets.text()) {
        Err(error @ TextError::NoChatTemplate) => {
            return Err(error).hint("`gristmill run MODEL --raw -p TEXT` continues a text");
        }
        other => other?,
    };
    let tokenizer = source.tokenizer()?;
    let (engine, kv_choice) = session.engine(&source, &args.engine)?;
    let kv = engine.kv().name();
    let defaults = SamplerConfig::from_defaults(assets.generation());
    let sampling = args.sampling.apply(defaults, fresh_seed());
    let interactive = io::stdin().is_terminal();
    let mut chat = Conversation {
        args,
        json: session.json,
        template,
        tokenizer: &tokenizer,
        sampler: Sampler::new(sampling, engine.model().spec().vocab_size as usize)?,
        engine,
        in_engine: Vec::new(),
        messages: Vec::new(),
        turns: Vec::new(),
    };
    note_unused_head(&chat.engine, &chat.sampler);
    chat.reset();

    let mut outcome = Outcome::Done;
    loop {
        let Some(line) = read_line(interactive)? else { break };
        match Input::parse(&line) {
            Input::Nothing => {}
            Input::Exit => break,
            Input::Reset => chat.reset(),
            Input::Unknown(command) => {
                render::note(format_args!("{command}: unknown; known are /reset and /exit"));
            }
            Input::Message(text) => {
                let finish = chat.reply(text, &assets.text().stop_ids)?;
                if finish == Some(Finish::Interrupted) {
                    if !interactive {
                        outcome = Outcome::Interrupted;
                        break;
                    }
                    interrupt::clear();
                }
            }
        }
    }
    if session.json {
        let result = ChatResult {
            schema_version: SCHEMA_VERSION,
            messages: chat.messages,
            turns: chat.turns,
            kv,
            kv_choice,
            fingerprint: assets.fingerprint(),
        };
        io::stdout().lock().write_all(render::json_text(&result)?.as_bytes())?;
    }
    Ok(outcome)
}

/// The next line of input; `None` at its end.
fn read_line(interactive: bool) -> Result<Option<String>> {
    if interactive {
        let mut stderr = io::stderr().lock();
        let _ = write!(stderr, "> ");
        let _ = stderr.flush();
    }
    let mut line = String::new();
    let read = interrupt::while_idle(|| io::stdin().read_line(&mut line));
    Ok((read.context("cannot read standard input")? > 0).then_some(line))
}

#[derive(Debug)]
struct Conversation<'a> {
    args: &'a ChatArgs,
    json: bool,
    template: ChatTemplate,
    tokenizer: &'a Tokenizer,
    sampler: Sampler,
    engine: Engine,
    /// The tokens whose keys and values the engine holds.
    in_engine: Vec<u32>,
    messages: Vec<Message>,
    turns: Vec<Turn>,
}

impl Conversation<'_> {
    /// Forgets all but the system message.
    fn reset(&mut self) {
        self.engine.reset();
        self.in_engine.clear();
        let system = self.args.system.as_ref();
        self.messages =
            system.map(|text| Message::new("system", text.as_str())).into_iter().collect();
    }

    /// Answers a message. A message that no longer fits is dropped, and the user told; that is `None`.
    fn reply(&mut self, text: &str, stop_ids: &[u32]) -> Result<Option<Finish>> {
        self.messages.push(Message::new("user", text));
        let generated = match self.generate(stop_ids) {
            Ok(generated) => generated,
            Err(error) => {
                let full = error.downcast_ref::<RuntimeError>();
                if !matches!(full, Some(RuntimeError::ContextFull { .. })) {
                    return Err(error);
                }
                self.messages.pop();
                render::note(format_args!("{error}; /reset starts over"));
                return Ok(None);
            }
        };
        if self.args.stats {
            render::note(generated.timings.line());
        }
        self.messages.push(Message::new("assistant", generated.text.as_str()));
        self.turns.push(Turn {
            reply: generated.text,
            finish_reason: generated.finish,
            timings: generated.timings,
        });
        Ok(Some(generated.finish))
    }

    fn generate(&mut self, stop_ids: &[u32]) -> Result<Generated> {
        let prompt = self.template.render(&self.messages, true, Map::new())?;
        let prompt = self.tokenizer.encode(&prompt, false)?;
        let cached = self.keep_common(&prompt);
        self.sampler.reset();
        let request = Request {
            prompt: &prompt,
            cached,
            max_tokens: self.args.max_tokens,
            stop_ids,
            stop_strings: &[],
        };
        let mut emit = printer(self.json);
        let (engine, sampler) = (&mut self.engine, &mut self.sampler);
        let generated = generate(engine, self.tokenizer, sampler, &request, &mut emit);
        if generated.is_ok() {
            emit("\n")?;
        }
        // The last token that was generated is not in the engine yet.
        self.in_engine = prompt;
        self.in_engine.extend(generated.iter().flat_map(|g| &g.ids));
        self.in_engine.truncate(self.engine.position());
        generated
    }

    /// Takes the engine back to where `prompt` leaves what it holds; returns the tokens kept.
    fn keep_common(&mut self, prompt: &[u32]) -> usize {
        let common = self.in_engine.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // At least one token must be computed to have logits.
        let common = common.min(prompt.len().saturating_sub(1));
        if self.engine.rewind(common).is_ok() {
            return common;
        }
        self.engine.reset();
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        assert_eq!(Input::parse(" /exit\n"), Input::Exit);
        assert_eq!(Input::parse("/reset"), Input::Reset);
        assert_eq!(Input::parse("  \n"), Input::Nothing);
        assert_eq!(Input::parse("/rest"), Input::Unknown("/rest"));
        assert_eq!(Input::parse("/etc/passwd?"), Input::Message("/etc/passwd?"));
        assert_eq!(Input::parse("hello\n"), Input::Message("hello"));
    }
}
