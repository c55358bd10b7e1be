#!/usr/bin/env python3
"""Gradients of Hugging Face checkpoints by torch's autograd, to hold the quantizer's backward pass against.

    pip install 'torch>=2.4' 'transformers>=5,<6'
    python3 gradients.py tests/fixtures/architectures --out quantize/tests/data/gradients.json

The loss is the sum over tokens of -log p(next token) of the prompt in each fixture's golden.json. Everything runs in f32 with eager
attention. For the output of each linear layer, [tokens, n_out], the golden holds the gradient's norm and SAMPLES of its values: those at
flat indices k * STRIDE mod size, k = 0, 1, .... `embed` is the gradient of the residual stream before the first layer.
"""
import argparse
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

SAMPLES, STRIDE = 10, 7919
PARTS = {"self_attn.q_proj": "attn.q", "self_attn.k_proj": "attn.k", "self_attn.v_proj": "attn.v", "self_attn.o_proj": "attn.o",
         "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}


def gradients(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            if not output.requires_grad:
                output.requires_grad_()
            output.retain_grad()
            outputs[name] = output
        return hook

    model.model.embed_tokens.register_forward_hook(keep("embed"))
    for i, layer in enumerate(model.model.layers):
        for theirs, ours in PARTS.items():
            layer.get_submodule(theirs).register_forward_hook(keep(f"layers.{i}.{ours}"))
    model.lm_head.register_forward_hook(keep("head"))

    prompt = torch.tensor(json.loads((path / "golden.json").read_text())["prompt"])
    logits = model(prompt[None], use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], prompt[1:], reduction="sum")
    loss.backward()
    result = {"loss": loss.item()}
    for name, output in outputs.items():
        gradient = output.grad.flatten().double()
        values = [float(f"{gradient[k * STRIDE % len(gradient)].item():.6g}") for k in range(SAMPLES)]
        result[name] = {"norm": float(f"{gradient.norm().item():.7g}"), "values": values}
    return result


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("fixtures", type=Path)
    ap.add_argument("--out", type=Path, required=True)
    args = ap.parse_args()
    models = {path.parent.name: gradients(path.parent) for path in sorted(args.fixtures.glob("*/golden.json"))}
    golden = {"transformers_version": transformers.__version__, "stride": STRIDE, "models": models}
    args.out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    for name, model in models.items():
        print(f"{name}: loss {model['loss']:.4f}, {len(model) - 1} gradients, the head's norm {model['head']['norm']:.4f}")


if __name__ == "__main__":
    main()
