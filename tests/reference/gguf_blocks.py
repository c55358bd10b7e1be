#!/usr/bin/env python3
"""Golden blocks of GGUF's types: random bytes and the values that the `gguf` package decodes them to.

    pip install gguf numpy
    python3 gguf_blocks.py --out formats/tests/gguf/blocks.json

Scales are set to ordinary numbers of either sign, so that no value is infinite; everything else is random.
"""
import argparse
import json

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# Where half-precision fields stand in a block.
TYPES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    rng = np.random.default_rng(1)
    golden = []
    for name, halves in TYPES.items():
        ty = GGMLQuantizationType[name]
        elements, size = GGML_QUANT_SIZES[ty]
        blocks = 1 if elements == 256 else 2
        data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
        for block in data:
            for at in halves:
                block[at:at + 2] = np.array([rng.normal()], dtype=np.float16).view(np.uint8)
        values = quants.dequantize(data.reshape(1, -1), ty).astype("<f4")
        golden.append({"type": name.lower(), "bytes": data.tobytes().hex(), "values": values.tobytes().hex()})
    with open(args.out, "w") as f:
        json.dump(golden, f, indent=0)
        f.write("\n")


if __name__ == "__main__":
    main()
