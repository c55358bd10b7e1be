#!/usr/bin/env python3
"""Golden logits and a greedy continuation of a Hugging Face checkpoint, to hold gristmill's forward pass against.

    pip install 'torch>=2.4' 'transformers>=5,<6'
    python3 logits.py MODEL_DIR TEXT_FILE --out golden.json [--tokens 64] [--greedy 64]

The prompt is the first --tokens tokens of the text, tokenized as the model's tokenizer does by default (with BOS if it adds one).
Everything runs in f32 with eager attention. The fields are those of tests/fixtures/architectures/*/golden.json.
"""
import argparse
import base64
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("text", type=Path)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--tokens", type=int, default=64)
    ap.add_argument("--greedy", type=int, default=64)
    args = ap.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    # newline="" keeps the bytes of the file. A prefix is enough: 200 lines hold far more tokens than are kept.
    with args.text.open(encoding="utf-8", newline="") as lines:
        text = "".join(line for _, line in zip(range(200), lines))
    prompt = tokenizer(text, return_tensors="pt").input_ids[0, : args.tokens]
    ids, margins = prompt.clone(), []
    with torch.no_grad():
        logits = model(prompt[None], use_cache=False).logits[0]
        # No cache: the continuation must not depend on how a cache is kept. Margins tell a near-tie from a bug.
        for _ in range(args.greedy):
            top = model(ids[None], use_cache=False).logits[0, -1].topk(2)
            margins.append(round((top.values[0] - top.values[1]).item(), 6))
            ids = torch.cat([ids, top.indices[:1]])
    continuation = ids[len(prompt):].tolist()
    golden = {
        "transformers_version": transformers.__version__, "prompt": prompt.tolist(), "greedy": continuation, "greedy_margins": margins,
        "greedy_min_margin": min(margins, default=None), "greedy_text": tokenizer.decode(continuation), "shape": list(logits.shape),
        "logits_f32_base64": base64.b64encode(logits.numpy().astype("<f4").tobytes()).decode(),
    }
    args.out.write_text(json.dumps(golden) + "\n")
    print(f"{args.out}: prompt {len(prompt)} tokens, logits {list(logits.shape)} in [{logits.min():.2f}, {logits.max():.2f}], "
          f"smallest greedy margin {min(margins, default=float('nan')):.4f}")


if __name__ == "__main__":
    main()
