"""Checkpoint files that lie: a named error; no crash, no hang, no memory for what is not there."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Shape, TinyLlama

from pyllama2c import CheckpointError, Llama, Llama2cError, NonFiniteLogitsError

SHAPE = Shape(dim=8, hidden_dim=12, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=10, seq_len=8)
INT8 = Shape(**{**SHAPE.__dict__, "group_size": 4})
GOOD = {
    0: TinyLlama.random(SHAPE).v0(),
    1: TinyLlama.random(SHAPE).v1(),
    2: TinyLlama.random(INT8).v2(),
}
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def first_field(version: int) -> int:
    return 0 if version == 0 else 8


def patched(version: int, offset: int, value: int) -> bytes:
    data = bytearray(GOOD[version])
    data[offset : offset + 4] = struct.pack("<i", value)
    return bytes(data)


def refuse(data: bytes, message: str = ".") -> None:
    with pytest.raises(CheckpointError, match=message):
        Llama.from_buffer(bytearray(data))


@pytest.mark.parametrize("version", GOOD)
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1, 2**24 + 1, 65537])
@pytest.mark.parametrize("field", FIELDS)
def test_header_fields(field: str, value: int, version: int) -> None:
    """Zero, negative and huge values are refused by name, or because the file is too short."""
    if version == 1 and field == "seq_len" and value == 65537:
        pytest.skip("a long context is allowed: version 1 stores nothing in proportion to it")
    if version == 2 and field == "seq_len" and value == 65537:
        pytest.skip("a long context is allowed: version 2 stores nothing in proportion to it")
    data = patched(version, first_field(version) + 4 * FIELDS.index(field), value)
    in_range = value == 65537 or (field == "vocab_size" and value == -1 and version == 0)
    refuse(data, "." if in_range else f"{field} is ")


@pytest.mark.parametrize("version", GOOD)
def test_every_truncation(version: int) -> None:
    data = GOOD[version]
    for size in {*range(0, min(len(data), 400)), *range(400, len(data), 61), len(data) - 1}:
        refuse(data[:size])
    for extra in (1, 3, 4, 4 * SHAPE.vocab_size * SHAPE.dim):
        refuse(data + b"\0" * extra, "trailing bytes")
    refuse(data[:-1], f"file is {len(data) - 1} bytes, but its header .* needs {len(data)}")


@pytest.mark.parametrize(
    ("version", "offset", "value", "message"),
    [
        (1, 4, 0, "version is 0; versions 0, 1 and 2 are known"),
        (1, 4, 3, "version is 3"),
        (1, 4, -1, "version is -1"),
        (0, 12, 3, "n_heads 3 does not divide dim 8"),
        (1, 8 + 12, 8, "head size dim / n_heads is 1; RoPE needs it to be even"),
        (1, 8 + 16, 3, "n_kv_heads 3 does not divide n_heads 2"),
        (2, 37, 0, "group_size is 0"),
        (2, 37, -4, "group_size is -4"),
        (2, 37, 2**30, "group_size is"),
        (2, 37, 3, "group_size 3 does not divide dim 8"),
        (1, 36, 0x07, "shared_classifier is 7"),
    ],
)
def test_what_does_not_fit_together(version: int, offset: int, value: int, message: str) -> None:
    refuse(patched(version, offset, value), message)


@pytest.mark.parametrize("fields", [(2**20, 2**22, 4096, 1, 1, 2**24, 2**24)])
def test_products_that_overflow(fields: tuple[int, ...]) -> None:
    """Each field within its limit, the sizes together far beyond 64 bits' worth of file."""
    header = struct.pack("<7i", *fields)
    refuse(header + b"\0" * 1000, "it is cut short")
    version1 = struct.pack("<Ii", 0x616B3432, 1) + header
    refuse(version1.ljust(2000, b"\1"), "it is cut short")


def test_versions_are_told_by_content(tmp_path: Path) -> None:
    for version, data in GOOD.items():
        path = tmp_path / "model.bin"
        path.write_bytes(data)
        with Llama(path) as llama:
            assert llama.config.version == version
            assert llama.config.group_size == (4 if version == 2 else 0)
            assert llama.n_parameters == 10 * 8 + 2 * (2 * 64 + 2 * 32 + 3 * 96) + 5 * 8


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Llama(tmp_path / "none.bin")
    assert isinstance(caught.value, CheckpointError)
    assert caught.value.filename == str(tmp_path / "none.bin")
    with pytest.raises(CheckpointError, match="is a directory"):
        Llama(tmp_path)
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Llama(tmp_path / "pipe.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty\.bin is empty \(0 bytes\)"):
        Llama(tmp_path / "empty.bin")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Llama("/dev/zero")


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.bin"
    path.write_bytes(GOOD[0])
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(CheckpointError) as caught:
        Llama(path)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["embedding", "wq", "wv", "w2", "final_norm"])
def test_weights_that_are_not_finite(name: str, value: float, tokenizer_path: Path) -> None:
    """They load; sampling says that the logits are not finite."""
    tiny = TinyLlama.random(Shape())
    tiny.weights[name].reshape(-1)[:: 1 if name == "embedding" else 7] = value
    with Llama.from_buffer(tiny.v0(), tokenizer_path) as llama:
        for temperature in (0.0, 1.0):
            with pytest.raises(NonFiniteLogitsError, match="NaN or infinity"):
                llama.generate("ab", temperature=temperature, seed=1, max_tokens=3).read()
        with pytest.raises(NonFiniteLogitsError):
            llama.score([1, 5, 6])


def test_a_huge_context_costs_no_memory_before_it_is_used() -> None:
    data = patched(1, 8 + 24, 2**20)
    with Llama.from_buffer(bytearray(data)) as llama:
        assert llama.config.seq_len == 2**20
        assert llama.logits([1, 2, 3]).shape == (3, 10)


@settings(max_examples=300, deadline=None)
@given(
    version=st.sampled_from([0, 1, 2]),
    edits=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 50),
)
def test_any_damage(version: int, edits: list[tuple[int, int]], cut: int) -> None:
    """A damaged file is refused, or it is another valid model, which then works."""
    data = bytearray(GOOD[version])
    for offset, value in edits:
        data[offset] = value
    try:
        llama = Llama.from_buffer(data[: len(data) - cut])
    except CheckpointError:
        return
    with llama:
        try:
            llama.logits([1, 2])
        except (Llama2cError, ValueError):
            assert llama.config.vocab_size < 3 or llama.config.seq_len < 2
