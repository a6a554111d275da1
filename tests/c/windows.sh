#!/usr/bin/env bash
# Runs the C engine on Windows, as far as Wine is it: cross-compiled with ziglang (python -m ziglang, of the
# version that pyproject.toml names), the harness, and hashes of all logits against this machine's own. For
# ARM it is compiled only. ziglang's cache keeps what was compiled.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

if ! "$python" -m ziglang version >/dev/null 2>&1; then
    echo "skipped: $python has no ziglang (pip install ziglang==0.17.1)"
    exit 0
fi

mapfile -t engine < <(find csrc -name '*.c' | sort)
harness=(tests/c/{harness,images,system,truth}.c tests/c/test_*.c)
flags=(-std=c11 -O3 -g0 -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror -Icsrc) # as _build.py has it

# compile FOLDER COMPILER SOURCES: into objects, as many at a time as there are processors
compile() {
    local folder=$1 compiler=$2 source
    shift 2
    mkdir -p "$folder"
    for source; do printf '%s\0' "$source" -o "$folder/${source//\//_}.o"; done |
        xargs -0 -n 3 -P "$(nproc)" $compiler "${flags[@]}" -c
}

zig="$python -m ziglang cc -target"
echo "== Windows: ziglang $("$python" -m ziglang version)"
compile "$build/windows" "$zig x86_64-windows-gnu" "${engine[@]}"
compile "$build/windows/harness" "$zig x86_64-windows-gnu" "${harness[@]}"
compile "$build/windows/hashes" "$zig x86_64-windows-gnu" tests/c/windows/logit_hashes.c
for program in harness hashes; do
    $zig x86_64-windows-gnu "$build/windows"/*.o "$build/windows/$program"/*.o -o "$build/$program.exe"
done
compile "$build/arm" "$zig aarch64-windows-gnu" "${engine[@]}" "${harness[@]}"
echo "for x86-64: built; for ARM: compiled"

wine=$(command -v wine64 || ls /usr/lib/wine/wine64 2>/dev/null || true)
if [[ -z $wine || $(uname -m) != x86_64 ]]; then
    echo "skipped the rest: no wine64 (Debian: apt install --no-install-recommends wine64 wine)"
    exit 0
fi
# Without a screen, and without the packages for .NET and HTML that a new folder of Wine's asks for.
export WINEPREFIX=$build/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
unset DISPLAY

echo "== harness: Wine"
"$wine" "$build/harness.exe"

echo "== hashes of logits: Wine, and this machine"
compile "$build/here" "gcc -pthread -DUNROLL=" "${engine[@]}" tests/c/windows/logit_hashes.c
gcc -pthread "$build/here"/*.o -o "$build/hashes" -lm
for model in models/storyteller.bin ../shared/models/stories260K.bin; do
    test -e "$model" || continue
    "$build/hashes" "$model" 60 >"$build/here.txt"
    "$wine" "$build/hashes.exe" "$model" 60 | tr -d '\r' >"$build/there.txt"
    test "$(wc -l <"$build/here.txt")" -ge 6
    diff "$build/here.txt" "$build/there.txt"
    echo "$model: the same $(wc -l <"$build/here.txt") hashes"
done
