use std::path::Path;

use gristmill_formats::source::SpecialToken;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn assets(template: &str) -> TextAssets {
    TextAssets { chat_template: Some(template.into()), ..TextAssets::default() }
}

fn render_with(template: &str, kwargs: Value) -> Result<String, TextError> {
    let Value::Object(kwargs) = kwargs else { panic!("kwargs are an object") };
    let messages = [Message::new("user", "hi")];
    ChatTemplate::new(&assets(template))?.with_now(1_722_000_307).render(&messages, true, kwargs)
}

fn render(template: &str) -> Result<String, TextError> {
    render_with(template, json!({}))
}

/// Golden cases that differ, as the module documentation says, and what they give instead.
const DIFFERENT: [(&str, Option<&str>); 2] =
    [("format", None), ("key named like a method", Some("False 1 2"))];

#[test]
fn goldens_of_transformers_are_reproduced() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/chat");
    let mut cases = 0;
    let mut wrong = Vec::new();
    for file in std::fs::read_dir(fixtures).unwrap() {
        let path = file.unwrap().path();
        let golden: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let field = |name: &str| case.get(name).or(golden.get(name)).cloned().unwrap();
            let token = |name: &str| {
                golden[name].as_str().map(|text| SpecialToken { text: text.into(), id: 0 })
            };
            let text = TextAssets {
                bos: token("bos_token"),
                eos: token("eos_token"),
                chat_template: field("template").as_str().map(String::from),
                ..TextAssets::default()
            };
            let messages: Vec<Message> = serde_json::from_value(field("messages")).unwrap();
            let Value::Object(kwargs) = field("kwargs") else { panic!("kwargs are an object") };
            let prompt = field("add_generation_prompt").as_bool().unwrap();
            let found = ChatTemplate::new(&text).and_then(|t| t.render(&messages, prompt, kwargs));
            let different = DIFFERENT.iter().find(|(name, _)| case["name"] == *name);
            if let Some((_, instead)) = different {
                assert_eq!(found.as_deref().ok(), *instead, "{case:#}");
                continue;
            }
            let agrees = match (&found, case.get("rendered"), case.get("error")) {
                (Ok(found), Some(expected), _) => found == expected.as_str().unwrap(),
                (Err(TextError::ChatRefused(found)), None, Some(Value::String(expected))) => {
                    found == expected
                }
                (Err(_), None, Some(Value::Null)) => true,
                _ => false,
            };
            if !agrees {
                wrong.push(format!("{}: {case:#}\nfound: {found:?}", path.display()));
            }
            cases += 1;
        }
    }
    assert!(cases > 0);
    assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn without_a_template_there_is_an_error_that_says_so() {
    assert_eq!(ChatTemplate::new(&TextAssets::default()).err(), Some(TextError::NoChatTemplate));
}

#[test]
fn a_refusal_is_told_from_a_failure() {
    let refused = render("{{ raise_exception('no ' ~ messages[0].content) }}");
    assert_eq!(refused, Err(TextError::ChatRefused("no hi".into())));
    let refused = render("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}");
    assert_eq!(refused, Err(TextError::ChatRefused("deep".into())));
    assert!(matches!(render("{{ nothing.x }}"), Err(TextError::ChatTemplate(_))));
    assert!(matches!(render("{% if %}"), Err(TextError::ChatTemplate(_))));
}

#[test]
fn special_tokens_are_variables_only_when_the_checkpoint_has_them() {
    let mut text = assets("{{ bos_token }}|{{ eos_token is defined }}");
    text.bos = Some(SpecialToken { text: "<s>".into(), id: 1 });
    let template = ChatTemplate::new(&text).unwrap();
    assert_eq!(template.render(&[], false, Map::new()).unwrap(), "<s>|False");
}

#[test]
fn tools_and_documents_are_none_unless_given() {
    let template = "{{ tools is none }} {{ documents is none }} {{ other is defined }}";
    assert_eq!(render(template).unwrap(), "True True False");
    let given = render_with(template, json!({"tools": [], "documents": [], "other": 1}));
    assert_eq!(given.unwrap(), "False False True");
}

#[test]
fn reasoning_is_found_under_each_of_its_names() {
    let template = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}{{ messages[0].keys()|list }}";
    for name in REASONING_FIELDS {
        let message: Message =
            serde_json::from_value(json!({"role": "assistant", name: "r"})).unwrap();
        let rendered = ChatTemplate::new(&assets(template)).unwrap();
        let rendered = rendered.render(&[message], false, Map::new()).unwrap();
        assert!(rendered.starts_with("rr["), "{rendered}");
        assert!(!rendered.contains("content'") || rendered.contains("reasoning_content'"));
    }
}

#[test]
fn absent_and_null_content_differ() {
    let template = ChatTemplate::new(&assets("{{ messages[0].content is defined }}")).unwrap();
    for (message, expected) in [
        (json!({"role": "assistant"}), "False"),
        (json!({"role": "assistant", "content": null}), "True"),
    ] {
        let message: Message = serde_json::from_value(message.clone()).unwrap();
        let back = serde_json::to_value(&message).unwrap();
        assert_eq!(back.get("content").is_some(), expected == "True");
        assert_eq!(template.render(&[message], false, Map::new()).unwrap(), expected);
    }
}

