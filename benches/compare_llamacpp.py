#!/usr/bin/env python3
"""Compare gristmill's speed with llama.cpp's on one machine, interleaved, every measurement in a fresh process.

    pip install llama-cpp-python        # built on this machine, so that it uses this machine's instructions
    python3 compare_llamacpp.py --gristmill BIN --grist FILE --gguf FILE [--threads 1,2] [--prompt 512] [--gen 128] [--rounds 5] [--json OUT]
    python3 compare_llamacpp.py --gguf FILE                   llama.cpp alone
    python3 compare_llamacpp.py quantize SRC.gguf DST.gguf [--type Q4_0] [--pure]

One round measures, at each thread count, gristmill (`BIN bench GRIST --threads T --prompt P --gen G --repeat 1 --cold 0 --json`) and llama.cpp with
flash attention automatic and off, in an order that turns around every round, so that drift of the machine falls on both alike. Printed are
medians with their range, and the median over rounds of the ratio within a round, against the better of the two llama.cpp settings there.

llama.cpp is driven through its C interface: prefill is one llama_decode of P tokens (n_batch = n_ubatch = P), decode is G llama_decode calls
of one token, each followed by the argmax over its logits and nothing else. The file is memory-mapped; a warm-up comes first.
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

from llamacpp import llama_cpp

METRICS = ("prefill_tok_s", "decode_tok_s")
FLASH = {"auto": -1, "off": 0}
BUSY = 0.1  # cores


def measure(gguf, threads, prompt, gen, flash):
    """One llama.cpp measurement in this process."""
    import numpy as np

    lib = llama_cpp()
    model_params = lib.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model_params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
    model = lib.llama_model_load_from_file(os.fsencode(gguf), model_params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {gguf}")
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = prompt + gen, prompt, prompt
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = FLASH[flash]
    params.no_perf = True
    ctx = lib.llama_init_from_model(model, params)
    if not ctx:
        raise SystemExit("llama.cpp cannot make a context")
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    memory = lib.llama_get_memory(ctx)

    def decode(tokens):
        # batch_get_one borrows the array: it must outlive the call. Only the last token's logits are asked for.
        array = (lib.llama_token * len(tokens))(*tokens)
        if lib.llama_decode(ctx, lib.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(ctx, -1), shape=(n_vocab,))
        return int(logits.argmax())

    # Any tokens do: the arithmetic does not depend on them. These are spread over the vocabulary, as text is.
    tokens = [(i * 7919 + 13) % n_vocab for i in range(prompt)]
    token = decode(tokens)
    for _ in range(4):
        token = decode([token])
    lib.llama_memory_clear(memory, True)

    start = time.perf_counter()
    token = decode(tokens)
    prefill = time.perf_counter()
    for _ in range(gen):
        token = decode([token])
    end = time.perf_counter()
    return {"threads": threads, "flash": flash, "prefill_tok_s": prompt / (prefill - start), "decode_tok_s": gen / (end - prefill)}


def cpu_seconds():
    """Busy CPU time of the whole machine and of this program's finished children; None where /proc does not tell."""
    try:
        with open("/proc/stat") as f:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, f.readline().split()[1:9])
    except OSError:
        return None
    t = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), t.children_user + t.children_system


def run_json(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout[done.stdout.index("{"):])


def run_gristmill(args, threads):
    report = run_json([args.gristmill, "bench", args.grist, "--threads", str(threads), "--prompt", str(args.prompt), "--gen", str(args.gen),
                       "--repeat", "1", "--cold", "0", "--json"])
    rows = [row for row in report["rows"] if row.get("threads") == threads]
    if not rows:
        raise SystemExit(f"gristmill bench reports no row for {threads} threads")
    # A bench may put prefill and decode, or several depths, in rows of their own: the first that has a number counts.
    keys = (*METRICS, "share_of_bandwidth", "bandwidth_gb_s")
    return {"threads": threads} | {k: next((row[k] for row in rows if row.get(k) is not None), None) for k in keys}


def run_llama_cpp(args, threads, flash):
    return run_json([sys.executable, __file__, "measure", args.gguf, "--threads", str(threads), "--prompt", str(args.prompt), "--gen",
                     str(args.gen), "--flash", flash])


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)} if values else None


