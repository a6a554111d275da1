"""What a file is: told before it is parsed, with what to do; and never against a real model."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from environment import SHARED, run_python
from gguf_files import model_file
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import CheckpointError, Llama, Llama2cError, Tokenizer, TokenizerError
from pyllama2c.cli.evaluate import read_passages
from pyllama2c.files.gguf import Gguf
from pyllama2c.files.hub import data_folder
from pyllama2c.files.recognize import HEAD, Kind, kind_of, kind_of_file

POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
TINY = TinyLlama.random(Shape())


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return out.getvalue()


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(64)


PIECE = b"\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
SAMPLES: dict[Kind, list[bytes]] = {
    Kind.LFS_POINTER: [POINTER],
    Kind.WEB_PAGE: [PAGE, b"<html lang=en>", b'\xef\xbb\xbf<?xml version="1.0"?><Error/>'],
    Kind.GGUF: [model_file(TINY).build()],
    Kind.LLAMA2C: [TINY.v0(), TINY.v1(), TinyLlama.random(Shape(group_size=16)).v2()],
    Kind.TOKENIZER_BIN: [tokenizer_file(), tokenizer_file(pieces=[b"a" * 123, b"b"])],
    Kind.PROMPT_CACHE: [b"l2ccache\3\0\0\0"],
    Kind.OLD_GGML: [b"tjgg\1\0\0\0", b"lmgg"],
    Kind.SAFETENSORS: [safetensors(b'{"a":{"dtype":"F32"}}'), safetensors(b"{}      ")],
    Kind.ZIP: [zipped()],
    Kind.PICKLE: [pickle.dumps({"a": 1}, protocol=2), pickle.dumps([1], protocol=4)],
    Kind.SENTENCEPIECE: [b"\x0a" + bytes([len(PIECE)]) + PIECE],
    Kind.TIKTOKEN: [b"IQ== 0\nIg== 1\n"],
    Kind.ARCHIVE: [gzip.compress(b"abc")],
    Kind.JSON: [b'{"a": 1}', b" [1]", b'\xef\xbb\xbf{"a": 1}'],
    Kind.TEXT: [b"Entry not found", "é".encode() * HEAD, b"a" + "é".encode() * HEAD, b"a\tb\r\n"],
    Kind.EMPTY: [b""],
}
UNKNOWN = [bytes(100), b"caf\xe9", "é".encode()[:1], b"\xff\xfea\0", np.arange(9).tobytes()]


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_known_by_its_beginning(kind: Kind, tmp_path: Path) -> None:
    for data in SAMPLES[kind]:
        assert kind_of(data[:HEAD]) is kind
        path = tmp_path / "file"
        path.write_bytes(data)
        assert kind_of_file(path) is kind


def test_what_is_not_known_is_left_to_the_parser(tmp_path: Path) -> None:
    assert [kind_of(data) for data in UNKNOWN] == [None] * len(UNKNOWN)
    assert kind_of_file(tmp_path) is None and kind_of_file(tmp_path / "nothing") is None


def test_the_files_of_this_package_and_of_others() -> None:
    folder = data_folder()
    assert kind_of_file(folder / "storyteller.bin") is Kind.LLAMA2C
    assert kind_of_file(folder / "tokenizer.bin") is Kind.TOKENIZER_BIN
    for path in (SHARED / "models").glob("*.bin"):
        tokenizer = "tok" in path.name
        assert kind_of_file(path) is (Kind.TOKENIZER_BIN if tokenizer else Kind.LLAMA2C), path


@given(
    st.integers(1, 1 << 12),
    st.integers(1, 1 << 9),
    *[st.integers(1, most) for most in (1 << 22, 1 << 12, 1 << 24, 1 << 24)],
    st.booleans(),
    st.binary(max_size=64),
)
@example(1, 30, 0x3C, 0x3C, 0x0A, 0x7B, False, PAGE)
def test_no_header_of_version_0_is_taken_for_another_file(
    heads: int,
    half: int,
    hidden: int,
    layers: int,
    vocab: int,
    length: int,
    tied: bool,
    rest: bytes,
) -> None:
    dim = heads * 2 * half
    if dim > 1 << 20:
        return
    fields = (dim, hidden, layers, heads, heads, vocab if tied else -vocab, length)
    assert kind_of(struct.pack("<7i", *fields) + rest) is Kind.LLAMA2C


def refused(error: type[Llama2cError], message: str, function: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        function()


@pytest.mark.parametrize("name", ["m.gguf", "m.bin"])
def test_a_model_that_is_something_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for kind, message in (
        (Kind.LFS_POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (Kind.WEB_PAGE, "is a web page, not the file itself; download it again"),
        (Kind.SAFETENSORS, "is a safetensors file; convert the model's folder"),
        (Kind.ZIP, "is a zip archive, as PyTorch saves weights; convert the model's folder"),
        (Kind.TOKENIZER_BIN, "is a llama2.c tokenizer.bin; pass it as the tokenizer"),
        (Kind.TEXT, "is text; download"),
        (Kind.EMPTY, "is empty"),
    ):
        path.write_bytes(SAMPLES[kind][0])
        refused(CheckpointError, re.escape(f"{name} {message}"), lambda: Llama(path))
        if SAMPLES[kind][0]:
            data = bytearray(SAMPLES[kind][0])
            refused(
                CheckpointError,
                re.escape(f"<memory> {message}"),
                lambda data=data: Llama.from_buffer(data),
            )
    path.write_bytes(POINTER)
    refused(CheckpointError, "Git LFS pointer", lambda: Gguf(path))
    for command in ("generate", "info", "bench"):
        shown = run_python("-m", "pyllama2c", command, str(path))
        assert shown.returncode == 1 and "run `git lfs pull`" in shown.stderr


def test_a_tokenizer_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    for kind, message in (
        (Kind.LFS_POINTER, "git lfs pull"),
        (Kind.WEB_PAGE, "a web page"),
        (Kind.SENTENCEPIECE, "a SentencePiece model; convert the model's folder"),
        (Kind.JSON, "is JSON"),
        (Kind.LLAMA2C, "a llama2.c checkpoint; pass it as the model"),
        (Kind.GGUF, "a GGUF file; pass it as the model"),
    ):
        path.write_bytes(SAMPLES[kind][0])
        refused(TokenizerError, message, lambda: Tokenizer(path))


@pytest.mark.parametrize("data", [POINTER, PAGE])
def test_a_file_to_convert_that_is_something_else(data: bytes, tmp_path: Path) -> None:
    for package in ("gguf", "safetensors", "ml_dtypes"):
        pytest.importorskip(package, reason=f"{package} (the extra `convert`) is not installed")
    from folders import Model, write_hugging_face, write_meta

    from pyllama2c.convert import convert

    what, target = kind_of(data), tmp_path / "out.gguf"
    assert what is not None
    model = Model(n_layers=1)
    for i, write in enumerate((write_hugging_face, write_meta)):
        folder = tmp_path / str(i)
        whole = {path.name: path.read_bytes() for path in write(folder, model).iterdir()}
        assert len(whole) > 1
        for name in whole:
            (folder / name).write_bytes(data)
            refused(
                CheckpointError,
                f"{name} is {what.what}",
                partial(convert, folder, target, tokenizer=False),
            )
            (folder / name).write_bytes(whole[name])
        for name in ("tokenizer.model", "tokenizer.json"):
            (folder / name).write_bytes(data)
            refused(TokenizerError, f"{name} is {what.what}", partial(convert, folder, target))
            (folder / name).unlink()
    assert not target.exists()


def test_a_text_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    for kind in (Kind.LFS_POINTER, Kind.LLAMA2C, Kind.GGUF, Kind.ZIP):
        path.write_bytes(SAMPLES[kind][0])
        with pytest.raises(ValueError, match=r"stories\.txt is a"):
            read_passages(path)
    for data in (PAGE, b"IQ== 0\n", json.dumps(["a"]).encode()):
        path.write_bytes(data)
        assert read_passages(path) == [data.decode().strip()]
