"""The fake driver under pyllama2c's own loader: PYLLAMA2C_LIBCUDA names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_cuda
import pytest
from fake_driver import DEFAULTS, Fake


@pytest.fixture(scope="session")
def fake_library() -> Path:
    """Over the shipped PTX, or with FAKE_KERNELS=source over sources that it is not yet made of."""
    return fake_cuda.build(os.environ.get("FAKE_KERNELS", "ptx"))


@pytest.fixture
def fake(fake_library: Path, monkeypatch: pytest.MonkeyPatch, kept_kernels: Path) -> Iterator[Fake]:
    """With one card as it leaves the factory, and as the test left it given back."""
    monkeypatch.setenv("PYLLAMA2C_LIBCUDA", str(fake_library))
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(kept_kernels))
    fake = Fake(fake_library)
    fake.configure(DEFAULTS)
    yield fake
    fake.configure(DEFAULTS)
    assert fake.count("pushed") == 0  # calls that fail give the thread its context back as well


@pytest.fixture(scope="session")
def kept_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def left(fake: Fake) -> Callable[[], dict[str, int]]:
    """What is still there of the driver's objects."""
    names = ("allocations", "pinned", "contexts", "streams", "events", "modules")
    return lambda: {name: fake.count(name) for name in names if fake.count(name)}
