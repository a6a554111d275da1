"""Ordinary code of users, in tests/typing, passes their type checkers at their strictest; its wrong
lines are reported, else their `ignore` would be."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))

pytestmark = pytest.mark.skipif(not (ROOT / "pyllama2c").is_dir(), reason="needs the source folder")


def checked(*command: str) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_mypy() -> None:
    done = checked("mypy", "--strict", *map(str, FILES))
    assert f"in {len(FILES)} source files" in done.stdout


def test_pyright() -> None:
    """With what pyproject.toml says of it."""
    done = checked("pyright", "--outputjson", "--pythonpath", sys.executable)
    assert json.loads(done.stdout)["summary"]["filesAnalyzed"] == len(FILES) >= 6
