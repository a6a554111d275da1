"""A card's kernels give the CPU's bits: csrc/cuda, compiled by g++, on the emulator."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEEDS = 12  # each some 1,400 checks


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if platform.machine() != "x86_64" or not shutil.which("g++"):
        pytest.skip("the emulator needs an x86-64 machine and g++")
    folder = tmp_path_factory.mktemp("cuda")
    subprocess.run(["bash", str(HERE / "build.sh"), str(folder)], check=True)
    return folder / "check"


@pytest.mark.parametrize("test", ["products", "rows", "attention", "sampler", "passes"])
def test_kernels_give_the_bits_of_the_scalar_ones(check: Path, test: str) -> None:
    run = subprocess.run(
        [str(check), "1", str(SEEDS), test], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.search(r"(\d+) checks, 0 failures", run.stdout)
    assert found and int(found[1]) > 50 * SEEDS, run.stdout
