"""The PTX that is shipped is what its sources make, and says the arithmetic that the CPU does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_build
import pytest

from pyllama2c import cuda

build_ptx = cuda_build.script("csrc/cuda/build_ptx.py")


@pytest.fixture(scope="module")
def kernels() -> cuda.Kernels:
    return cuda.load()


def test_it_is_what_its_sources_make(capsys: pytest.CaptureFixture[str]) -> None:
    compared = build_ptx.check()
    with capsys.disabled():
        print(f" [{compared}]", end=" ")


def test_a_card_gets_the_newest_text_that_it_takes(kernels: cuda.Kernels) -> None:
    chosen = {c: kernels.for_capability(c) for c in (70, 75, 80, 86, 90, 120)}
    assert chosen[70] is None
    assert chosen[75] == kernels.texts[75]
    assert {chosen[c] for c in (80, 86, 90, 120)} == {kernels.texts[80]}
    assert cuda.unpack(cuda.pack(kernels)) == kernels


@pytest.mark.parametrize("capability", [75, 80])
def test_it_is_for_old_drivers_and_holds_every_kernel(
    kernels: cuda.Kernels, capability: int
) -> None:
    ptx = kernels.texts[capability].decode()
    assert ptx.startswith(f".version 7.4\n.target sm_{capability}\n")
    assert "used_bytes_mask" not in ptx
    listed = (build_ptx.FOLDER / "params.h").read_text()
    wanted = {f"l2c_{name}" for name in re.findall(r"\bX\((\w+), \w+\)", listed)}
    assert len(wanted) > 20
    assert set(re.findall(r"\.entry (\w+)\(", ptx)) == wanted
    assert list(build_ptx.faults(ptx)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "add.f32 %f1, %f2, %f3;",
        "@%p1 mul.ftz.f32 %f1, %f2, %f3;",
        "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;",
        "div.full.f32 %f1, %f2, %f3;",
        "div.approx.f32 %f1, %f2, %f3;",
        "mad.rz.f32 %f1, %f2, %f3, %f4;",
        "fma.rz.f32 %f1, %f2, %f3, %f4;",
        "sqrt.approx.f32 %f1, %f2;",
        "rsqrt.approx.f32 %f1, %f2;",
        "ex2.approx.ftz.f32 %f1, %f2;",
        "add.f16x2 %r1, %r2, %r3;",
        "cvt.rz.f32.s32 %f1, %r1;",
        "cvt.rp.f16.f32 %rs1, %f1;",
        "add.rn.sat.f32 %f1, %f2, %f3;",
        "red.global.add.f32 [%rd1], %f1;",
        "atom.global.add.f32 %f1, [%rd1], %f2;",
        "call.uni (retval0), helper, (param0);",
        ".func helper()",
        ".global .align 4 .b8 table[16];",
        ".visible .entry _Z4kernPf(",
    ],
)
def test_other_arithmetic_would_be_found(statement: str) -> None:
    assert len(list(build_ptx.faults(statement))) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "add.rn.f32 %f1, %f2, %f3;",
        "@!%p1 fma.rn.f64 %fd1, %fd2, %fd3, %fd4;",
        "cvt.f32.f16 %f1, %rs1;",
        "cvt.rn.f16.f32 %rs1, %f1;",
        "cvt.f64.f32 %fd1, %f1;",
        "cvt.rzi.s32.f32 %r1, %f1;",
        "setp.lt.f32 %p1, %f1, %f2;",
        "add.s32 %r1, %r2, %r3;",
        ".visible .entry l2c_norm(",
    ],
)
def test_the_cpus_arithmetic_is_let_through(statement: str) -> None:
    assert list(build_ptx.faults(statement)) == []


def test_without_nvcc_a_sentence_says_what_is_missing(tmp_path: Path) -> None:
    """What setup.py runs with PYLLAMA2C_CUDA=1."""
    command = [sys.executable, "csrc/cuda/build_ptx.py"]
    environment = {**os.environ, "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, cwd=cuda_build.ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "no nvcc: install the CUDA toolkit, or name its folder in CUDA_HOME" in done.stderr
    assert "Traceback" not in done.stderr
