"""on_card.sh, rehearsed on the fake driver: its checks have run before a card is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_build
import fake_cuda
import pytest
from environment import real_file

pytestmark = pytest.mark.skipif(not fake_cuda.possible(), reason=fake_cuda.NEEDS)

SCRIPT = Path(__file__).with_name("on_card.py")
CHECKS = [
    "compile",
    "bits-80",
    "bits-75",
    "goldens",
    "launches",
    "stories",
    "memcheck",
    "racecheck",
]
SPEEDS = ["7b-int4", "products", "barrier"]
"""of a model, of a kernel, of a grid; others want PyTorch, or are like these"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `on_card.sh pack` carries, and a compute-sanitizer that finds nothing."""
    folder = tmp_path_factory.mktemp("card")
    for name in ("decode_launches", "linear_launches"):
        sources = [cuda_build.SOURCES / f"{name}.c", *cuda_build.engine()]
        objects = cuda_build.compile_objects((path, ("-DUNROLL=",)) for path in sources)
        (folder / name).symlink_to(cuda_build.link(f"{name}/{name}", objects))
    for name in ("stories260K.bin", "tok512.bin"):
        (folder / name).symlink_to(real_file(name))
    sanitizer = folder / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\nshift 6\n"$@" || exit 1\n')
    sanitizer.chmod(0o755)
    return folder


def rehearse(files: Path, library: Path, out: Path, *arguments: str) -> dict[str, Any]:
    settings = {
        "ON_CARD_FILES": str(files),
        "ON_CARD_PATIENCE": "100",  # however busy the machine is
        "ON_CARD_SCALE": "0.001",
        "OUT": str(out),
        "PATH": f"{files}:{os.environ['PATH']}",
        "PYLLAMA2C_CACHE": str(out / "cache"),
        "PYLLAMA2C_LIBCUDA": str(library),
    }
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    found: dict[str, Any] = json.loads((out / f"{arguments[0]}.json").read_text())
    assert done.returncode == any(not result["ok"] for result in found.values()), done.stderr
    return found


def test_its_checks(files: Path, fake_library: Path, tmp_path: Path) -> None:
    found = rehearse(files, fake_library, tmp_path, "check", *CHECKS)
    assert [name for name in CHECKS if not found[name]["ok"]] == [], found
    assert found["bits-80"]["checks"] > 10 and found["launches"]["found"][0]["launches"] > 1
    assert set(found["compile"]["seconds_to_compile"]) == {"75", "80"}
    assert found["goldens"]["checks"] == 2 and found["stories"]["checks"] == 3


def test_its_speeds(files: Path, fake_library: Path, tmp_path: Path) -> None:
    found = rehearse(files, fake_library, tmp_path, "speed", *SPEEDS)
    assert [name for name in SPEEDS if not found[name]["ok"]] == [], found
    caches = found["7b-int4"]["tokens_per_second"]
    assert set(caches) == {"int4, float16 cache", "int4, float32 cache"}
    assert all(of["card_gib"] > 0 and of["decode"] > 0 for of in caches.values())


def test_a_failing_item_is_noted_and_the_next_one_runs(
    files: Path, fake_library: Path, tmp_path: Path
) -> None:
    """The first lacks its model."""
    (tmp_path / "empty").mkdir()
    for name in ("decode_launches", "tok512.bin"):
        (tmp_path / "empty" / name).symlink_to(files / name)
    found = rehearse(tmp_path / "empty", fake_library, tmp_path, "check", "goldens", "compile")
    assert not found["goldens"]["ok"] and "CheckpointNotFound" in found["goldens"]["summary"]
    assert found["compile"]["ok"]
