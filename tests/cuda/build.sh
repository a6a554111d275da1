#!/usr/bin/env bash
# Builds the tests of kernels: build.sh FOLDER. Makes FOLDER/check, in which the emulator runs csrc/cuda as g++ compiles it.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
common=(-g -ffp-contract=off -fno-math-errno -Icsrc -Itests/cuda -Wall -Werror -pthread)
{
    # Other instruction sets than the scalar one are linked, not used: unrolled, they would take long to compile.
    for source in $(find csrc -name '*.c') tests/cuda/oracle.c; do
        echo "gcc -std=c11 -O1 -DUNROLL= ${common[*]} -c $source -o $folder/$(basename "$source" .c).o"
    done
    for source in tests/cuda/*.cpp; do
        echo "g++ -std=c++17 -O2 ${common[*]} -c $source -o $folder/$(basename "$source" .cpp)_cpp.o"
    done
} | xargs -P 2 -I{} sh -c '{}'
g++ "$folder"/*.o -o "$folder/check" -lm -pthread
