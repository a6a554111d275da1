"""The storyteller, and the page that it tells in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyllama2c import Llama
from pyllama2c.serve.page_file import page_file


@pytest.fixture(scope="module")
def storyteller() -> Iterator[Llama]:
    with Llama() as llama:
        yield llama


@pytest.fixture(scope="module")
def story(storyteller: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "story.html"
    path.write_bytes(page_file(storyteller))
    return path
