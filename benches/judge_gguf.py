#!/usr/bin/env python3
"""What quantization cost, as llama.cpp sees it: perplexity and divergence from a base file, for any number of GGUF files.

    pip install llama-cpp-python numpy
    python3 judge_gguf.py --base model-bf16.gguf --text wiki.test.raw [--windows 40] [--ctx 512] [--threads 2] [--json OUT] FILE.gguf...

The protocol is `chunk` of EVAL.md: the text is read as bytes and tokenised once; windows of --ctx tokens, each on its own; the first token of
a window is replaced by BOS when the tokenizer prepends one; the predictions of tokens n/2 + 1 ... n - 1 count. KLD is KL(base || file) in
nats per scored position; same top is the share of positions where both find the same token likeliest. Intervals are bootstrap over windows.

All files stay mapped and take turns window by window, so that memory holds one window's logits of two files, whatever the text.
"""
import argparse
import json
import os
import sys

import numpy as np

from llamacpp import llama_cpp

ROWS = 64  # positions whose log-probabilities are held in double precision at a time
RESAMPLES, SEED = 2000, 0


class Model:
    """A GGUF file with a context of one window."""

    def __init__(self, lib, path, ctx, threads):
        self.lib, self.path = lib, path
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = ctx
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.ctx = lib.llama_init_from_model(self.model, params)
        if not self.ctx:
            raise SystemExit(f"llama.cpp cannot make a context for {path}")
        self.batch = lib.llama_batch_init(ctx, 0, 1)

    def tokenize(self, text):
        # Never more tokens than bytes, but for what is put around the text.
        tokens = (self.lib.llama_token * (len(text) + 8))()
        n = self.lib.llama_tokenize(self.vocab, text, len(text), tokens, len(tokens), True, True)
        if n < 0:
            raise SystemExit("llama_tokenize failed")
        return np.array(tokens[:n])

    def bos(self):
        return self.lib.llama_vocab_bos(self.vocab) if self.lib.llama_vocab_get_add_bos(self.vocab) else None

    def logits(self, tokens, first, last):
        """Logits [last - first, vocabulary] after the tokens at first .. last - 1."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), i, 1, 0
            batch.logits[i] = first <= i < last
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.ctx), True)
        if self.lib.llama_decode(self.ctx, batch):
            raise SystemExit(f"{self.path}: llama_decode failed")
        # The context's own buffer, valid until its next decode.
        return np.ctypeslib.as_array(self.lib.llama_get_logits(self.ctx), shape=(last - first, self.n_vocab))


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def compare(base, logits, targets):
    """Per position: -log p of the target in base and file, KL(base || file), same likeliest token."""
    parts = []
    for start in range(0, len(targets), ROWS):
        rows = slice(start, start + ROWS)
        p, q, at = log_softmax(base[rows]), log_softmax(logits[rows]), np.arange(len(targets[rows]))
        target = targets[rows]
        parts.append((-p[at, target], -q[at, target], (np.exp(p) * (p - q)).sum(axis=1), p.argmax(axis=1) == q.argmax(axis=1)))
    return [np.concatenate(part) for part in zip(*parts)]


def interval(per_window, statistic):
    """95 % bootstrap over windows: tokens of one window are correlated."""
    rng, n = np.random.default_rng(SEED), len(per_window)
    values = [statistic(per_window[rng.integers(0, n, n)]) for _ in range(RESAMPLES)]
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]


def summary(path, windows):
    base_nll, nll, kld, same = (np.array([w[i] for w in windows]) for i in range(4))
    return {
        "file": path,
        "file_bytes": os.path.getsize(path),
        "ppl": float(np.exp(nll.mean())),
        "ppl_ratio": {"value": float(np.exp(nll.mean() - base_nll.mean())), "ci95": interval(nll - base_nll, lambda w: np.exp(w.mean()))},
        "kld": {
            "mean": float(kld.mean()),
            "ci95": interval(kld.mean(axis=1), np.mean),
            "median": float(np.median(kld)),
            "p99": float(np.quantile(kld, 0.99)),
            "p999": float(np.quantile(kld, 0.999)),
            "max": float(kld.max()),
        },
        "same_top1": float(same.mean()),
    }


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("files", nargs="*", help="the files to judge")
    ap.add_argument("--base", required=True, help="the full-precision file")
    ap.add_argument("--text", required=True)
    ap.add_argument("--windows", type=int, default=40)
    ap.add_argument("--ctx", type=int, default=512)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--json")
    args = ap.parse_args()

    lib = llama_cpp()
    base = Model(lib, args.base, args.ctx, args.threads)
    models = [Model(lib, path, args.ctx, args.threads) for path in args.files]
    with open(args.text, "rb") as f:
        text = f.read()
    tokens, bos = base.tokenize(text), base.bos()
    for model in models:
        if model.bos() != bos or not np.array_equal(model.tokenize(text[:1 << 16]), base.tokenize(text[:1 << 16])):
            raise SystemExit(f"{model.path} does not tokenise as {args.base} does")
    windows = min(args.windows, len(tokens) // args.ctx)
    if not windows:
        raise SystemExit(f"the text has {len(tokens)} tokens, fewer than one window of {args.ctx}")
    first, last = args.ctx // 2, args.ctx - 1
    results, base_nll = [[] for _ in models], []
    for w in range(windows):
        window = tokens[w * args.ctx:(w + 1) * args.ctx].copy()
        if bos is not None:
            window[0] = bos
        targets = window[first + 1:last + 1]
        reference = base.logits(window, first, last)
        base_nll.append(np.concatenate([-log_softmax(reference[i:i + ROWS])[np.arange(len(targets[i:i + ROWS])), targets[i:i + ROWS]]
                                        for i in range(0, len(targets), ROWS)]))
        for model, result in zip(models, results):
            result.append(compare(reference, model.logits(window, first, last), targets))
        print(f"window {w + 1}/{windows}", end="\r", file=sys.stderr, flush=True)
    report = {"text": args.text, "tokens": len(tokens), "protocol": "chunk", "ctx": args.ctx, "windows": windows,
              "base": {"file": args.base, "file_bytes": os.path.getsize(args.base), "ppl": float(np.exp(np.mean(base_nll)))},
              "files": [summary(path, result) for path, result in zip(args.files, results)]}
    print(f"{windows} windows of {args.ctx} of {args.text} ({len(tokens)} tokens)", file=sys.stderr)
    print(f"{'file':40} {'bytes':>12} {'PPL':>9} {'ratio':>8} {'KLD':>9}  {'95 %':17} {'same top':>8}")
    print(f"{os.path.basename(args.base):40} {report['base']['file_bytes']:>12} {report['base']['ppl']:>9.4f}")
    for row in report["files"]:
        low, high = row["kld"]["ci95"]
        print(f"{os.path.basename(row['file']):40} {row['file_bytes']:>12} {row['ppl']:>9.4f} {row['ppl_ratio']['value']:>8.5f} {row['kld']['mean']:>9.6f}"
              f"  {low:.6f}-{high:.6f} {row['same_top1']:>8.4f}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
