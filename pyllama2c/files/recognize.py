"""What kind of file something is, from its first bytes: checked before any parser reports damage.

A failed download is far more often a file of another kind than a damaged one. llama2.c's version 0
has no magic number, so unrecognized files go to the parser; every other kind begins with bytes that
no version 0 header can have.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from enum import Enum
from typing import Any

from pyllama2c._ffi import ffi
from pyllama2c.errors import CheckpointError

HEAD = 4096
"""bytes that are read"""

_CONVERT = "convert the model's folder with `pyllama2c convert FOLDER model.gguf`"


class Kind(Enum):
    """A kind of file: what to call it, and advice for where another kind was expected."""

    LFS_POINTER = "a Git LFS pointer, not the file itself", "run `git lfs pull`"
    WEB_PAGE = "a web page, not the file itself", "download it again, from a link to the file"
    GGUF = "a GGUF file", "pass it as the model"
    LLAMA2C = "a llama2.c checkpoint", "pass it as the model"
    TOKENIZER_BIN = "a llama2.c tokenizer.bin", "pass it as the tokenizer"
    PROMPT_CACHE = "a prompt cache of pyllama2c", "load it with Llama.load_cache"
    OLD_GGML = "a GGML file older than GGUF", "download the model as GGUF"
    SAFETENSORS = "a safetensors file", _CONVERT
    ZIP = "a zip archive, as PyTorch saves weights", _CONVERT
    PICKLE = (
        "a Python pickle, as old PyTorch saved weights",
        "load and save it again with a newer one",
    )
    SENTENCEPIECE = "a SentencePiece model", _CONVERT
    TIKTOKEN = "a tiktoken vocabulary", _CONVERT
    ARCHIVE = "a compressed archive", "unpack it"
    JSON = "JSON", _CONVERT
    TEXT = "text", "download the file again"
    EMPTY = "empty (0 bytes)", "download it again"

    def __init__(self, what: str, advice: str):
        self.what, self.advice = what, advice


MODEL = frozenset((Kind.GGUF, Kind.LLAMA2C))
GGUF_FILE = frozenset((Kind.GGUF,))
TOKENIZER_FILE = frozenset((Kind.TOKENIZER_BIN,))
SAFETENSORS = frozenset((Kind.SAFETENSORS,))
TORCH = frozenset((Kind.ZIP, Kind.PICKLE))
TOKENIZER_MODEL = frozenset((Kind.SENTENCEPIECE, Kind.TIKTOKEN))
JSON = frozenset((Kind.JSON, Kind.TEXT))
"""text may still parse as JSON"""
PROSE = frozenset((Kind.TEXT, Kind.JSON, Kind.WEB_PAGE, Kind.TIKTOKEN, Kind.EMPTY))
"""anything that may be readable text"""

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"version https://git-lfs", Kind.LFS_POINTER),
    (b"GGUF", Kind.GGUF),
    (b"24ka", Kind.LLAMA2C),
    (b"l2ccache", Kind.PROMPT_CACHE),
    *((magic, Kind.OLD_GGML) for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")),
    (b"PK\x03\x04", Kind.ZIP),
    (b"\x1f\x8b\x08", Kind.ARCHIVE),  # gzip
    (b"BZh", Kind.ARCHIVE),
    (b"\xfd7zXZ\0", Kind.ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", Kind.ARCHIVE),
    (b"\x28\xb5\x2f\xfd", Kind.ARCHIVE),  # Zstandard
    (b"Rar!\x1a\x07", Kind.ARCHIVE),
)
_WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|!--)[\s>-]", re.IGNORECASE)
_PICKLE = re.compile(rb"\x80[\x02-\x05][\x28-\xff]")
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file that begins with `head`, HEAD bytes or the whole of it; None: unknown."""
    if not head:
        return Kind.EMPTY
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf")
    if _WEB_PAGE.match(text):
        return Kind.WEB_PAGE
    if _PICKLE.match(head):
        return Kind.PICKLE
    for kind, matches in _SHAPES.items():
        if matches(head):
            return kind
    if not _is_text(text):
        return None
    if _TIKTOKEN.match(text):
        return Kind.TIKTOKEN
    return Kind.JSON if text.lstrip()[:1] in (b"{", b"[") else Kind.TEXT


def _is_text(head: bytes) -> bool:
    """UTF-8 without control characters; the last character may be incomplete."""
    if _BINARY.search(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return len(head) >= HEAD - 3 and error.start > len(head) - 4
    return True


def _is_safetensors(head: bytes) -> bool:
    if len(head) < 10 or head[8:9] != b"{" or head[9:10] not in b'"} \t\r\n':
        return False
    (size,) = struct.unpack_from("<Q", head)
    return bool(2 <= size < 2**32)


def _is_llama2c(head: bytes) -> bool:
    """Version 0: seven plausible integers."""
    if len(head) < 28:
        return False
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from("<7i", head)
    within = all(
        1 <= n <= most
        for n, most in (
            *((dim, 1 << 20), (hidden, 1 << 22), (layers, 1 << 12), (heads, 1 << 16)),
            *((kv_heads, 1 << 16), (abs(vocab), 1 << 24), (length, 1 << 24)),
        )
    )
    return within and dim % heads == heads % kv_heads == 0


def _is_tokenizer_bin(head: bytes) -> bool:
    """The longest piece's length, then pieces, each a score, a length and bytes."""
    if len(head) < 16:
        return False
    (longest,) = struct.unpack_from("<i", head)
    if not 1 <= longest <= 1 << 16:
        return False
    at = 4
    for _ in range(3):
        if at + 8 > len(head):
            break
        score, length = struct.unpack_from("<fi", head, at)
        if not 0 <= length <= longest or not (score == 0 or 1e-6 < abs(score) < 1e9):
            return False
        at += 8 + length
    return at > 4


def _is_sentencepiece(head: bytes) -> bool:
    """A protobuf message whose first field is a piece: text, then a score."""
    if len(head) < 4 or head[0] != 0x0A or head[2] != 0x0A or head[1] < head[3] + 2:
        return False
    return head[1] < 0x80 and head[4 + head[3] : 5 + head[3]] in (b"\x15", b"\x18")


_SHAPES = {
    Kind.SAFETENSORS: _is_safetensors,
    Kind.LLAMA2C: _is_llama2c,
    Kind.TOKENIZER_BIN: _is_tokenizer_bin,
    Kind.SENTENCEPIECE: _is_sentencepiece,
}


def kind_of_file(path: str | os.PathLike[str]) -> Kind | None:
    """The kind of a file; None where it is unknown, no regular file, or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            return None
        with open(path, "rb") as file:
            return kind_of(file.read(HEAD))
    except OSError:
        return None


def expect(path: str | os.PathLike[str], wanted: frozenset[Kind], error: type[ValueError]) -> None:
    """Raises `error`, with advice, for a file that is recognized as another kind.

    Unknown and unreadable files are left to the parser and its own errors.
    """
    _refuse(kind_of_file(path), os.fspath(path), wanted, error)


def expect_model(buffer: Any) -> None:
    """The same for a model in memory, a cffi buffer."""
    if len(buffer):
        head = bytes(ffi.buffer(buffer, min(len(buffer), HEAD)))
        _refuse(kind_of(head), "<memory>", MODEL, CheckpointError)


def _refuse(kind: Kind | None, name: str, wanted: frozenset[Kind], error: type[ValueError]) -> None:
    if kind is not None and kind not in wanted:
        raise error(f"{name} is {kind.what}; {kind.advice}")
