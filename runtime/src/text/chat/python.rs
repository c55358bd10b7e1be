//! Where templates expect Python: methods, `json.dumps`, and the tag that transformers adds.

use std::io;

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// Methods of Python's strings and lists that the compatibility layer does not know, then those it
/// does.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, name, args)
    {
        return result;
    }
    if value.kind() == ValueKind::Seq && name == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        let found = value.try_iter()?.position(|item| item == *wanted);
        return found.map(Value::from).ok_or_else(|| missing("value is not in the list"));
    }
    if value.kind() == ValueKind::Map && name == "copy" {
        let () = from_args(args)?;
        return Ok(value.clone());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn missing(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let triple = |(a, b, c): (&str, &str, &str)| {
        Value::from(minijinja::value::Tuple::from([a, b, c].map(Value::from)))
    };
    let one = || from_args::<(&str,)>(args).map(|(arg,)| arg);
    Some(match name {
        "removeprefix" => one().map(|prefix| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => one().map(|suffix| text.strip_suffix(suffix).unwrap_or(text).into()),
        "partition" => one()
            .map(|sep| triple(text.split_once(sep).map_or((text, "", ""), |(a, b)| (a, sep, b)))),
        "rpartition" => one()
            .map(|sep| triple(text.rsplit_once(sep).map_or(("", "", text), |(a, b)| (a, sep, b)))),
        "rsplit" => rsplit(text, args),
        "index" => one().and_then(|wanted| {
            let found = text.find(wanted).map(|at| text[..at].chars().count());
            found.map(Value::from).ok_or_else(|| missing("substring not found"))
        }),
        "casefold" => from_args(args).map(|()| text.to_lowercase().into()),
        _ => return None,
    })
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (sep, max): (Option<&str>, Option<i64>) = from_args(args)?;
    let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let mut rest = match sep {
        Some(_) => text,
        None => text.trim(),
    };
    while parts.len() < max {
        let split = match sep {
            Some("") => return Err(missing("empty separator")),
            Some(sep) => rest.rsplit_once(sep),
            None => rest
                .rsplit_once(char::is_whitespace)
                .map(|(before, last)| (before.trim_end(), last)),
        };
        let Some((before, last)) = split else { break };
        parts.push(Value::from(last));
        rest = before;
    }
    if sep.is_some() || !rest.is_empty() {
        parts.push(Value::from(rest));
    }
    parts.reverse();
    Ok(Value::from(parts))
}

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`, the arguments in transformers'
/// order.
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    type Args = (Option<bool>, Option<Value>, Option<Vec<String>>, Option<bool>);
    let (ensure_ascii, indent, separators, sort_keys): Args = from_args(&args)?;
    let ensure_ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false);
    let indent = indent.or(kwargs.get("indent")?).filter(|indent| !indent.is_none());
    let separators = separators.or(kwargs.get("separators")?);
    let sort_keys = sort_keys.or(kwargs.get("sort_keys")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(missing("an undefined value is not JSON serializable"));
    }
    let indent = match indent {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            // Like Python: a negative width breaks lines and does not indent.
            None => " ".repeat(i64::try_from(indent)?.clamp(0, MAX_INDENT) as usize),
        }),
    };
    let (item, key) = match separators {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => match <[String; 2]>::try_from(pair) {
            Ok([item, key]) => (item, key),
            Err(_) => return Err(missing("separators must be a pair")),
        },
    };
    let style = PythonStyle { item, key, indent, ensure_ascii, depth: 0, empty: true };
    let mut json = serde_json::to_value(value).map_err(json_error)?;
    if sort_keys {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut bytes, style)).map_err(json_error)?;
    String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// Widest indentation; templates use 2 or 4.
const MAX_INDENT: i64 = 64;

fn json_error(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::InvalidOperation, "cannot serialize to JSON").with_source(error)
}

/// How `json.dumps` lays out and spells.
struct PythonStyle {
    item: String,
    key: String,
    indent: Option<String>,
    ensure_ascii: bool,
    depth: usize,
    /// Nothing has been written yet into the innermost list or object.
    empty: bool,
}

impl PythonStyle {
    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.empty = false;
        self.line(writer)
    }

    fn line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for PythonStyle {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if c.is_ascii() && c != '\u{7f}' {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        match escape {
            CharEscape::Quote => writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => writer.write_all(b"\\\\"),
            CharEscape::Solidus => writer.write_all(b"/"),
            CharEscape::Backspace => writer.write_all(b"\\b"),
            CharEscape::FormFeed => writer.write_all(b"\\f"),
            CharEscape::LineFeed => writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => writer.write_all(b"\\r"),
            CharEscape::Tab => writer.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(writer, "\\u{byte:04x}"),
        }
    }
}

/// Prints a value; floats as Python does.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        let number = f64::try_from(value.clone())?;
        return Ok(out.write_str(&float(number))?);
    }
    minijinja::escape_formatter(out, state, value)
}

/// The filter that counts words: runs of letters, digits and underscores.
pub(super) fn wordcount(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// The test whether a value can be called: macros and functions. Nothing else in a template can;
/// methods are not values here.
pub(super) fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}

/// `float.__repr__`: the shortest digits, with an exponent below 1e-4 and from 1e16.
fn float(value: f64) -> String {
    let magnitude = value.abs();
    if !value.is_finite() {
        return if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .into();
    }
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

/// Turns `{% generation %}` and `{% endgeneration %}` into a block without effect. The tag tells
/// training which tokens are the assistant's; a `with` block has the same scope and blank rules.
pub(super) fn replace_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        result.push_str(before);
        let inner = &tag[2..];
        let Some(end) = inner.find("%}") else {
            rest = tag;
            break;
        };
        let body = &inner[..end];
        let word = body.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => Some("with"),
            "endgeneration" => Some("endwith"),
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                result.push_str("{%");
                result.push_str(&body.replacen(word, replacement, 1));
                result.push_str("%}");
                rest = &inner[end + 2..];
            }
            None => {
                result.push_str("{%");
                rest = inner;
            }
        }
    }
    result.push_str(rest);
    result
}