def compare(args):
    threads = [int(t) for t in args.threads.split(",")]
    contenders = [f"llama.cpp fa={flash}" for flash in FLASH]
    if args.gristmill:
        contenders.insert(0, "gristmill")
    samples = []
    for round_ in range(args.rounds):
        for t in threads:
            for name in contenders if round_ % 2 == 0 else contenders[::-1]:
                before, start = cpu_seconds(), time.perf_counter()
                row = run_gristmill(args, t) if name == "gristmill" else run_llama_cpp(args, t, name.split("=")[1])
                after, elapsed = cpu_seconds(), time.perf_counter() - start
                # Cores kept busy by anybody else during the run, stolen time included: a disturbed round must show.
                others = max(0.0, (after[0] - before[0] - after[1] + before[1]) / elapsed) if before and after else None
                samples.append({"round": round_, "contender": name, "other_cores_busy": others} | row)
                busy = "?" if others is None else f"{others:.2f}"
                print(f"round {round_ + 1}/{args.rounds}  threads {t}  {name:18}  prefill {row['prefill_tok_s'] or 0:8.1f}  "
                      f"decode {row['decode_tok_s'] or 0:7.1f} tok/s  others {busy}", file=sys.stderr, flush=True)

    def value(round_, t, name, metric):
        return next(s[metric] for s in samples if (s["round"], s["threads"], s["contender"]) == (round_, t, name))

    summary = []
    for t in threads:
        for metric in METRICS:
            row = {"threads": t, "metric": metric}
            for name in contenders:
                row[name] = spread([v for r in range(args.rounds) if (v := value(r, t, name, metric)) is not None])
            if args.gristmill:
                best = max(contenders[1:], key=lambda n: row[n]["median"])
                ratios = [v / value(r, t, best, metric) for r in range(args.rounds) if (v := value(r, t, "gristmill", metric)) is not None]
                row |= {"best_peer": best, "ratios": ratios, "ratio": spread(ratios)}
            summary.append(row)

    show = lambda s, digits: f"{s['median']:.{digits}f} ({s['min']:.{digits}f}-{s['max']:.{digits}f})" if s else "-"
    header = ["threads", "metric", *contenders] + (["ratio"] if args.gristmill else [])
    table = [[str(r["threads"]), r["metric"], *(show(r[c], 1) for c in contenders)] + ([show(r["ratio"], 3)] if args.gristmill else [])
             for r in summary]
    widths = [max(len(row[i]) for row in [header, *table]) for i in range(len(header))]
    for row in [header, *table]:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
    disturbed = sum((s["other_cores_busy"] or 0) > BUSY for s in samples)
    if disturbed:
        print(f"DISTURBED: others kept more than {BUSY} cores busy during {disturbed} of {len(samples)} runs: not a valid comparison")
    info = run_json([sys.executable, __file__, "info"])
    print(f"llama.cpp: llama-cpp-python {info['llama_cpp_python']}; {info['system_info']}")
    if args.json:
        result = {"schema_version": 1, "prompt": args.prompt, "gen": args.gen, "rounds": args.rounds, "disturbed_runs": disturbed,
                  "gguf": {"name": os.path.basename(args.gguf), "bytes": os.path.getsize(args.gguf)},
                  "grist": {"name": os.path.basename(args.grist), "bytes": os.path.getsize(args.grist)} if args.gristmill else None,
                  "llama_cpp": info, "summary": summary, "samples": samples}
        with open(args.json, "w") as f:
            json.dump(result, f, indent=1)
            f.write("\n")


def quantize(args):
    lib = llama_cpp()
    params = lib.llama_model_quantize_default_params()
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{args.type}")
    # From Q8_0 too: it is the nearest thing to full precision that many people have.
    params.allow_requantize = True
    params.pure = args.pure
    status = lib.llama_model_quantize(os.fsencode(args.src), os.fsencode(args.dst), ctypes.byref(params))
    if status:
        raise SystemExit(f"llama_model_quantize returned {status}")
    print(f"{args.dst}: {os.path.getsize(args.dst):,} bytes")


def info():
    import llama_cpp as package

    return {"llama_cpp_python": package.__version__, "system_info": llama_cpp().llama_print_system_info().decode().strip()}


def main():
    if sys.argv[1:2] == ["quantize"]:
        ap = argparse.ArgumentParser(prog="compare_llamacpp.py quantize", description="Requantize a GGUF with llama.cpp.")
        ap.add_argument("src")
        ap.add_argument("dst")
        ap.add_argument("--type", default="Q4_0", help="Q4_0 (default), Q4_K_M, Q8_0, ...")
        ap.add_argument("--pure", action="store_true", help="one type for every matrix, the embedding included")
        return quantize(ap.parse_args(sys.argv[2:]))
    if sys.argv[1:2] == ["info"]:
        return print(json.dumps(info()))
    if sys.argv[1:2] == ["measure"]:
        ap = argparse.ArgumentParser(prog="compare_llamacpp.py measure")
        ap.add_argument("gguf")
        ap.add_argument("--flash", choices=[*FLASH], default="auto")
        for name, default in (("--threads", 1), ("--prompt", 512), ("--gen", 128)):
            ap.add_argument(name, type=int, default=default)
        a = ap.parse_args(sys.argv[2:])
        return print(json.dumps(measure(a.gguf, a.threads, a.prompt, a.gen, a.flash)))

    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gristmill", help="the gristmill binary; without it llama.cpp is measured alone")
    ap.add_argument("--grist", help="the model for gristmill")
    ap.add_argument("--gguf", required=True, help="the model for llama.cpp")
    ap.add_argument("--threads", default="1,2")
    ap.add_argument("--prompt", type=int, default=512)
    ap.add_argument("--gen", type=int, default=128)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--json")
    args = ap.parse_args()
    if bool(args.gristmill) != bool(args.grist):
        ap.error("--gristmill and --grist come together")
    compare(args)


if __name__ == "__main__":
    main()
