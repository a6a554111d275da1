"""tests/c in WebAssembly: scalar and SIMD kernels, 32-bit sizes, hostile files, memory's end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cuda_build
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = (
    *("-target", "wasm32-wasi", "-std=gnu11", "-O2", "-msimd128", "-ffp-contract=off"),
    *("-fno-math-errno", "-D_WASI_EMULATED_MMAN", "-Wall", "-Wextra", "-Werror"),
    *("-Icsrc", "-Itests/c"),
)
NEED_THREADS = {"test_threads.c", "test_fork.c"}

build_wasm = cuda_build.script("csrc/wasm/build_wasm.py")


def test_the_c_harness(tmp_path: Path) -> None:
    compiler, node = build_wasm.compiler(), shutil.which("node")
    if compiler is None:
        pytest.skip(f"there is no ziglang {build_wasm.ZIGLANG} to compile it with")
    if node is None:
        pytest.skip("there is no node to run WebAssembly")

    def compile(*words: str | Path) -> None:
        done = subprocess.run(
            [*compiler, *FLAGS, *map(str, words)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    program = tmp_path / "harness.wasm"
    objects = []
    for path in (ROOT / "tests" / "c").glob("*.c"):
        if not path.name.startswith(("fuzz_", "resolve_")) and path.name not in NEED_THREADS:
            objects.append(tmp_path / f"{path.stem}.o")
            compile("-include", "tests/c/wasm/one_thread.h", "-c", path, "-o", objects[-1])
    compile(*build_wasm.sources(), *objects, "-o", program)
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [
            node,
            "--no-warnings",
            "--single-threaded",
            HERE / "run_wasi.mjs",
            program,
            tmp_path / "tmp",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told, *lines = done.stdout.splitlines()
    assert told == "kernels: scalar simd128; automatic: simd128"
    assert len(lines) > 25 and all(line.endswith(" ... ok") for line in lines)
    assert "fused multiply-add ... ok" in lines and "kernels at a guard page ... ok" in lines
