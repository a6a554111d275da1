#!/usr/bin/env bash
# What to do when a card is at hand.
#
#     tests/cuda/on_card.sh pack            on this machine: fills build/card, which git ignores, with what the other lacks
#     tests/cuda/on_card.sh check [ITEM..]  there: are its bits the CPU's? 4 minutes at most
#     tests/cuda/on_card.sh speed [ITEM..]  there: how fast is it? 5 minutes at most
#
# Where a machine is lent (a Python 3.12 with PyTorch, nvcc and compute-sanitizer, no network), a session makes one call:
#
#     run(carry=["build/card"], timeout_s=590,
#         command="tests/cuda/on_card.sh check; tests/cuda/on_card.sh speed")
#
# Every item has a time limit of its own and its result is in $OUT/check.json or $OUT/speed.json (OUT: ./on_card) at once;
# nothing else is written. card_checks.py and card_speeds.py hold the items; $ON_CARD_PYTHON names another Python. The
# fake driver rehearses it (test_on_card.py): PYLLAMA2C_LIBCUDA=.. ON_CARD_SCALE=0.001 tests/cuda/on_card.sh check
set -euo pipefail
cd "$(dirname "$0")/../.."
card=$PWD/build/card python=${ON_CARD_PYTHON:-python3}

pack() {
    rm -rf "$card" && mkdir -p "$card"
    "$python" csrc/cuda/build_ptx.py --check
    "$python" -m pip wheel -q --no-deps -w "$card" .
    # with all that they stand on; those that the machine has by itself are left alone there
    "$python" -m pip download -q --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -d "$card" \
        cffi numpy platformdirs pooch tqdm pytest gguf transformers
    # the engine's own speed does not matter here; unrolled, it would take minutes to compile
    for program in decode_launches linear_launches; do
        gcc -std=c11 -O1 -DUNROLL= -ffp-contract=off -Icsrc "tests/cuda/$program.c" $(find csrc -name '*.c') \
            -o "$card/$program" -lm -pthread -ldl
    done
    cp "${MODELS:-../shared/models}"/{stories260K.bin,tok512.bin} "$card"
    du -sh "$card"
}

# Prints the wheels whose packages this Python lacks. Its own NumPy, for one, is what its PyTorch was made for.
missing() {
    "$python" - "$@" <<'END'
import sys
from importlib.metadata import PackageNotFoundError, version

for wheel in sys.argv[1:]:
    name = wheel.rsplit("/", 1)[-1].partition("-")[0]
    try:
        there = name != "pyllama2c" and version(name)
    except PackageNotFoundError:
        there = False
    if not there:
        print(wheel)
END
}

# The items' Python finds the packages in a folder of their own, and keeps kernels apart from the user's.
measure() {
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    if compgen -G "$card/*.whl" >/dev/null; then
        mapfile -t wheels < <(missing "$card"/*.whl)
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --root-user-action ignore \
            --target "$scratch/site" "${wheels[@]}"
        export PYTHONPATH=$scratch/site
    fi
    export PYTHONUNBUFFERED=1 PYLLAMA2C_CACHE=$scratch/cache TMPDIR=$scratch
    "$python" tests/cuda/on_card.py "$@"
}

case ${1:-} in
    pack) pack ;;
    check | speed) measure "$@" ;;
    *) sed -n '2,16s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
