"""What a story begins with: -i, --file, or standard input where something was sent there."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pyllama2c.errors import in_words
from pyllama2c.files.recognize import PROSE, expect

if TYPE_CHECKING:
    from pyllama2c.model import Llama

_MOST = 1 << 24
"""bytes of a prompt: more than any context holds, and an end for streams without one"""


def prompt_bytes(arguments: argparse.Namespace) -> bytes:
    """The prompt, which need not be valid UTF-8; empty where there is none."""
    if arguments.prompt is not None:
        return os.fsencode(arguments.prompt)
    if arguments.file is None:
        return _read(sys.stdin.buffer, "standard input") if _is_sent() else b""
    if arguments.file == "-":
        return _read(sys.stdin.buffer, "standard input")
    expect(arguments.file, PROSE, ValueError)
    with Path(arguments.file).open("rb") as file:
        return _read(file, arguments.file)


def _is_sent() -> bool:
    """Whether standard input is a pipe, a socket or a file: no terminal, which would wait for
    somebody to type, and no device."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or replaced by an object without a descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


def _read(file: BinaryIO, name: str) -> bytes:
    """All of it, without the line end that `echo` and editors add, and a byte order mark."""
    if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):
        raise ValueError(f"{name}: a terminal or a device; a prompt is read from a file or a pipe")
    try:
        data = file.read(_MOST + 1)
    except OSError as error:
        raise OSError(f"{name}: {in_words(error)}") from error
    if len(data) > _MOST:
        raise ValueError(f"{name}: more than {_MOST:,} bytes, the limit for a prompt")
    data = data.removeprefix(b"\xef\xbb\xbf")
    return data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data


def prompt_tokens(llama: Llama, prompt: bytes, special: bool) -> list[int]:
    """Its ids; with `special`, control tokens where their text stands, BOS still only once."""
    tokenizer = llama.tokenizer
    if not special:
        return tokenizer.encode_prompt(prompt)
    tokens = tokenizer.encode(prompt, special=True)
    if (tokenizer.add_bos or not tokens) and tokens[:1] != [tokenizer.bos_id]:
        return [*tokenizer.encode_prompt(b"")[:1], *tokens]
    return tokens
