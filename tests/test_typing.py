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


def checked(*command: str) -> None:
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy() -> None:
    checked("mypy", "--strict", *map(str, FILES))


def test_pyright(tmp_path: Path) -> None:
    settings = {
        "include": [str(ROOT / "tests" / "typing")],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": True,
        "enableTypeIgnoreComments": False,
    }
    path = tmp_path / "pyrightconfig.json"
    path.write_text(json.dumps(settings))
    checked("pyright", "--project", str(path), "--pythonpath", sys.executable)
