"""SentencePiece's tokenizer.model: a protobuf message, read field by field.

The `sentencepiece` package gives pieces and scores, but neither the model type nor the
normalization, which decide whether GGUF can give the same ids.
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from pyllama2c.convert.vocabulary import BYTE, CONTROL, NORMAL, Vocabulary
from pyllama2c.errors import CheckpointWarning, TokenizerError, UnsupportedError, warn
from pyllama2c.files.recognize import TOKENIZER_MODEL, expect

_BPE = 2


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        value |= (data[at + i] & 0x7F) << 7 * i
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise ValueError("a number has more than 10 bytes")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers of a message, and values: integers, or bytes of numbers and messages."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is not known")
        if size > len(data) - at:
            raise ValueError("the file is cut short")
        yield number, data[at : at + size]
        at += size


def _message(data: int | bytes) -> dict[int, int | bytes]:
    if not isinstance(data, bytes):
        raise ValueError("a number stands in place of a message")
    return dict(_fields(data))


def _piece(data: int | bytes) -> tuple[str, int, float]:
    fields = _message(data)
    text, score, kind = fields.get(1), fields.get(2, bytes(4)), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise ValueError("a piece has no text, or no score")
    if not isinstance(kind, int) or not NORMAL <= kind <= BYTE:
        raise ValueError(f"a piece has type {kind!r:.20}")
    (number,) = struct.unpack("<f", score)
    if number != number:
        raise ValueError("a piece's score is NaN")
    return text.decode("utf-8"), kind, number


def _parse(data: bytes, v: Vocabulary) -> tuple[dict[int, int | bytes], dict[int, int | bytes]]:
    """Adds the pieces to `v`; returns the trainer's and the normalizer's messages."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    count = 0
    for number, value in _fields(data):
        if number == 1:
            text, kind, score = _piece(value)
            v.put(count, text, kind, score)
            count += 1
        elif number == 2:
            trainer = _message(value)
        elif number == 3:
            normalizer = _message(value)
    if count == 0:
        raise ValueError("it has no pieces")
    return trainer, normalizer


def _control(
    v: Vocabulary, trainer: dict[int, int | bytes], field: int, default: str
) -> int | None:
    """The id of a control piece, named by a field of the trainer's message."""
    name = trainer.get(field, default.encode())
    number = v.find(name.decode("utf-8", "replace")) if isinstance(name, bytes) else None
    return number if number is not None and v.pieces[number][1] == CONTROL else None


def _check(path: Path, trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes]) -> None:
    if trainer.get(3, 1) != _BPE:
        raise UnsupportedError(f"{path} is a SentencePiece model, but not of type BPE")
    if trainer.get(24):
        raise UnsupportedError(f"{path} puts spaces after words (treat_whitespace_as_suffix)")
    if not normalizer.get(5, 1):
        raise UnsupportedError(f"{path} does not escape spaces (escape_whitespaces is false)")
    if normalizer.get(2) or normalizer.get(4, 1):
        warn(
            f"{path} normalizes text or merges runs of spaces first; readers of GGUF do not, so "
            "such text gets different ids",
            CheckpointWarning,
        )


def read_sentencepiece(path: Path, vocab_size: int) -> Vocabulary:
    """TokenizerError for a damaged file, UnsupportedError for a model that is not BPE."""
    expect(path, TOKENIZER_MODEL, TokenizerError)
    v = Vocabulary(path, "llama", vocab_size)
    try:
        trainer, normalizer = _parse(path.read_bytes(), v)
    except (ValueError, IndexError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(
            f"{path} is not a SentencePiece model, or is damaged: {error}"
        ) from error
    _check(path, trainer, normalizer)
    v.add_space = bool(normalizer.get(3, 1))
    v.unk = next((i for i, piece in v.pieces.items() if piece[1] == 2), None)
    v.bos, v.eos = _control(v, trainer, 46, "<s>"), _control(v, trainer, 47, "</s>")
    v.pad = _control(v, trainer, 48, "<pad>")
    surface = trainer.get(44)
    if isinstance(surface, bytes):
        v.unk_surface = surface.decode("utf-8", "replace")
    return v
