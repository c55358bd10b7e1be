#!/usr/bin/env bash
# Builds every fuzz target and runs each for a bounded time.
#
#   fuzz/run.sh SECONDS [TARGET...]
#
# Needs cargo on stable Rust and a C++ compiler, nothing else: the coverage counters that libFuzzer
# reads are an LLVM pass that stable rustc can run. Exits with an error when a target finds something;
# the input is then under fuzz/artifacts/TARGET/. Grown corpora are kept under fuzz/corpus/TARGET/.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
if [ $# -gt 0 ]; then
    targets=("$@")
else
    targets=()
    for source in fuzz_targets/*.rs; do
        targets+=("$(basename "$source" .rs)")
    done
fi

host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-$PWD/target}
flags=(
    --cfg fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
bins=()
for target in "${targets[@]}"; do
    bins+=(--bin "$target")
done
# With --target the flags apply to the targets only, not to build scripts and macros, which would not
# link with them.
RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR="$target_dir" \
    cargo build --release --target "$host" "${bins[@]}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch

failed=()
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    inputs=("corpus/$target")
    [ -d "seeds/$target" ] && inputs+=("seeds/$target")
    options=(-max_len=8192)
    case $target in
    config)
        for config in ../tests/fixtures/architectures/*/config.json; do
            [ -f "$config" ] && cp "$config" "corpus/$target/$(basename "$(dirname "$config")")"
        done
        ;;
    decode_*) options=(-max_len=1200) ;;
    superblock) options=(-max_len=512) ;;
    tensor_table) options=(-max_len=256) ;;
    esac
    [ -f "dict/$target.dict" ] && options+=("-dict=dict/$target.dict")
    echo "== $target: $seconds s"
    if ! "$target_dir/$host/release/$target" "${inputs[@]}" "${options[@]}" \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="artifacts/$target/" >"$scratch/log" 2>&1; then
        failed+=("$target")
        tail -n 60 "$scratch/log"
    fi
    grep -E '^stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)|^#[0-9]+[[:space:]]+DONE' \
        "$scratch/log" || true
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "findings in: ${failed[*]}" >&2
    exit 1
fi
