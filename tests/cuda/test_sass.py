"""What ptxas makes of the shipped PTX: instructions around a product, which bound large batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import cuda_build
import pytest

table = cuda_build.script("tests/cuda/ptxas_table.py")
ptx = cuda_build.script("tests/cuda/translate_ptx.py")


def test_a_text_of_some_kernels_is_those() -> None:
    text = ptx.shipped()[80].decode()
    some = table.only(text, ["l2c_linear_q8_64", "l2c_norm"])
    assert some.startswith(".version 7.4") and len(some) < len(text) / 4
    assert some.count(".entry ") == 2 and some.count("\n}\n") == 2


def test_loops_are_the_innermost_and_are_counted_by_product() -> None:
    """As nvdisasm prints them; a branch ahead is no loop, nor is one that holds another."""
    text = ".L_x_0: MOV;.L_x_1: LDS R4, [R2];@P1 BRA (.L_x_3);IMMA.16832.S8.S8 R8, R4;"
    text += "@!P0 FADD R1, R2;IMMA.16832.S8.S8 R8, R4;.L_x_3: @P0 BRA `(.L_x_1);BRA `(.L_x_0);EXIT"
    lines = text.replace(": ", ":;").split(";")
    assert table.per_product(lines, 80) == 6 / 2
    assert table.per_product(lines, 75) == 4 * 6 / 2
    assert table.per_product(["FADD R1, R2"], 80) is None


@pytest.mark.skipif(
    shutil.which("ptxas") is None or table.nvdisasm() is None, reason="needs ptxas and nvdisasm"
)
@pytest.mark.parametrize("architecture", [80, 86, 90])
def test_inner_loops_keep_to_their_limits(architecture: int, tmp_path: Path) -> None:
    text, cubin = tmp_path / "some.ptx", tmp_path / "some.cubin"
    text.write_text(table.only(ptx.shipped()[80].decode(), table.MOST_PER_IMMA))
    used = table.assemble(text, architecture, cubin)
    assert {spilled for _, spilled in used.values()} == {0}
    found = table.products(cubin, architecture)
    assert set(found) == set(table.MOST_PER_IMMA)
    assert {n: each for n, each in found.items() if each > table.MOST_PER_IMMA[n]} == {}
