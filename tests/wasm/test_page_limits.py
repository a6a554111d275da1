"""Models that no page can hold, or no page's memory: refused, and nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from environment import run_python
from tiny import Shape, TinyLlama, tokenizer_file

SMALL = Shape(dim=64, hidden_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=300)
LARGE = replace(SMALL, dim=4096, n_heads=512, n_kv_heads=1, vocab_size=8500)


def write_model(path: Path, shape: Shape) -> None:
    """A version 1 file of one layer, all of it a hole."""
    kv = shape.n_kv_heads * shape.head_size
    rows = shape.vocab_size + 3 + 2 * shape.dim + 2 * kv + 3 * shape.hidden_dim
    with path.open("wb") as file:
        file.write(TinyLlama(shape)._header(1))
        file.truncate(256 + 4 * rows * shape.dim)
    path.with_name("tokenizer.bin").write_bytes(tokenizer_file(shape.vocab_size))


def page(*words: object) -> tuple[int, str]:
    done = run_python("-m", "pyllama2c", "page", *map(str, words))
    return done.returncode, done.stderr


def test_a_file_that_is_no_string_of_a_browsers(tmp_path: Path) -> None:
    model, target = tmp_path / "model.bin", tmp_path / "page.html"
    write_model(model, LARGE)
    status, said = page(target, model)
    size = f"{model.stat().st_size:,}"
    assert (status, len(said.splitlines())) == (1, 1)
    assert f"model.bin has {size} bytes; a page holds 268,435,456 at most" in said
    assert sorted(tmp_path.iterdir()) == [model, tmp_path / "tokenizer.bin"]


@pytest.mark.parametrize(
    "options", [(), ("--kv-dtype", "float16", "--context", "8000000")], ids=str
)
def test_a_context_that_its_memory_has_no_room_for(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Two GiB: what the engine takes is in one piece."""
    model, target = tmp_path / "model.bin", tmp_path / "page.html"
    write_model(model, replace(SMALL, seq_len=4_200_000 if not options else 16_000_000))
    target.write_text("the page before")
    status, said = page(target, model, *options)
    assert (status, len(said.splitlines())) == (1, 1)
    assert "bytes of memory; a page has 2,147,483,648 at most (a shorter context" in said
    assert target.read_text() == "the page before"
    status, said = page(target, model, "--context", "256")
    assert status == 0 and target.stat().st_size > 100_000, said
