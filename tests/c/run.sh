#!/usr/bin/env bash
# Runs the C engine under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and with
# the kernels of other processors in emulators; then fuzzes its file formats for FUZZ_SECONDS
# each (default 30). A crash leaves its input behind in CRASH_FOLDER (default: the current folder).
set -euo pipefail
cd "$(dirname "$0")/../.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

flags=(-std=c11 -O1 -g -ffp-contract=off -fno-math-errno -fno-omit-frame-pointer -Icsrc -pthread)
strict=(-Wall -Wextra -Werror)
mapfile -t engine < <(find csrc -name '*.c' | sort)
harness=(tests/c/harness.c tests/c/images.c tests/c/system.c tests/c/truth.c tests/c/test_*.c)

sanitized=("${flags[@]}" "${strict[@]}" -fsanitize=address,undefined -fno-sanitize-recover=all)
for source in "${engine[@]}"; do
    gcc "${sanitized[@]}" -c "$source" -o "$build/$(basename "$source" .c).o"
done
ar rcs "$build/engine.a" "$build"/*.o

echo "== harness: AddressSanitizer and UndefinedBehaviorSanitizer"
gcc "${sanitized[@]}" "${harness[@]}" "$build/engine.a" -o "$build/harness" -lm
"$build/harness"

# It is compiled from the header itself, so that it cannot go stale; it frees what it opens, or
# LeakSanitizer stops it, with and without a model.
echo "== the usage example of llama2c.h: in C and in C++"
sed -n '/^ \* In a shared library/q; s/^ \*     //p; s/^ \*$//p' csrc/llama2c.h >"$build/example.c"
gcc "${sanitized[@]}" "$build/example.c" "$build/engine.a" -o "$build/example_c" -lm
if command -v g++ >/dev/null || [[ ${CI:-} == true ]]; then
    g++ "${sanitized[@]/#-std=c11/-std=c++11}" -x c++ "$build/example.c" -x none "$build/engine.a" \
        -o "$build/example_cpp" -lm
else
    echo "in C alone: no g++"
    cp "$build/example_c" "$build/example_cpp"
fi
mkdir "$build/empty" "$build/models"
cp models/storyteller.bin "$build/models/stories15M.bin"
cp models/tokenizer.bin "$build/models"
for example in example_c example_cpp; do
    (cd "$build/models" && "$build/$example" >"$build/$example.txt")
    (cd "$build/empty" && ! "$build/$example" 2>"$build/$example.error")
    grep -q 'stories15M.bin\|No such file' "$build/$example.error"
done
test "$(wc -c <"$build/example_c.txt")" -gt 100
cmp "$build/example_c.txt" "$build/example_cpp.txt"

echo "== harness: ThreadSanitizer"
# It needs a runtime library, and a memory layout that some kernels deny it.
if echo 'int main(void) { return 0; }' | gcc -fsanitize=thread -x c - -o "$build/probe" 2>/dev/null && "$build/probe"; then
    gcc "${flags[@]}" "${strict[@]}" -fsanitize=thread \
        "${harness[@]}" "${engine[@]}" -o "$build/harness_threads" -lm
    "$build/harness_threads" threads
else
    echo "skipped: gcc -fsanitize=thread does not work here"
fi

simde=/usr/include/simde/x86/avx512.h
have_arm() { command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null; }
if [[ ${CI:-} == true ]] && ! { have_arm && [[ -e $simde ]]; }; then
    apt-get update -qq && apt-get install -y -qq gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user libsimde-dev || true
fi
emulated=("${flags[@]}" -O3 "${strict[@]}") # -O3 as _build.py has it

echo "== harness: AVX-512 as SIMDe computes it"
if [[ $(uname -m) == x86_64 && -e $simde ]]; then
    for part in avx512 quantized_avx512; do # unrolled, each would take minutes to compile
        gcc "${emulated[@]}" -O1 -DUNROLL= -Itests/c/simde -Wno-psabi -c "csrc/kernels/$part.c" -o "$build/$part.o"
    done
    mapfile -t others < <(printf '%s\n' "${engine[@]}" | grep -v avx512)
    gcc "${emulated[@]}" -Wl,--wrap=l2c_isa_resolve tests/c/simde/resolve.c "$build"/{avx512,quantized_avx512}.o \
        "${others[@]}" "${harness[@]}" -o "$build/harness_avx512" -lm
    "$build/harness_avx512"
else
    echo "skipped: needs an x86-64 machine with SIMDe (Debian: apt install libsimde-dev)"
fi

echo "== harness: 64-bit ARM in qemu"
if have_arm; then
    # The A53 has no dot product instructions. Without the test that ThreadSanitizer is spared too: qemu
    # does not follow a process of many threads into a forked child.
    aarch64-linux-gnu-gcc "${emulated[@]}" -static -D__SANITIZE_THREAD__ "${harness[@]}" "${engine[@]}" \
        -o "$build/harness_arm" -lm
    qemu-aarch64 -cpu cortex-a53 "$build/harness_arm"
else
    echo "skipped: no aarch64-linux-gnu-gcc or qemu-aarch64 (Debian: apt install gcc-aarch64-linux-gnu qemu-user)"
fi

# Prints the first clang that has libFuzzer and the sanitizers' libraries.
find_clang() {
    local compiler
    for compiler in clang clang-{19,18,17,16,15,14}; do
        if command -v "$compiler" >/dev/null &&
            "$compiler" -fsanitize=fuzzer,address,undefined -x c - -o "$build/probe" 2>/dev/null \
                <<<'int LLVMFuzzerTestOneInput(const char *d, long n) { (void)d; return n < 0; }'; then
            echo "$compiler"
            return
        fi
    done
}

echo "== fuzzers"
clang=$(find_clang)
if [[ -z $clang && ${CI:-} == true ]]; then
    apt-get update -qq && apt-get install -y -qq clang libclang-rt-14-dev || true
    clang=$(find_clang)
fi
if [[ -z $clang ]]; then
    echo "skipped: no clang with libFuzzer (Debian: apt install clang libclang-rt-14-dev, or the -dev of your clang's version)"
    exit 0
fi

python3 tests/c/make_corpus.py "$build/corpus"
for target in checkpoint gguf tokenizer encode; do
    echo "-- fuzz_$target with $clang, ${FUZZ_SECONDS:-60} s"
    "$clang" "${flags[@]}" "${strict[@]}" -DUNROLL= -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        "tests/c/fuzz_$target.c" "${engine[@]}" -o "$build/fuzz_$target" -lm
    "$build/fuzz_$target" -max_total_time="${FUZZ_SECONDS:-60}" -max_len=16384 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -verbosity=0 -artifact_prefix="${CRASH_FOLDER:-.}/" "$build/corpus/$target" 2>&1 |
        grep -v '# Uses:'
done
