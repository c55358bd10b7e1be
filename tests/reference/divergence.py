#!/usr/bin/env python3
"""Perplexity and KL divergence of one Hugging Face checkpoint from another, in torch: what `gristmill eval --reference` is held against.

    pip install 'torch>=2.4' 'transformers>=5,<6'
    python3 divergence.py round MODEL_DIR --bits 4 --out ROUNDED_DIR
    python3 divergence.py measure ROUNDED_DIR MODEL_DIR TEXT_FILE --ctx 512 --windows 8 --json out.json
    gristmill eval ROUNDED_DIR --text TEXT_FILE --ctx 512 --windows 8 --reference MODEL_DIR --kv f32 --json

round    writes the checkpoint with every linear layer's weights rounded to --bits bits: equal steps, a scale per 32 columns from the largest
         magnitude. It shares no code with gristmill's quantizers. Embeddings, head and norms stay. The result is stored in f32.
measure  runs both in f32 on the same windows (see perplexity.py for the protocols); softmax, logarithms and sums are in f64. Percentiles are by
         nearest rank. llamacpp.py computes the same from logits of llama.cpp.
"""
import argparse
import json
import math
import shutil
from pathlib import Path

import torch


def round_to_grid(weight, bits, group=32):
    """Equal steps, symmetric, one scale per `group` columns."""
    rows, columns = weight.shape
    blocks = torch.nn.functional.pad(weight.float(), (0, -columns % group)).view(rows, -1, group)
    top = 2 ** (bits - 1) - 1
    scale = blocks.abs().amax(-1, keepdim=True) / top
    rounded = (blocks / torch.where(scale > 0, scale, 1)).round().clamp(-top, top) * scale
    return rounded.view(rows, -1)[:, :columns].contiguous()


def write_rounded(args):
    from safetensors.torch import load_file, save_file

    args.out.mkdir(parents=True, exist_ok=True)
    for file in args.model.iterdir():
        if file.suffix == ".json" and file.name != "model.safetensors.index.json":
            shutil.copy(file, args.out / file.name)
    tensors, count = {}, 0
    for shard in sorted(args.model.glob("*.safetensors")):
        tensors.update(load_file(shard))
    for name, tensor in tensors.items():
        linear = name.endswith("_proj.weight")
        count += linear
        tensors[name] = round_to_grid(tensor, args.bits) if linear else tensor.float().contiguous()
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((args.out / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{args.out}: {count} matrices in {args.bits} bits")


class Comparison:
    """Figures of a student and a teacher, token by token, from their logits."""

    def __init__(self):
        self.nll, self.reference_nll, self.kld, self.same, self.delta_p = [], [], [], [], []
        self.windows = 0

    def add(self, student, teacher, targets):
        """Logits [positions, vocabulary] of both and the tokens that follow."""
        q, p = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
        log_q, log_p = (x.gather(1, targets[:, None])[:, 0] for x in (q, p))
        self.nll.append(-log_q)
        self.reference_nll.append(-log_p)
        self.kld.append((p.exp() * (p - q)).sum(-1))
        self.same.append((student.argmax(-1) == teacher.argmax(-1)).double())
        self.delta_p.append(log_q.exp() - log_p.exp())
        self.windows += 1
        print(f"\r{self.windows}  PPL {math.exp(torch.cat(self.nll).mean()):.5f}  KLD {torch.cat(self.kld).mean():.6f}", end="", flush=True)

    def result(self):
        nll, reference, kld, same, delta_p = map(torch.cat, (self.nll, self.reference_nll, self.kld, self.same, self.delta_p))
        ranked = kld.sort().values
        percentile = lambda share: ranked[max(math.ceil(share * len(ranked)), 1) - 1].item()
        print()
        return {
            "ppl": math.exp(nll.mean()), "reference_ppl": math.exp(reference.mean()), "ppl_ratio": math.exp((nll - reference).mean()),
            "kld": {"mean": kld.mean().item(), "median": percentile(0.5), "p90": percentile(0.9), "p99": percentile(0.99),
                    "p999": percentile(0.999), "max": kld.max().item()},
            "same_top1": same.mean().item(), "delta_p_rms": delta_p.square().mean().sqrt().item(), "tokens": len(kld),
            "windows": self.windows, "window_mean_kld": [w.mean().item() for w in self.kld],
        }


def windows_of(tokenizer, text, protocol, ctx, count):
    """Token windows with the position of the first scored logits, as perplexity.py cuts them."""
    # newline="" keeps the bytes of the file.
    ids = torch.tensor(tokenizer(text.open(encoding="utf-8", newline="").read(), verbose=False).input_ids)
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    for w in range(min(len(ids) // ctx, count or len(ids))):
        window = ids[w * ctx:(w + 1) * ctx].clone()
        if protocol == "chunk" and adds_bos:
            window[0] = tokenizer.bos_token_id
        yield window, ctx // 2 if protocol == "chunk" else 0


def measure(args):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.reference)
    student, teacher = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (args.model, args.reference))
    comparison = Comparison()
    with torch.no_grad():
        for window, first in windows_of(tokenizer, args.text, args.protocol, args.ctx, args.windows):
            logits = [model(window[None], use_cache=False).logits[0, first:-1] for model in (student, teacher)]
            comparison.add(*logits, window[first + 1:])
    report(comparison.result(), args.json)


def report(result, path):
    for name, value in result.items():
        if not isinstance(value, list):
            print(f"{name:14} {value}")
    if path:
        path.write_text(json.dumps(result) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = ap.add_subparsers(required=True)
    verb = verbs.add_parser("round")
    verb.add_argument("model", type=Path)
    verb.add_argument("--bits", type=int, default=4)
    verb.add_argument("--out", type=Path, required=True)
    verb.set_defaults(run=write_rounded)
    verb = verbs.add_parser("measure")
    verb.add_argument("model")
    verb.add_argument("reference")
    verb.add_argument("text", type=Path)
    verb.add_argument("--protocol", choices=["chunk", "window"], default="chunk")
    verb.add_argument("--ctx", type=int, default=512)
    verb.add_argument("--windows", type=int)
    verb.add_argument("--json", type=Path)
    verb.set_defaults(run=measure)
    args = ap.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
