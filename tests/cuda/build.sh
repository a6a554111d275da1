#!/usr/bin/env bash
# Builds the tests of kernels into a folder: build.sh FOLDER. Programs: check (the sources, compiled by g++).
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
common=(-O2 -g -ffp-contract=off -fno-math-errno -Icsrc -Itests/cuda -Wall -Werror -pthread)
for source in $(find csrc -name '*.c') tests/cuda/oracle.c; do
    object=$folder/$(basename "$source" .c).o
    [[ $object -nt $source && -z ${REBUILD:-} ]] || echo "gcc -std=c11 ${common[*]} -c $source -o $object"
done >"$folder/commands"
for source in tests/cuda/*.cpp; do
    echo "g++ -std=c++17 ${common[*]} -c $source -o $folder/$(basename "$source" .cpp)_cpp.o"
done >>"$folder/commands"
xargs -P 2 -I{} sh -c '{}' <"$folder/commands"
g++ "$folder"/*.o -o "$folder/check" -lm -pthread
