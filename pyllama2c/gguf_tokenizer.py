"""The tokenizer that a GGUF file holds: lists of pieces, and keys that say how to use them.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer
"""

from __future__ import annotations

import math
import struct
from typing import Any

from pyllama2c._ffi import ffi, lib, new_error
from pyllama2c.control_tokens import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, settle
from pyllama2c.errors import TokenizerError, UnsupportedError
from pyllama2c.gguf import Gguf
from pyllama2c.tokenizer import NONE, BaseTokenizer, Tokenizer

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_N_SPECIAL = 3  # the engine's <unk>, BOS and EOS, with which SentencePiece's vocabularies begin
_FIRST_TEXT = _N_SPECIAL + 256

_DEFAULTS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}}
"""ids where keys are missing, as in llama.cpp"""

END_IDS = "pyllama2c.end_token_ids"
"""our key: further ids that end an answer, where `eos`, `eot` and `eom` are not enough"""

LLAMA3_PRE = frozenset(("llama-bpe", "llama3", "llama-v3"))
"""names of Llama 3's pre-tokenizer, with which texts begin with BOS"""


def has_tokenizer(gguf: Gguf) -> bool:
    return gguf.get("tokenizer.ggml.model", "no_vocab") not in ("no_vocab", "none")


def read_tokenizer(gguf: Gguf, vocab_size: int) -> BaseTokenizer:
    """The tokenizer of a file that has one, for a model of `vocab_size` ids.

    TokenizerError for lists that are damaged or do not fit the model, UnsupportedError for a kind
    of tokenizer that is not known, or whose package is not installed.
    """
    kind = Vocabulary.field(gguf, "model", str)
    v = Vocabulary(gguf, kind, vocab_size)
    if kind == "llama":
        return SentencePieceTokenizer(v)
    from pyllama2c.byte_level import ByteLevelTokenizer

    return ByteLevelTokenizer(v)


class Vocabulary:
    """What the keys say, checked."""

    def __init__(self, gguf: Gguf, kind: str, vocab_size: int):
        if kind not in _DEFAULTS:
            raise UnsupportedError(
                f"{gguf.path}: tokenizer.ggml.model is {kind!r:.50}; known: llama, gpt2"
            )
        self.path, self.kind, self.size = gguf.path, kind, vocab_size
        self._gguf = gguf
        self.pieces: list[str] = self._list("tokens", str)
        self.pre: str = self.field(gguf, "pre", str, "default")
        bos, eos = self._id("bos"), self._id("eos")
        self.bos, self.eos = bos, eos
        self.unknown, self.padding = self._id("unknown"), self._padding()
        template = gguf.get("tokenizer.chat_template")
        self.types, self.ends = settle(
            self.pieces,
            self._types(),
            template=template if isinstance(template, str) else None,
            named={bos, eos, self._id("eot"), self._id("eom")} - {NONE},
            listed=self._listed_ends(),
        )
        starts = kind == "llama" or self.pre in LLAMA3_PRE
        self.add_bos: bool = self.field(gguf, "add_bos_token", bool, starts) and bos != NONE
        self.add_eos: bool = self.field(gguf, "add_eos_token", bool, False) and eos != NONE
        self.add_space: bool = self.field(gguf, "add_space_prefix", bool, kind == "llama")

    @staticmethod
    def field(gguf: Gguf, name: str, kind: type, default: Any = None) -> Any:
        value = gguf.get(f"tokenizer.ggml.{name}", default)
        if type(value) is not kind:
            what = "is missing" if value is None else f"is {value!r:.50}"
            raise TokenizerError(
                f"{gguf.path}: tokenizer.ggml.{name} {what}; it must be a {kind.__name__}"
            )
        return value

    def _list(self, name: str, kind: type) -> list[Any]:
        values: list[Any] = self.field(self._gguf, name, list)
        if len(values) != self.size:
            raise TokenizerError(
                f"{self.path}: tokenizer.ggml.{name} has {len(values)} entries; the model's "
                f"vocab_size is {self.size}"
            )
        return self._of(name, values, kind)

    def _of(self, name: str, values: list[Any], kind: type) -> list[Any]:
        if any(type(value) is not kind for value in values):
            raise TokenizerError(
                f"{self.path}: tokenizer.ggml.{name} holds something else than {kind.__name__}"
            )
        return values

    def _id(self, name: str) -> int:
        key = f"{name}_token_id"
        given = f"tokenizer.ggml.{key}" in self._gguf
        number: int = self.field(self._gguf, key, int, _DEFAULTS[self.kind].get(name, NONE))
        if 0 <= number < self.size:
            return number
        # Files spell "none" as -1, which as an unsigned number is 2^32 - 1.
        if given and number not in (NONE, 2**32 - 1):
            raise TokenizerError(
                f"{self.path}: tokenizer.ggml.{key} is {number}; the model knows 0 to "
                f"{self.size - 1}"
            )
        return NONE

    def _padding(self) -> int:
        """Only templates ask for it, so an id that the model does not know is none."""
        number = self._gguf.get("tokenizer.ggml.padding_token_id")
        return number if type(number) is int and 0 <= number < self.size else NONE

    def _listed_ends(self) -> list[int]:
        ends = self._gguf.get(END_IDS, [])
        if not isinstance(ends, list) or any(
            type(i) is not int or not 0 <= i < self.size for i in ends
        ):
            raise TokenizerError(
                f"{self.path}: {END_IDS} is {ends!r:.80}; it must be a list of ids from 0 to "
                f"{self.size - 1}"
            )
        return ends

    def _types(self) -> list[int]:
        if self.kind == "llama" or "tokenizer.ggml.token_type" in self._gguf:
            types = self._list("token_type", int)
            for i, kind in enumerate(types):
                if not NORMAL <= kind <= BYTE:
                    raise TokenizerError(f"{self.path}: piece {i}: its type is {kind}, not 1 to 6")
        else:
            types = [NORMAL] * self.size
        if self.unknown != NONE and types[self.unknown] == NORMAL:
            types[self.unknown] = UNKNOWN
        return types

    def of_type(self, *kinds: int) -> list[tuple[str, int]]:
        """Text and id of the pieces of some types, those without text excepted."""
        return [
            (self.pieces[i], i) for i, t in enumerate(self.types) if t in kinds and self.pieces[i]
        ]

    def scores(self) -> list[float]:
        return self._list("scores", float)

    def merges(self) -> list[str]:
        return self._of("merges", self.field(self._gguf, "merges", list), str)


