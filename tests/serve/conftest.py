"""The storyteller, served."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from pyllama2c import Llama

if TYPE_CHECKING:
    from http_server import Running

NEEDED = ("starlette", "uvicorn", "msgspec", "httpx", "openai")
if not all(map(find_spec, NEEDED)):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def storyteller() -> Iterator[Llama]:
    with Llama() as llama:
        yield llama


@pytest.fixture(scope="module")
def server(storyteller: Llama) -> Iterator[Running]:
    from http_server import serving

    with serving(storyteller) as running:
        yield running
