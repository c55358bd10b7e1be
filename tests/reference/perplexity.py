#!/usr/bin/env python3
"""Perplexity of a Hugging Face checkpoint in f32, by the two protocols that gristmill reports.

    pip install 'torch>=2.4' 'transformers>=5,<6'
    python3 perplexity.py MODEL_DIR TEXT_FILE --protocol chunk  --ctx 512  --windows 40 --json out.json
    python3 perplexity.py MODEL_DIR TEXT_FILE --protocol window --ctx 2048 --windows 10 --json out.json

The text is tokenized once, whole, its bytes as they are (--lf turns CRLF into LF first, which is another text with another perplexity),
and cut into independent windows of --ctx tokens; a last partial window is dropped.
  chunk   as llama.cpp: the first token of each window becomes BOS if the tokenizer adds one, and the logits at positions
          ctx/2 ... ctx-2 are scored, that is the predictions of tokens ctx/2+1 ... ctx-1.
  window  as Hugging Face and GPTQ: all ctx-1 predictions are scored.
stderr_nll is the standard error of the mean loss over tokens, stderr_ppl = ppl * stderr_nll, both as llama.cpp prints them.
"""
import argparse
import json
import math
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("text", type=Path)
    ap.add_argument("--protocol", choices=["chunk", "window"], default="chunk")
    ap.add_argument("--ctx", type=int, help="default: 512 for chunk, 2048 for window")
    ap.add_argument("--windows", type=int, help="default: all")
    ap.add_argument("--lf", action="store_true", help="turn CRLF into LF before tokenizing")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    ctx = args.ctx or {"chunk": 512, "window": 2048}[args.protocol]

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    # newline="" keeps the bytes of the file, as llama.cpp does; Python's default would translate them unasked.
    text = args.text.open(encoding="utf-8", newline=None if args.lf else "").read()
    ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    windows = min(len(ids) // ctx, args.windows or len(ids))
    first = ctx // 2 if args.protocol == "chunk" else 0

    losses, per_window = [], []
    with torch.no_grad():
        for w in range(windows):
            window = ids[w * ctx:(w + 1) * ctx].clone()
            if args.protocol == "chunk" and adds_bos:
                window[0] = tokenizer.bos_token_id
            logits = model(window[None], use_cache=False).logits[0, first:-1]
            # f64 for the sum only: the loss of a token is that of the f32 logits.
            nll = torch.nn.functional.cross_entropy(logits, window[first + 1:], reduction="none").double()
            losses.append(nll)
            per_window.append(nll.mean().item())
            print(f"\r{w + 1}/{windows}  {math.exp(torch.cat(losses).mean()):.4f}", end="", flush=True)
    nll = torch.cat(losses)
    stderr = (nll.std() / len(nll) ** 0.5).item()
    result = {
        "protocol": args.protocol, "ctx": ctx, "windows": windows, "ppl": math.exp(nll.mean()), "stderr_ppl": math.exp(nll.mean()) * stderr,
        "mean_nll": nll.mean().item(), "stderr_nll": stderr, "scored_tokens": len(nll), "total_tokens": len(ids),
        "first_token_ids": ids[:32].tolist(), "adds_bos": adds_bos, "window_mean_nll": per_window,
        "transformers_version": transformers.__version__, "dtype": "float32", "lf": args.lf,
    }
    print("\r" + "  ".join(f"{k} {result[k]:.6g}" if isinstance(result[k], float) else f"{k} {result[k]}"
                           for k in ("protocol", "ctx", "windows", "ppl", "stderr_ppl", "mean_nll", "scored_tokens", "total_tokens")))
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
