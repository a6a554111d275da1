#!/usr/bin/env bash
# Runs the C engine under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and with
# the kernels of other processors in emulators; then fuzzes its file formats for FUZZ_SECONDS each
# (default 60), as many at a time as there are processors. A crash leaves its input behind in
# CRASH_FOLDER (default: the current folder).
set -euo pipefail
cd "$(dirname "$0")/../.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

flags=(-std=c11 -O1 -g -ffp-contract=off -fno-math-errno -fno-omit-frame-pointer -pthread "-I$PWD/csrc")
strict=(-Wall -Wextra -Werror)
mapfile -t engine < <(find "$PWD/csrc" -name '*.c' | sort)
mapfile -t harness < <(find "$PWD/tests/c" -maxdepth 1 -name '*.c' ! -name 'fuzz_*' ! -name 'resolve_*' | sort)

# compile FOLDER COMPILER FLAGS...: the objects of the sources on standard input, as many at a time
# as there are processors.
compile() {
    mkdir -p "$build/$1"
    (cd "$build/$1" && xargs -d "\n" -n 1 -P "$(nproc)" "${@:2}" -c)
}

sanitized=("${flags[@]}" "${strict[@]}" -fsanitize=address,undefined -fno-sanitize-recover=all)
printf '%s\n' "${engine[@]}" | compile engine gcc "${sanitized[@]}"
ar rcs "$build/engine.a" "$build"/engine/*.o

echo "== harness: AddressSanitizer and UndefinedBehaviorSanitizer"
printf '%s\n' "${harness[@]}" | compile asan gcc "${sanitized[@]}"
wrapped=()
if [[ $(uname -m) == x86_64 ]]; then # AVX-VNNI, which few processors have: with its instruction in plain C
    echo "$PWD/csrc/kernels/quantized_avxvnni.c" |
        compile asan gcc "${flags[@]}" "${strict[@]}" -O2 -DUNROLL= -mavx2 -mfma -mf16c "-I$PWD/tests/c/avxvnni"
    echo "$PWD/tests/c/resolve_emulated.c" | compile asan gcc "${sanitized[@]}" -DEMULATED=L2C_ISA_AVXVNNI
    wrapped=(-Wl,--wrap=l2c_isa_resolve)
fi
gcc "${sanitized[@]}" "${wrapped[@]}" "$build"/asan/*.o "$build/engine.a" -o "$build/harness_asan" -lm
"$build/harness_asan"

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
    threaded=("${flags[@]}" "${strict[@]}" -fsanitize=thread)
    printf '%s\n' "${harness[@]}" "${engine[@]}" | compile tsan gcc "${threaded[@]}"
    gcc "${threaded[@]}" "$build"/tsan/*.o -o "$build/harness_threads" -lm
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
    printf '%s\n' "${engine[@]}" | grep avx512 | # unrolled, each would take minutes to compile
        compile avx512 gcc "${emulated[@]}" -O1 -DUNROLL= "-I$PWD/tests/c/simde" -Wno-psabi
    printf '%s\n' "${engine[@]}" "${harness[@]}" "$PWD/tests/c/resolve_emulated.c" | grep -v avx512 |
        compile avx512 gcc "${emulated[@]}" -DEMULATED=L2C_ISA_AVX512
    gcc "${emulated[@]}" -Wl,--wrap=l2c_isa_resolve "$build"/avx512/*.o -o "$build/harness_avx512" -lm
    "$build/harness_avx512"
else
    echo "skipped: needs an x86-64 machine with SIMDe (Debian: apt install libsimde-dev)"
fi

echo "== harness: 64-bit ARM in qemu"
if have_arm; then
    # Without the test that ThreadSanitizer is spared too: qemu does not follow a process of many threads into a forked
    # child. The last processor has all that there are kernels for; the others try the choice.
    printf '%s\n' "${harness[@]}" "${engine[@]}" |
        compile arm aarch64-linux-gnu-gcc "${emulated[@]}" -D__SANITIZE_THREAD__
    aarch64-linux-gnu-gcc "${emulated[@]}" -static "$build"/arm/*.o -o "$build/harness_arm" -lm
    emulate() { # PROCESSOR KERNELS [TESTS]
        qemu-aarch64 -cpu "$1" "$build/harness_arm" "${@:3}" | tee "$build/told"
        grep -qx "kernels: scalar $2; automatic: ${2##* }" "$build/told"
    }
    emulate cortex-a53 "neon" "special values"
    emulate cortex-a76 "neon dotprod" "special values"
    emulate max "neon dotprod i8mm"
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

clang=$(find_clang)
if [[ -z $clang && ${CI:-} == true ]]; then
    apt-get update -qq && apt-get install -y -qq clang libclang-rt-14-dev || true
    clang=$(find_clang)
fi
if [[ -z $clang ]]; then
    echo "skipped the rest: no clang with libFuzzer (Debian: apt install clang libclang-rt-14-dev, or the -dev of your clang's version)"
    exit 0
fi

if [[ $(uname -m) == x86_64 ]]; then
    echo "== kernels, as clang-cl compiles them: its immintrin.h lacks what the whole program may not use"
    printf '%s\n' "${engine[@]}" | grep /kernels/ |
        xargs -d "\n" -n 1 -P "$(nproc)" "$clang" -std=c11 -fms-extensions -D_MSC_VER=1930 -fsyntax-only \
            "${strict[@]}" "-I$PWD/csrc"
fi

echo "== fuzzers"
python3 tests/c/make_corpus.py "$build/corpus"
targets=(checkpoint gguf tokenizer encode)
fuzzed=("${flags[@]}" "${strict[@]}" -DUNROLL= -fsanitize=address,undefined -fno-sanitize-recover=all)
printf '%s\n' "${engine[@]}" | compile fuzzed "$clang" "${fuzzed[@]}" -fsanitize=fuzzer-no-link
for target in "${targets[@]}"; do
    "$clang" "${fuzzed[@]}" -fsanitize=fuzzer "tests/c/fuzz_$target.c" "$build"/fuzzed/*.o -o "$build/fuzz_$target" -lm
done

fuzz='"$0/fuzz_{}" -max_total_time="$1" -max_len=16384 -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -verbosity=0 -artifact_prefix="$2/" "$0/corpus/{}" >"$0/{}.log" 2>&1'
crashed=0
printf '%s\n' "${targets[@]}" |
    xargs -P "$(nproc)" -I{} sh -c "$fuzz" "$build" "${FUZZ_SECONDS:-60}" "${CRASH_FOLDER:-.}" || crashed=1
for target in "${targets[@]}"; do
    echo "-- fuzz_$target with $clang, ${FUZZ_SECONDS:-60} s"
    grep -v '# Uses:' "$build/$target.log" || true
done
exit "$crashed"
