"""Paths of real models and goldens, this machine's instruction sets, fresh interpreters."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyllama2c.files.hub import Registry, cache_folder

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA = Path(__file__).resolve().parents[1] / "data"
ISAS = (
    ("scalar", "neon", "dotprod", "i8mm")
    if platform.machine() in ("aarch64", "arm64")
    else ("scalar", "avx2", "avxvnni", "avx512")
)


def real_file(name: str) -> Path:
    """A real model or tokenizer, from ../shared/models or the download cache; skips without."""
    places = [SHARED / "models" / name, cache_folder() / name]
    for place in places:
        if place.is_file():
            return place
    known = " (`pyllama2c download` fetches it)" if name in Registry().files else ""
    pytest.skip(f"{name} is neither in {places[0].parent} nor in {places[1].parent}{known}")


def run_python(
    *arguments: str | bytes, timeout: float = 600, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, away from the source folder, whose `pyllama2c` may not be built. Without
    an `input` its standard input is empty: the command would read an open pipe to its end."""
    command = [sys.executable, *arguments]
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    options = {"cwd": DATA, "capture_output": True, "text": True, "timeout": timeout, **options}
    return subprocess.run(command, **options)
