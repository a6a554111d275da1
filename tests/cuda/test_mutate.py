"""The tests of kernels find planted faults: here one for each of four parts, all in one build,
since compiling takes longest; mutate.py plants each of its own alone."""

from __future__ import annotations

import cuda_build
import pytest

pytestmark = pytest.mark.skipif(not cuda_build.possible(), reason=cuda_build.NEEDS)

mutate = cuda_build.script("tests/cuda/mutate.py")

PLANTED = [
    "no barrier between a row and its int8",
    "halves of a fragment swapped",
    "a tail one too short",
    "of equals, the larger id first",
]


def test_planted_faults_are_found() -> None:
    faults = [fault for fault in mutate.FAULTS if fault.name in PLANTED]
    parts = [fault.tests for fault in faults]
    assert len(faults) == len(PLANTED) and len(set(parts)) == len(parts)
    said = mutate.found(faults)
    assert [name for name, failures in said.items() if not failures] == []
