#!/usr/bin/env bash
# Runs the C engine on Windows, as far as Wine is it: cross-compiled with ziglang (python -m ziglang, of the
# version that pyproject.toml names), the harness, and hashes of all logits against this machine's own. For
# ARM it is built only. WINDOWS_CACHE keeps what was compiled, and Wine's folder, for the next run.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
cache=${WINDOWS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pyllama2c-windows}
mkdir -p "$cache"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

if ! "$python" -m ziglang version >/dev/null 2>&1; then
    echo "skipped: $python has no ziglang (pip install ziglang==0.17.1)"
    exit 0
fi

mapfile -t engine < <(find csrc -name '*.c' | sort)
harness=(tests/c/{harness,images,system,truth}.c tests/c/test_*.c)
flags=(-std=c11 -O3 -g0 -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror -Icsrc) # as _build.py has it

# compile TARGET FOLDER SOURCES: into objects, which ziglang keeps
compile() {
    local target=$1 folder=$2
    shift 2
    mkdir -p "$folder"
    printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -c 'to=$0/$(tr / _ <<<"$1").o; shift; "${@:2}" -c "$1" -o "$to"' \
        "$folder" {} {} "$python" -m ziglang cc -target "$target" "${flags[@]}"
}

link() { "$python" -m ziglang cc -target "$1" "${@:3}" -o "$2"; }

for machine in x86_64 aarch64; do
    echo "== Windows on $machine: ziglang $("$python" -m ziglang version)"
    compile "$machine-windows-gnu" "$build/$machine" "${engine[@]}"
    compile "$machine-windows-gnu" "$build/$machine/tests" "${harness[@]}" tests/c/windows/logit_hashes.c
    objects=("$build/$machine"/*.o)
    mv "$build/$machine"/tests/*logit_hashes.c.o "$build/$machine/hashes.o"
    link "$machine-windows-gnu" "$build/harness-$machine.exe" "${objects[@]}" "$build/$machine"/tests/*.o
    link "$machine-windows-gnu" "$build/hashes-$machine.exe" "${objects[@]}" "$build/$machine/hashes.o"
done

wine=$(command -v wine64 || ls /usr/lib/wine/wine64 2>/dev/null || true)
if [[ -z $wine || $(uname -m) != x86_64 ]]; then
    echo "built only, skipped the rest: no wine64 (Debian: apt install --no-install-recommends wine64 wine)"
    exit 0
fi
# Without a screen, and without the packages for .NET and HTML that a new folder of Wine's asks for.
export WINEPREFIX=$cache/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
unset DISPLAY

echo "== harness: Wine"
"$wine" "$build/harness-x86_64.exe"

echo "== hashes of logits: Wine, and this machine"
compile native "$build/native" "${engine[@]}" tests/c/windows/logit_hashes.c
link native "$build/hashes" "$build/native"/*.o -lm -pthread
for model in models/storyteller.bin ../shared/models/stories260K.bin; do
    test -e "$model" || continue
    "$build/hashes" "$model" 60 >"$build/here.txt"
    "$wine" "$build/hashes-x86_64.exe" "$model" 60 | tr -d '\r' >"$build/there.txt"
    test "$(wc -l <"$build/here.txt")" -ge 6
    diff "$build/here.txt" "$build/there.txt"
    echo "$model: the same $(wc -l <"$build/here.txt") hashes"
done
