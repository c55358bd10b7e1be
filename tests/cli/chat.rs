//! `chat`, piped.

use crate::support::{packed, run, run_with_input, scratch, str, with_chat_template};

#[test]
fn a_reply_from_the_cache_is_the_one_without_it() {
    let directory = scratch();
    let model = with_chat_template(directory.path());
    let words = ["chat", str(&model), "-n", "16", "--temp", "0", "--json"];
    let document = run_with_input(&words, "Who goes there?\nAnd you?\n").expect(0).json();
    let turns = document["turns"].as_array().unwrap();
    let [first, second] = turns.as_slice() else { panic!("{turns:?}") };
    assert_eq!(first["timings"]["cached_tokens"], 0);
    assert!(second["timings"]["cached_tokens"].as_u64().unwrap() > 10, "{second}");
    let roles: Vec<_> =
        document["messages"].as_array().unwrap().iter().map(|m| &m["role"]).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);

    let reply = first["reply"].as_str().unwrap();
    let prompt = format!("user: Who goes there?\nassistant: {reply}\nuser: And you?\nassistant:");
    let alone =
        run(&["run", str(&model), "--raw", "-p", &prompt, "-n", "16", "--temp", "0"]).expect(0);
    assert_eq!(second["reply"], alone.stdout.as_str());
}

#[test]
fn commands_work_through_a_pipe() {
    let directory = scratch();
    let model = with_chat_template(directory.path());
    let words = ["chat", str(&model), "-n", "8", "--temp", "0"];
    let one = run_with_input(&words, "Hello\n").expect(0);
    assert!(one.stdout.ends_with('\n') && one.stdout.len() > 1);
    assert_eq!(one.stderr, "", "no prompt is shown on a pipe");
    let again = run_with_input(&words, "Hello\n/reset\n\nHello\n/exit\nHello\n").expect(0);
    assert_eq!(again.stdout, one.stdout.repeat(2));
    let unknown = run_with_input(&words, "/rest\n").expect(0);
    assert!(unknown.stderr.contains("/reset"), "{}", unknown.stderr);
}

#[test]
fn a_full_context_is_told_and_the_conversation_goes_on() {
    let directory = scratch();
    let model = with_chat_template(directory.path());
    let words = ["chat", str(&model), "-n", "8", "--temp", "0", "--ctx", "48", "--json"];
    let long = "why ".repeat(60);
    let said = run_with_input(&words, &format!("Hello\n{long}\n/reset\nHello\n")).expect(0);
    assert!(said.stderr.contains("/reset starts over"), "{}", said.stderr);
    let document = said.json();
    let replies: Vec<_> =
        document["turns"].as_array().unwrap().iter().map(|turn| &turn["reply"]).collect();
    assert_eq!(replies.len(), 2);
    assert_eq!(replies[0], replies[1]);
}

#[test]
fn a_model_without_a_template_says_what_to_use() {
    let said = run_with_input(&["chat", str(packed())], "Hello\n").expect(1);
    assert!(said.stderr.contains("gristmill run"), "{}", said.stderr);
}
