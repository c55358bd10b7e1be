//! Questions with several answers, from JSON lines in the shapes that people have.

use serde_json::{Map, Value};

use crate::error::{EvalError, Result};

/// A question with its possible answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Line of the file, from 1.
    pub line: usize,
    /// What precedes an answer.
    pub context: String,
    /// The answers; a blank goes between the context and each.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

/// A file of questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceTask {
    /// The questions, in the file's order.
    pub questions: Vec<Question>,
    /// BLAKE3 of the file, hexadecimal.
    pub blake3: String,
}

impl ChoiceTask {
    /// Reads JSON lines; blank ones are passed over. Per question:
    ///
    /// * the context: `query` or `ctx`, taken as it is; or `question` (a string, or an object with `stem`),
    ///   which becomes `Question: …\nAnswer:` as lm-evaluation-harness writes ARC; or HellaSwag's
    ///   `activity_label`, `ctx_a` and `ctx_b`, joined and cleaned as the harness does;
    /// * the answers: `choices` or `endings`, a list of strings, a list of objects with `text` and `label`,
    ///   or an object of two lists `text` and `label`;
    /// * the right one: `gold`, `label`, `answer` or `answerKey`: an index from 0, one of the answers'
    ///   labels, a letter, or the answer itself.
    ///
    /// # Errors
    /// Names the line and what is wrong with it.
    pub fn from_jsonl(bytes: &[u8]) -> Result<Self> {
        let mut questions = Vec::new();
        for (index, bytes) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let line = index + 1;
            let failed = |what: String| EvalError::Question { line, what };
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let value = serde_json::from_slice(bytes).map_err(|e| {
                let hint = if line == 1 { "; expected one JSON object a line" } else { "" };
                failed(format!("not JSON at byte {}: {}{hint}", e.column(), reason(&e)))
            })?;
            let Value::Object(object) = value else {
                return Err(failed("expected a JSON object with a question".into()));
            };
            questions.push(question(line, &object).map_err(failed)?);
        }
        if questions.is_empty() {
            return Err(EvalError::Config("the file has no questions".into()));
        }
        Ok(Self { questions, blake3: blake3::hash(bytes).to_hex().to_string() })
    }
}

/// The message without the place, which is that of the line, not of the file.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn question(line: usize, object: &Map<String, Value>) -> Result<Question, String> {
    let answers = answers(object)?;
    let mut choices = answers.texts;
    let context = match object.get("query") {
        Some(query) => text("query", query)?,
        None => match (object.get("activity_label"), object.get("ctx_a"), object.get("ctx_b")) {
            (Some(label), Some(a), Some(b)) => {
                choices = choices.iter().map(|choice| cleaned(choice)).collect();
                let (label, a) = (text("activity_label", label)?, text("ctx_a", a)?);
                cleaned(&format!("{label}: {a} {}", capitalized(&text("ctx_b", b)?)))
            }
            _ => match (object.get("ctx"), object.get("question")) {
                (Some(ctx), _) => text("ctx", ctx)?,
                (None, Some(Value::Object(question))) => asked(&text(
                    "question.stem",
                    question.get("stem").ok_or("`question` has no `stem`")?,
                )?),
                (None, Some(question)) => asked(&text("question", question)?),
                (None, None) => return Err("no `query`, `ctx` or `question`".into()),
            },
        },
    };
    if let Some(empty) = choices.iter().position(|choice| choice.trim().is_empty()) {
        return Err(format!("answer {empty} is empty"));
    }
    if choices.len() < 2 {
        return Err(format!("{} answers; a choice needs two", choices.len()));
    }
    let gold = gold(object, &choices, &answers.labels)?;
    Ok(Question { line, context, choices, gold })
}

/// Texts of answers, with labels if they have any.
struct Answers {
    texts: Vec<String>,
    labels: Vec<String>,
}

