#!/usr/bin/env bash
# The engine under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, then fuzzed
# with libFuzzer for FUZZ_SECONDS (30) a target. Needs gcc; for the fuzzers clang and its runtime.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

flags="-std=c11 -g -ffp-contract=off -fno-math-errno -Icsrc -Itests/c -pthread"
strict="-Wall -Wextra -Werror -Wno-unused-function"

gcc $flags $strict -O1 -fsanitize=address,undefined -fno-sanitize-recover=all \
    csrc/*.c tests/c/harness.c -lm -o "$build/harness"
UBSAN_OPTIONS=print_stacktrace=1 "$build/harness"

# AVX-512 masked loads are more than gcc's ThreadSanitizer follows; threads are the same in plain C.
gcc $flags $strict -O1 -fsanitize=thread csrc/*.c tests/c/harness.c -lm -o "$build/harness-threads"
"$build/harness-threads" threads

find_clang() {
    local name
    for name in clang clang-{22..14}; do
        if echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return 0; }' |
            "$name" -x c -fsanitize=fuzzer - -o "$build/probe" 2>/dev/null; then
            echo "$name"
            return
        fi
    done
}
clang=$(find_clang)
if [ -z "$clang" ] && [ "${CI:-}" = true ] && command -v apt-get >/dev/null; then
    (apt-get update -qq && apt-get install -y -qq clang libclang-rt-14-dev) >/dev/null 2>&1 || true
    clang=$(find_clang)
fi
if [ -z "$clang" ]; then
    echo "fuzzers skipped: no clang with libFuzzer (Debian: clang and libclang-rt-14-dev)"
    exit 0
fi

gcc $flags $strict tests/c/corpus.c -o "$build/corpus"
mkdir "$build/seeds"
"$build/corpus" "$build/seeds"
for target in checkpoint tokenizer; do
    $clang $flags -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        csrc/*.c "tests/c/fuzz_$target.c" -lm -o "$build/fuzz_$target"
    echo "fuzzing $target for ${FUZZ_SECONDS:-30} s"
    "$build/fuzz_$target" -max_total_time="${FUZZ_SECONDS:-30}" -max_len=8192 -timeout=10 \
        -rss_limit_mb=2048 -artifact_prefix="${FUZZ_ARTIFACTS:-$build}/" -print_final_stats=1 \
        "$build/seeds/$target" 2>&1 | tail -n 12
done
