"""llama.cpp's own tests of its server, on ours: see llama_cpp/run.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODELS = os.environ.get("PYLLAMA2C_TEST_LLAMA_CPP")


@pytest.mark.skipif(
    not MODELS,
    reason="downloads 77 MB from PyPI, and packages; set PYLLAMA2C_TEST_LLAMA_CPP to a folder "
    "with stories260K.bin and tok512.bin to run it",
)
def test_llama_cpps_own_tests(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "llama_cpp" / "run.py", MODELS, "--folder", tmp_path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout[-20_000:]