fn answers(object: &Map<String, Value>) -> Result<Answers, String> {
    let nested = object.get("question").and_then(|question| question.get("choices"));
    let found = object.get("choices").or_else(|| object.get("endings")).or(nested);
    let list = |value: &Value, what: &str| -> Result<Vec<String>, String> {
        let items = value.as_array().ok_or(format!("`{what}` is not a list"))?;
        items.iter().map(|item| text(what, item)).collect()
    };
    match found {
        Some(Value::Array(items)) if items.iter().any(Value::is_object) => {
            let member = |name: &'static str| -> Result<Vec<String>, String> {
                let get = |item: &Value| item.get(name).cloned().ok_or(name);
                let values: Result<Vec<_>, _> = items.iter().map(get).collect();
                let values = values.map_err(|name| format!("an answer has no `{name}`"))?;
                list(&Value::Array(values), name)
            };
            Ok(Answers { texts: member("text")?, labels: member("label")? })
        }
        Some(array @ Value::Array(_)) => {
            Ok(Answers { texts: list(array, "choices")?, labels: Vec::new() })
        }
        Some(Value::Object(lists)) => {
            let texts = lists.get("text").ok_or("`choices` has no `text`")?;
            let texts = list(texts, "choices.text")?;
            let labels = lists.get("label").map(|labels| list(labels, "choices.label"));
            let labels = labels.transpose()?.unwrap_or_default();
            if !labels.is_empty() && labels.len() != texts.len() {
                return Err(format!("{} labels for {} answers", labels.len(), texts.len()));
            }
            Ok(Answers { texts, labels })
        }
        Some(_) => Err("`choices` is neither a list nor an object".into()),
        None => Err("no `choices` or `endings`".into()),
    }
}

/// Index of the right answer.
fn gold(
    object: &Map<String, Value>,
    choices: &[String],
    labels: &[String],
) -> Result<usize, String> {
    let names = ["gold", "label", "answer", "answerKey"];
    let found = names.iter().find_map(|name| Some((name, object.get(*name)?)));
    let Some((name, value)) = found else {
        return Err("no `gold`, `label`, `answer` or `answerKey`".into());
    };
    let written = match value {
        Value::Number(number) => number.to_string(),
        Value::String(string) => string.trim().to_owned(),
        _ => return Err(format!("`{name}` is neither a number nor a string")),
    };
    let letter = || match written.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => {
            Some(usize::from(letter.to_ascii_uppercase() - b'A'))
        }
        _ => None,
    };
    // A label before an index: ARC labels some of its answers 1 to 4.
    let labelled = labels.iter().position(|label| *label == written);
    let index = labelled
        .or_else(|| choices.iter().position(|choice| value.is_string() && *choice == written))
        .or_else(|| written.parse().ok())
        .or_else(letter);
    match index {
        Some(index) if index < choices.len() => Ok(index),
        _ => Err(format!("`{name}` is `{written}`: none of the {} answers", choices.len())),
    }
}

fn text(name: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        // Answers such as 4 or 0.5 without quotes.
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(format!("`{name}` is not a string")),
    }
}

/// A question as lm-evaluation-harness asks it (`arc_easy`, `arc_challenge`).
fn asked(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

/// HellaSwag's texts as lm-evaluation-harness cleans them: markup in brackets goes.
fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, bracket)) = rest.split_once('[') {
        clean.push_str(before);
        // The shortest match, within a line.
        match bracket.find([']', '\n']) {
            Some(end) if bracket.as_bytes()[end] == b']' => rest = &bracket[end + 1..],
            _ => {
                clean.push('[');
                rest = bracket;
            }
        }
    }
    clean.push_str(rest);
    clean.replace("  ", " ")
}

