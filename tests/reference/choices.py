#!/usr/bin/env python3
"""Multiple-choice questions on transformers, each answer's sequence computed in full: what `gristmill eval --choices` is held against.

    pip install 'torch>=2.4' 'transformers>=5,<6'
    python3 choices.py make TEXT_FILE questions.jsonl --questions 100
    python3 choices.py ask MODEL_DIR questions.jsonl --json out.json
    gristmill eval MODEL_DIR --choices questions.jsonl --kv f32 --json > ours.json
    python3 choices.py compare ours.json out.json

make     cuts a text into questions: three lines are the context, the beginning of the next is the right answer, beginnings of lines elsewhere are the
         wrong ones. With a seed, so that a text makes the same questions everywhere.
ask      takes lines with query, choices and gold and tokenizes as lm-evaluation-harness's loglikelihood does: blanks at the context's end go to the
         continuation, context and continuation are tokenized as one, a blank is between them. acc picks the likeliest answer, acc_norm the likeliest per
         character. A BOS comes first if the tokenizer adds one.
compare  prints the largest difference of a log-likelihood, and the picks that differ.
"""
import argparse
import json
import math
import random
from pathlib import Path


def make(args):
    lines = [line.strip() for line in args.text.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if len(line.split()) >= args.words]
    answer = lambda line: " ".join(line.split()[:args.words])
    draw = random.Random(args.seed)
    with args.out.open("w", encoding="utf-8", newline="\n") as out:
        for start in draw.sample(range(len(lines) - 4), args.questions):
            right = answer(lines[start + 3])
            choices = [right] + [answer(line) for line in draw.sample(lines, 3)]
            draw.shuffle(choices)
            question = {"query": "\n".join(line[-400:] for line in lines[start:start + 3]), "choices": choices, "gold": choices.index(right)}
            out.write(json.dumps(question, ensure_ascii=False) + "\n")


def ask(args):
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    bos = [tokenizer.bos_token_id] if adds_bos else []
    questions = []
    with torch.no_grad():
        for line in args.questions.read_text(encoding="utf-8").splitlines():
            question = json.loads(line)
            scores = []
            for choice in question["choices"]:
                context = question["query"].rstrip()
                continuation = question["query"][len(context):] + " " + choice
                before = encode(context)
                after = encode(context + continuation)[len(before):]
                ids = torch.tensor(bos + before + after)
                rows = model(ids[None], use_cache=False).logits[0, -len(after) - 1:-1].double().log_softmax(-1)
                scores.append(rows.gather(1, ids[-len(after):, None]).sum().item())
            best = lambda values: max(range(len(values)), key=values.__getitem__)
            per_character = [score / len(choice) for score, choice in zip(scores, question["choices"])]
            questions.append({"gold": question["gold"], "ll": scores, "picks": [best(scores), best(per_character)]})
            print(f"\r{len(questions)}", end="", flush=True)
    n = len(questions)
    result = {"questions": n, "transformers_version": transformers.__version__, "per_question": questions}
    for measure, name in enumerate(("acc", "acc_norm")):
        share = sum(q["picks"][measure] == q["gold"] for q in questions) / n
        result[name] = {"value": share, "stderr": math.sqrt(share * (1 - share) / (n - 1))}
        print(f"\r{name:9} {share:.6f} ± {result[name]['stderr']:.6f}")
    args.json.write_text(json.dumps(result) + "\n")


def compare(args):
    ours, theirs = (json.loads(path.read_text()) for path in (args.ours, args.theirs))
    pairs = list(zip(ours["per_question"], theirs["per_question"], strict=True))
    differences = [abs(a - b) for x, y in pairs for a, b in zip(x["ll"], y["ll"], strict=True)]
    print(f"{len(pairs)} questions, largest difference of a log-likelihood {max(differences):.2e}")
    for measure, name in enumerate(("acc", "acc_norm")):
        other = [x["line"] for x, y in pairs if x["picks"][measure] != y["picks"][measure]]
        print(f"{name:9} {ours[name]['value']:.6f} and {theirs[name]['value']:.6f}, other picks on lines {other or 'none'}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = ap.add_subparsers(required=True)
    verb = verbs.add_parser("make")
    verb.add_argument("text", type=Path)
    verb.add_argument("out", type=Path)
    verb.add_argument("--questions", type=int, default=100)
    verb.add_argument("--words", type=int, default=8, help="words of an answer")
    verb.add_argument("--seed", type=int, default=1)
    verb.set_defaults(run=make)
    verb = verbs.add_parser("ask")
    verb.add_argument("model")
    verb.add_argument("questions", type=Path)
    verb.add_argument("--json", type=Path, required=True)
    verb.set_defaults(run=ask)
    verb = verbs.add_parser("compare")
    verb.add_argument("ours", type=Path)
    verb.add_argument("theirs", type=Path)
    verb.set_defaults(run=compare)
    args = ap.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
