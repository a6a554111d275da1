"""Where real models and goldens are, and tiny models for tests that need none."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from environment import ISAS, real_file
from hypothesis import HealthCheck, settings
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import Llama, UnsupportedError
from pyllama2c._ffi import resolve_isa

# No test is decided by how busy the machine is.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


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
