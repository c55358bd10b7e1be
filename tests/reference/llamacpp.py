#!/usr/bin/env python3
"""Perplexity and KL divergence of one GGUF file from another, from llama.cpp's logits: what `gristmill eval` is held against.

    pip install 'torch>=2.4' 'transformers>=5,<6' llama-cpp-python
    gristmill quantize ROUNDED_DIR --gguf f32 -o rounded.gguf
    gristmill quantize MODEL_DIR --gguf f32 -o model.gguf
    python3 llamacpp.py rounded.gguf model.gguf TEXT_FILE --tokenizer MODEL_DIR --ctx 512 --windows 8 --json out.json
    gristmill eval ROUNDED_DIR --text TEXT_FILE --ctx 512 --windows 8 --reference MODEL_DIR --kv f32 --json

Tokens and windows are those of divergence.py, which also compares the logits; llama.cpp computes them window by window with an f32 cache.
"""
import argparse
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from transformers import AutoTokenizer

from divergence import Comparison, report, windows_of


def logits_of(model, window, first):
    model.reset()
    model.eval(window.tolist())
    return torch.from_numpy(np.array(model.scores[first:len(window) - 1]))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("reference")
    ap.add_argument("text", type=Path)
    ap.add_argument("--tokenizer", required=True, help="checkpoint directory")
    ap.add_argument("--protocol", choices=["chunk", "window"], default="chunk")
    ap.add_argument("--ctx", type=int, default=512)
    ap.add_argument("--windows", type=int)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    f32 = llama_cpp.GGML_TYPE_F32
    options = dict(n_ctx=args.ctx, n_batch=args.ctx, n_threads=args.threads, logits_all=True, type_k=f32, type_v=f32, verbose=False)
    models = [llama_cpp.Llama(path, **options) for path in (args.model, args.reference)]
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    comparison = Comparison()
    for window, first in windows_of(tokenizer, args.text, args.protocol, args.ctx, args.windows):
        comparison.add(*(logits_of(model, window, first) for model in models), window[first + 1:])
    report(comparison.result() | {"llama_cpp_python": llama_cpp.__version__}, args.json)


if __name__ == "__main__":
    main()