class SentencePieceTokenizer(Tokenizer):
    """`tokenizer.ggml.model` "llama": the engine's tokenizer, from lists."""

    def __init__(self, v: Vocabulary):
        BaseTokenizer.__init__(self, v.of_type(CONTROL, UNKNOWN), v.of_type(USER_DEFINED))
        self.path, self.bos_id, self.eos_id, self.ends = v.path, v.bos, v.eos, v.ends
        self.unk_id, self.pad_id = v.unknown, v.padding
        self.add_bos, self.add_eos, self.adds_space = v.add_bos, v.add_eos, v.add_space
        self._control = {i for i, kind in enumerate(v.types) if kind == CONTROL}
        self._image = _image(v)  # which the engine reads from as long as it lives
        out, err = ffi.new("l2c_tokenizer **"), new_error()
        data = ffi.from_buffer(self._image)
        status = lib.l2c_tokenizer_open_memory(data, len(data), v.size, out, err)
        self._open(status, out, err)

    def _piece(self, token: int) -> bytes:
        return b"" if token in self._control else super()._piece(token)


def _image(v: Vocabulary) -> bytes:
    """A tokenizer.bin. What is not text gets a score of minus infinity: no text becomes it."""
    for i, kind in enumerate(v.types):
        if (i < _N_SPECIAL and kind == NORMAL) or (kind == BYTE) != (_N_SPECIAL <= i < _FIRST_TEXT):
            raise UnsupportedError(
                f"{v.path}: piece {i} ({v.pieces[i]!r:.50}) is of type {kind}; the engine needs "
                "<unk>, BOS and EOS as pieces 0 to 2, and bytes as 3 to 258 and nowhere else"
            )
    texts = [piece.replace(_SPACE, " ").encode() for piece in v.pieces]
    parts = [struct.pack("<i", max(map(len, texts)))]
    for text, kind, score in zip(texts, v.types, v.scores(), strict=True):
        score = score if kind in (NORMAL, BYTE) else -math.inf
        parts.append(struct.pack("<fi", score, len(text)) + text)
    return b"".join(parts)
