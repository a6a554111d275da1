"""The kernels on the emulator, bit for bit against the CPU's: as g++ compiles their sources, and as
both texts of the shipped PTX say."""

from __future__ import annotations

import re
import subprocess

import cuda_build
import pytest

pytestmark = pytest.mark.skipif(not cuda_build.possible(), reason=cuda_build.NEEDS)

ROUNDS = {"sources": 10, "75": 5, "80": 5}
"""of the program's tests, each with a seed of its own: about 1,000 checks a round"""


@pytest.mark.parametrize("kernels", ROUNDS)
def test_they_give_the_bits_of_the_cpu(kernels: str) -> None:
    program = cuda_build.checks(kernels)
    command = [program, "1", str(ROUNDS[kernels])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:]
    counted = re.fullmatch(r"(\d+) checks, 0 failures\n", done.stdout)
    assert counted is not None and int(counted[1]) > 500 * ROUNDS[kernels], done.stdout[-2000:]