/// First letter in upper case and the others in lower case: what Python's `capitalize` does.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters.flat_map(char::to_lowercase)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(json: &str) -> Result<Question, String> {
        let task = ChoiceTask::from_jsonl(json.as_bytes()).map_err(|e| e.to_string())?;
        Ok(task.questions.into_iter().next().expect("one"))
    }

    #[test]
    fn the_shapes_that_people_have() {
        let harness =
            one(r#"{"query":"A man sits","choices":["down","up","by","in"],"gold":2}"#).unwrap();
        assert_eq!((harness.context.as_str(), harness.gold), ("A man sits", 2));
        assert_eq!(harness.choices, ["down", "up", "by", "in"]);

        let arc = one(
            r#"{"id":"x","question":"Why?","choices":{"text":["a","b","c"],"label":["1","2","3"]},"answerKey":"2"}"#,
        )
        .unwrap();
        assert_eq!((arc.context.as_str(), arc.gold), ("Question: Why?\nAnswer:", 1));

        let published = one(
            r#"{"question":{"stem":"Why?","choices":[{"text":"a","label":"A"},{"text":"b","label":"B"}]},"answerKey":"B"}"#,
        )
        .unwrap();
        assert_eq!((published.context, published.gold), (arc.context, 1));

        let hellaswag = one(concat!(
            r#"{"activity_label":"Roof shingle removal","ctx_a":"A man is on a roof. he","ctx_b":"STARTS","#,
            r#""ctx":"unused","endings":["is [step] up [title] Then","rips  [x]y"],"label":"1"}"#
        ))
        .unwrap();
        assert_eq!(hellaswag.context, "Roof shingle removal: A man is on a roof. he Starts");
        assert_eq!(hellaswag.choices, ["is up. Then", "rips y"]);
        assert_eq!(hellaswag.gold, 1);

        let ctx = one(r#"{"ctx":"He [sits]","endings":["[x]","b"],"label":0}"#).unwrap();
        assert_eq!((ctx.context.as_str(), ctx.choices[0].as_str()), ("He [sits]", "[x]"));
        for answer in [r#""B""#, r#""b""#, "1", r#""four""#] {
            let json = format!(r#"{{"question":"2+2?","choices":["3","four"],"answer":{answer}}}"#);
            assert_eq!(one(&json).unwrap().gold, 1, "{answer}");
        }
    }

    #[test]
    fn faults_are_told_with_their_line() {
        let good = r#"{"query":"q","choices":["a","b"],"gold":0}"#;
        for (bad, said) in [
            ("{", "line 3: not JSON at byte"),
            ("[1]", "line 3: expected a JSON object"),
            (r#"{"choices":["a","b"],"gold":0}"#, "no `query`, `ctx` or `question`"),
            (r#"{"query":"q","gold":0}"#, "no `choices` or `endings`"),
            (r#"{"query":"q","choices":["a"],"gold":0}"#, "1 answers"),
            (r#"{"query":"q","choices":["a"," "],"gold":0}"#, "answer 1 is empty"),
            (r#"{"query":"q","choices":["a","b"]}"#, "no `gold`"),
            (r#"{"query":"q","choices":["a","b"],"gold":2}"#, "`gold` is `2`: none of the 2"),
            (r#"{"query":"q","choices":["a","b"],"gold":-1}"#, "`gold` is `-1`"),
            (r#"{"query":"q","choices":["a","b"],"gold":""}"#, "`gold` is ``"),
            (r#"{"query":"q","choices":["a","b"],"gold":[0]}"#, "neither a number nor a string"),
            (r#"{"query":["q"],"choices":["a","b"],"gold":0}"#, "`query` is not a string"),
            (r#"{"query":"q","choices":["a",null],"gold":0}"#, "`choices` is not a string"),
            (r#"{"query":"q","choices":7,"gold":0}"#, "neither a list nor an object"),
            (r#"{"query":"q","choices":{"label":["A"]},"gold":0}"#, "no `text`"),
            (
                r#"{"query":"q","choices":{"text":["a","b"],"label":["A"]},"gold":0}"#,
                "1 labels for 2 answers",
            ),
            (r#"{"query":"q","choices":[{"text":"a"},"b"],"gold":0}"#, "an answer has no `text`"),
            (r#"{"question":{},"choices":["a","b"],"gold":0}"#, "no `stem`"),
        ] {
            let error = one(&format!("{good}\n\n{bad}\n")).unwrap_err();
            assert!(error.starts_with("line 3: ") && error.contains(said), "{bad}: {error}");
        }
        assert!(one("\n \n").unwrap_err().contains("no questions"));
        assert!(one("query,choices").unwrap_err().contains("one JSON object a line"));
        // Windows line ends and a missing last one.
        let task = ChoiceTask::from_jsonl(format!("{good}\r\n\r\n{good}").as_bytes()).unwrap();
        assert_eq!(task.questions.iter().map(|q| q.line).collect::<Vec<_>>(), [1, 3]);
    }
}
