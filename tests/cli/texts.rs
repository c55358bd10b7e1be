//! `run`.

use crate::support::{
    checkpoint, gristmill, packed, run, run_with_input, scratch, str, with_chat_template,
};

fn ids(arguments: &[&str]) -> Vec<u64> {
    let said = run(&[&["run", "--json"], arguments].concat()).expect(0);
    let ids = said.json()["ids"].clone();
    ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn greedy_tokens_are_the_same_every_time_and_with_any_threads() {
    let greedy = ["-p", "ROMEO:", "-n", "64", "--temp", "0", "--raw"];
    let first = ids(&[&[str(packed())], greedy.as_slice()].concat());
    assert_eq!(first.len(), 64);
    assert_eq!(first, ids(&[&[str(packed())], greedy.as_slice()].concat()));
    for threads in ["1", "2", "3"] {
        let same = ids(&[&[str(packed()), "--threads", threads], greedy.as_slice()].concat());
        assert_eq!(first, same, "{threads} threads");
    }
}

#[test]
fn packing_as_bf16_changes_no_token() {
    let directory = scratch();
    let output = directory.path().join("m.grist");
    run(&["quantize", str(&checkpoint()), "-o", str(&output), "--bits", "16"]).expect(0);
    let greedy = ["-p", "KING", "-n", "48", "--temp", "0"];
    let of_checkpoint = ids(&[&[str(&checkpoint())], greedy.as_slice()].concat());
    assert_eq!(of_checkpoint, ids(&[&[str(&output)], greedy.as_slice()].concat()));
}

#[test]
fn a_two_stage_head_changes_no_token() {
    let words = ["-p", "KING", "-n", "48", "--seed", "3", "--top-k", "10"];
    let of = |head: &str| ids(&[&[str(&checkpoint()), "--head", head], words.as_slice()].concat());
    assert_eq!(of("full"), of("two-stage"));
    let staged = |rest: &[&str]| {
        let model = checkpoint();
        let words = ["run", str(&model), "--head", "two-stage", "-p", "A", "-n", "2"];
        run(&[words.as_slice(), rest].concat()).expect(0).stderr
    };
    let said = staged(&["--temp", "0", "--stats"]);
    assert!(said.contains("coarse head made"), "{said}");
    let said = staged(&["--temp", "1", "--top-k", "0"]);
    assert!(said.contains("the head is computed in full"), "{said}");
    let refused = run(&["run", str(packed()), "-p", "A", "--head", "two-stage"]).expect(1);
    assert!(refused.stderr.contains("`--head full`"), "{}", refused.stderr);
}

#[test]
fn standard_output_is_the_continuation_alone() {
    let arguments = ["run", str(packed()), "-p", "ROMEO:", "-n", "32", "--temp", "0", "--raw"];
    let said = run(&[arguments.as_slice(), &["--stats"]].concat()).expect(0);
    let document = run(&[arguments.as_slice(), &["--json"]].concat()).expect(0).json();
    assert_eq!(document["text"], said.stdout.as_str());
    assert_eq!(document["tokens"], 32);
    assert_eq!(document["finish_reason"], "length");
    assert!(document["timings"]["decode_tok_s"].as_f64().unwrap() > 0.0);
    assert!(said.stderr.contains("generated 32 tokens"), "{}", said.stderr);
    let silent = run(&arguments).expect(0);
    assert_eq!((silent.stdout, silent.stderr.as_str()), (said.stdout, ""));
}

#[test]
fn the_prompt_comes_from_a_flag_a_file_or_standard_input() {
    let directory = scratch();
    let file = directory.path().join("prompt.txt");
    std::fs::write(&file, "ROMEO:").unwrap();
    let rest = ["-n", "16", "--temp", "0"];
    let run_words = ["run", str(packed())];
    let by_flag = run(&[&run_words, ["-p", "ROMEO:"].as_slice(), &rest].concat()).expect(0).stdout;
    let by_file =
        run(&[&run_words, ["-f", str(&file)].as_slice(), &rest].concat()).expect(0).stdout;
    let piped = run_with_input(&[run_words.as_slice(), &rest].concat(), "ROMEO:").expect(0).stdout;
    assert_eq!(by_flag, by_file);
    assert_eq!(by_flag, piped);
    assert!(run(&[run_words.as_slice(), &rest].concat()).expect(1).stderr.contains("empty"));
}

#[test]
fn seeds_repeat_a_text() {
    let sample = |seed: &[&str]| {
        let words = ["run", str(packed()), "-p", "A", "-n", "32", "--temp", "1", "--json"];
        run(&[words.as_slice(), seed].concat()).expect(0).json()
    };
    let first = sample(&[]);
    let seed = first["sampling"]["seed"].as_u64().unwrap().to_string();
    assert_eq!(sample(&["--seed", &seed])["ids"], first["ids"]);
    assert_ne!(sample(&["--seed", "1"])["ids"], sample(&["--seed", "2"])["ids"]);
    assert_ne!(sample(&[])["sampling"]["seed"], first["sampling"]["seed"]);
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let words = ["run", str(packed()), "-p", "ROMEO:", "-n", "64", "--temp", "0"];
    let whole = run(&words).expect(0).stdout;
    let stop = &whole[20..26];
    let at = whole.find(stop).unwrap();
    let stopped = run(&[words.as_slice(), &["--stop", stop, "--json"]].concat()).expect(0).json();
    assert_eq!(stopped["text"], whole[..at]);
    assert_eq!(stopped["finish_reason"], "stop");
}

#[test]
fn the_chat_template_is_applied_unless_raw() {
    let directory = scratch();
    let model = with_chat_template(directory.path());
    let generate = |rest: &[&str]| {
        let words = ["run", str(&model), "-n", "24", "--temp", "0", "--json"];
        run(&[words.as_slice(), rest].concat()).expect(0).json()
    };
    let chat = generate(&["-p", "Hi", "--system", "Be brief."]);
    let raw = generate(&["-p", "system: Be brief.\nuser: Hi\nassistant:", "--raw"]);
    assert_eq!(chat["ids"], raw["ids"]);
    assert_eq!((&chat["chat_template"], &raw["chat_template"]), (&true.into(), &false.into()));
    assert_ne!(generate(&["-p", "Hi", "--raw"])["ids"], generate(&["-p", "Hi"])["ids"]);
}

#[test]
fn a_text_ends_where_the_context_does() {
    let words = ["run", str(packed()), "-p", "ROMEO:", "-n", "1000", "--ctx", "32", "--json"];
    let document = run(&words).expect(0).json();
    let prompt = document["prompt_ids"].as_array().unwrap().len();
    // The last token is chosen from the logits of the last position.
    assert_eq!(document["tokens"].as_u64().unwrap() as usize, 32 - prompt + 1);
    let long = "word ".repeat(100);
    let said = run(&["run", str(packed()), "-p", &long, "--ctx", "32"]).expect(1);
    assert!(said.stderr.contains("--ctx"), "{}", said.stderr);
}

#[test]
fn the_environment_can_lower_the_instruction_set_and_set_the_threads() {
    let words = ["run", str(packed()), "-p", "A", "-n", "4", "--temp", "0", "--json"];
    let with = |name: &str, value: &str| -> crate::support::Said {
        gristmill(&words).env(name, value).output().unwrap().into()
    };
    assert_eq!(with("GRISTMILL_ISA", "scalar").expect(0).json()["isa"], "scalar");
    assert_eq!(with("GRISTMILL_THREADS", "3").expect(0).json()["threads"], 3);
    assert!(with("GRISTMILL_ISA", "mmx").expect(2).stderr.contains("scalar"));
    assert!(with("GRISTMILL_THREADS", "many").expect(2).stderr.contains("GRISTMILL_THREADS"));
    let flag = [words.as_slice(), &["--threads", "1"]].concat();
    let said: crate::support::Said =
        gristmill(&flag).env("GRISTMILL_THREADS", "3").output().unwrap().into();
    assert_eq!(said.expect(0).json()["threads"], 1);
}