#[test]
fn json_is_written_as_python_writes_it() {
    // Expected strings are json.dumps' own.
    let value = json!({"b": [1, 2.5, 1e16, 1e-5, -0.0, null, true], "a": {}, "é": [], "s": "\"\\\u{8}\n\u{1}/<🌾\u{7f}"});
    for (arguments, expected) in [
        (
            "",
            "{\"b\": [1, 2.5, 1e+16, 1e-05, -0.0, null, true], \"a\": {}, \"é\": [], \"s\": \"\\\"\\\\\\b\\n\\u0001/<🌾\u{7f}\"}",
        ),
        (
            "(ensure_ascii=true)",
            "{\"b\": [1, 2.5, 1e+16, 1e-05, -0.0, null, true], \"a\": {}, \"\\u00e9\": [], \"s\": \"\\\"\\\\\\b\\n\\u0001/<\\ud83c\\udf3e\\u007f\"}",
        ),
        (
            "(separators=(',', ':'), sort_keys=true)",
            "{\"a\":{},\"b\":[1,2.5,1e+16,1e-05,-0.0,null,true],\"s\":\"\\\"\\\\\\b\\n\\u0001/<🌾\u{7f}\",\"é\":[]}",
        ),
        (
            "(indent=1)",
            "{\n \"b\": [\n  1,\n  2.5,\n  1e+16,\n  1e-05,\n  -0.0,\n  null,\n  true\n ],\n \"a\": {},\n \"é\": [],\n \"s\": \"\\\"\\\\\\b\\n\\u0001/<🌾\u{7f}\"\n}",
        ),
    ] {
        let template = format!("{{{{ value|tojson{arguments} }}}}");
        assert_eq!(
            render_with(&template, json!({"value": value})).unwrap(),
            expected,
            "{arguments}"
        );
    }
    assert_eq!(render("{{ [1,[2]]|tojson(indent='\t') }}").unwrap(), "[\n\t1,\n\t[\n\t\t2\n\t]\n]");
    assert_eq!(render("{{ [1]|tojson(false, 0) }}").unwrap(), "[\n1\n]");
    assert_eq!(render("{{ [1]|tojson(indent=none) }}").unwrap(), "[1]");
    for wrong in ["nothing|tojson", "1|tojson(x=1)", "1|tojson(separators=(',',))"] {
        assert!(render(&format!("{{{{ {wrong} }}}}")).is_err(), "{wrong}");
    }
}

#[test]
fn methods_beyond_the_compatibility_layer_do_as_python_does() {
    for (expression, expected) in [
        ("'abc'.removeprefix('a') ~ 'abc'.removesuffix('c') ~ 'abc'.removeprefix('x')", "bcababc"),
        ("'k=v=w'.partition('=')", "('k', '=', 'v=w')"),
        ("'k'.partition('=')", "('k', '', '')"),
        ("'k=v=w'.rpartition('=')", "('k=v', '=', 'w')"),
        ("'k'.rpartition('=')", "('', '', 'k')"),
        ("'a b  c '.rsplit(none, 1)", "['a b', 'c']"),
        ("'a.b.c'.rsplit('.', 1)", "['a.b', 'c']"),
        ("'a.b.c'.rsplit('.')", "['a', 'b', 'c']"),
        ("' '.rsplit()", "[]"),
        ("'äbc'.index('c')", "2"),
        ("[1, 2].index(2)", "1"),
        ("{'a': 1}.copy()", "{'a': 1}"),
    ] {
        assert_eq!(render(&format!("{{{{ {expression} }}}}")).unwrap(), expected, "{expression}");
    }
    assert!(render("{{ 'a'.index('b') }}").is_err());
    assert!(render("{{ [].append(1) }}").is_err(), "transformers' sandbox is immutable");
}

#[test]
fn generation_tags_have_no_effect_but_their_blank_rules() {
    let template = "a\n  {%- generation -%}\n b{% generation %}\nc{%endgeneration%}\nd  {%- endgeneration +%}\n.";
    assert_eq!(render(template).unwrap(), "abcd\n.");
    let unclosed = render("{% generation %}");
    assert!(unclosed.is_err());
    assert_eq!(
        replace_generation("{% generation x %}{% generations %}{%"),
        "{% generation x %}{% generations %}{%"
    );
}

fn replace_generation(source: &str) -> String {
    python::replace_generation_tags(source)
}

#[test]
fn the_clock_is_the_given_one() {
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "26 Jul 2024");
    let macros = "{% macro m() %}{{ strftime_now('%Y') }}{% endmacro %}{{ m() }}";
    assert_eq!(render(macros).unwrap(), "2024");
}

#[test]
fn hostile_templates_end_with_an_error() {
    let loops =
        "{% for a in range(99999) %}".repeat(3) + "{% set x = 1 %}" + &"{% endfor %}".repeat(3);
    let prints = "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}";
    let recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let nested = "{{ ".to_owned() + &"(".repeat(10_000) + "1" + &")".repeat(10_000) + " }}";
    let files = "{% include 'x' %}";
    for template in [&loops, prints, recursion, &nested, files] {
        let failed = matches!(render(template), Err(TextError::ChatTemplate(_)));
        assert!(failed, "{:.40}", template);
    }
    assert!(render(&"x".repeat(MAX_TEMPLATE_BYTES + 1)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_template_and_any_text_give_a_result(
        parts in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{%", "%}", "-", " generation ", " endgeneration ", " if x ", " endif ", " for a in messages ",
            " endfor ", "messages", "[", "]", ".strip(", ")", "|tojson", "'", "a", " ", "::-1", "~", "{#", "#}", "é",
        ]), 0..24),
        text in any::<String>(),
    ) {
        let _ = render(&parts.concat());
        prop_assert_eq!(
            ChatTemplate::new(&assets("{{ messages[0].content }}")).unwrap()
                .render(&[Message::new("user", &*text)], false, Map::new()).unwrap(),
            text
        );
    }
}
