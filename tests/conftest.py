"""Where real models and goldens are, and tiny models for tests that need none."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import Llama, UnsupportedError
from pyllama2c._ffi import resolve_isa
from pyllama2c.files.hub import Registry, cache_folder

# No test is decided by how busy the machine is.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = Path(__file__).resolve().parent / "data"
ISAS = (
    ("scalar", "neon")
    if platform.machine() in ("aarch64", "arm64")
    else ("scalar", "avx2", "avx512")
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
    """A fresh interpreter, away from the source folder, whose `pyllama2c` may not be built."""
    command = [sys.executable, *arguments]
    options = {"cwd": DATA, "capture_output": True, "text": True, "timeout": timeout, **options}
    return subprocess.run(command, **options)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Every set of kernels that this machine runs."""
    try:
        resolve_isa(request.param)
    except UnsupportedError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.bin"
    path.write_bytes(tokenizer_file())
    return path


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.bin"
    path.write_bytes(TinyLlama.random(Shape()).v0())
    path.with_name("tokenizer.bin").write_bytes(tokenizer_file())
    return path


@pytest.fixture
def llama(tiny_path: Path) -> Iterator[Llama]:
    with Llama(tiny_path) as model:
        yield model


@pytest.fixture
def stories260k() -> Iterator[Llama]:
    with Llama(real_file("stories260K.bin"), real_file("tok512.bin")) as model:
        yield model


@pytest.fixture
def resident_kilobytes() -> Callable[[], int]:
    def measure() -> int:
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    return measure
