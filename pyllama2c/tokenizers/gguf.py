"""The tokenizer inside a GGUF file: lists of pieces, and keys that say how to use them.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pyllama2c._ffi import ffi, lib, new_error
from pyllama2c.errors import TokenizerError, UnsupportedError
from pyllama2c.files.gguf import Gguf
from pyllama2c.tokenizers.base import NONE, BaseTokenizer, Strips
from pyllama2c.tokenizers.control_tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    classify,
)
from pyllama2c.tokenizers.llama2c import Tokenizer
from pyllama2c.tokenizers.pre_tokenizers import PRE_TOKENIZERS

SCHEMES = ("every", "always", "first", "never")
"""where the `tokenizers` package adds a space: before every stretch of text between added tokens;
before those that do not begin with one; before the first, if it does not; never"""

UNKNOWN_TEXT = " \N{DOUBLE QUESTION MARK} "
"""what SentencePiece decodes <unk> to, unless a model says otherwise"""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

_DEFAULTS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}}
"""ids for missing keys, as in llama.cpp"""

END_IDS = "pyllama2c.end_token_ids"
"""our own key: ids that end an answer besides `eos`, `eot` and `eom`"""


def has_tokenizer(gguf: Gguf) -> bool:
    return gguf.get("tokenizer.ggml.model", "no_vocab") not in ("no_vocab", "none")


def read_tokenizer(gguf: Gguf, vocab_size: int) -> BaseTokenizer:
    """The tokenizer of a file that has one, for a model of `vocab_size` ids.

    TokenizerError for lists that are damaged or do not fit the model, UnsupportedError for an
    unknown kind of tokenizer, or one whose package is not installed.
    """
    kind = Vocabulary.field(gguf, "model", str)
    v = Vocabulary(gguf, kind, vocab_size)
    if kind == "llama":
        return SentencePieceTokenizer(v)
    from pyllama2c.tokenizers.byte_level import ByteLevelTokenizer

    return ByteLevelTokenizer(v)


class Vocabulary:
    """The tokenizer keys of a file, checked."""

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
        self.unknown = self._id("unknown")
        self.padding, self.separator, self.classifier, self.mask = (
            self._named(name) for name in ("padding", "seperator", "cls", "mask")
        )
        template = gguf.get("tokenizer.chat_template")
        self.types, self.ends = classify(
            self.pieces,
            self._types(),
            template=template if isinstance(template, str) else None,
            named={bos, eos, self._id("eot"), self._id("eom")} - {NONE},
            listed=self._listed_ends(),
        )
        pre = PRE_TOKENIZERS.get(self.pre)
        starts = kind == "llama" or (pre is not None and pre.add_bos)
        self.add_bos: bool = self.field(gguf, "add_bos_token", bool, starts) and bos != NONE
        self.add_eos: bool = self.field(gguf, "add_eos_token", bool, False) and eos != NONE
        left, right = (self.of(n, self.own(n, list, []), int) for n in ("lstrip", "rstrip"))
        self.strips = Strips(frozenset(left), frozenset(right))
        self.add_space: bool = self.field(gguf, "add_space_prefix", bool, kind == "llama")

    @staticmethod
    def field(gguf: Gguf, name: str, kind: type, default: Any = None) -> Any:
        value = gguf.get(f"tokenizer.ggml.{name}", default)
        if type(value) is not kind:
            what = "is missing" if value is None else f"is {value!r:.50}"
            raise TokenizerError(
                f"{gguf.path}: tokenizer.ggml.{name} {what}; it must be of type {kind.__name__}"
            )
        return value

    def _list(self, name: str, kind: type) -> list[Any]:
        values: list[Any] = self.field(self._gguf, name, list)
        if len(values) != self.size:
            raise TokenizerError(
                f"{self.path}: tokenizer.ggml.{name} has {len(values)} entries; the model's "
                f"vocab_size is {self.size}"
            )
        return self.of(name, values, kind)

    def of(self, name: str, values: list[Any], kind: type) -> list[Any]:
        if any(type(value) is not kind for value in values):
            raise TokenizerError(
                f"{self.path}: the values of tokenizer.ggml.{name} must be of type {kind.__name__}"
            )
        return values

    def _id(self, name: str) -> int:
        key = f"{name}_token_id"
        given = f"tokenizer.ggml.{key}" in self._gguf
        number: int = self.field(self._gguf, key, int, self._default(name))
        if 0 <= number < self.size:
            return number
        # Files write "none" as -1 or, unsigned, as 2^32 - 1.
        if given and number not in (NONE, 2**32 - 1):
            raise TokenizerError(
                f"{self.path}: tokenizer.ggml.{key} is {number}; the model's ids are 0 to "
                f"{self.size - 1}"
            )
        return NONE

    def _default(self, name: str) -> int:
        """The id for a missing key; NONE if that token is something else."""
        number = _DEFAULTS[self.kind].get(name, NONE)
        given = [self._gguf.get(f"tokenizer.ggml.{other}_token_id") for other in _DEFAULTS["llama"]]
        if number in given:
            return NONE
        if "tokenizer.ggml.token_type" not in self._gguf or not 0 <= number < self.size:
            return number
        kind = self._list("token_type", int)[number]
        return number if kind == (UNKNOWN if name == "unknown" else CONTROL) else NONE

    def _named(self, name: str) -> int:
        """Only templates use it, so an id out of range counts as none."""
        number = self._gguf.get(f"tokenizer.ggml.{name}_token_id")
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
                    raise TokenizerError(f"{self.path}: piece {i} has type {kind}, not 1 to 6")
        else:
            types = [NORMAL] * self.size
        if self.unknown != NONE and types[self.unknown] == NORMAL:
            types[self.unknown] = UNKNOWN
        return types

    def of_type(self, *kinds: int) -> list[tuple[str, int]]:
        """(text, id) of the pieces of these types, except empty ones."""
        return [
            (self.pieces[i], i) for i, t in enumerate(self.types) if t in kinds and self.pieces[i]
        ]

    def scores(self) -> list[float]:
        return self._list("scores", float)

    def merges(self) -> list[str]:
        # Writers omit empty lists.
        return self.of("merges", self.field(self._gguf, "merges", list, []), str)

    def pairs(self, merges: list[str], normal: Collection[str]) -> Iterator[tuple[str, str]]:
        """The two pieces of each merge. Merges of, or into, pieces that are not `normal` are left
        out: text never becomes a control token, and user-defined ones are matched before merging.
        """
        known = set(self.pieces)
        for i, merge in enumerate(merges):
            left, _, right = merge.partition(" ")
            texts = (left, right, left + right)
            if not known.issuperset(texts):
                raise TokenizerError(
                    f"{self.path}: merge {i} ({merge!r:.80}) does not join two pieces into a third"
                )
            if all(text in normal for text in texts):
                yield left, right

    def own(self, name: str, kind: type, default: Any) -> Any:
        """The value of one of our own keys, which `convert` writes where GGUF has none."""
        key = f"pyllama2c.tokenizer.{name}"
        value = self._gguf.get(key, default)
        if value is not default and type(value) is not kind:
            raise TokenizerError(
                f"{self.path}: {key} is {value!r:.50}; it must be of type {kind.__name__}"
            )
        return value


class SentencePieceTokenizer(Tokenizer):
    """`tokenizer.ggml.model` "llama": the engine's tokenizer, made from lists.

    For a vocabulary from a tokenizer.json, our own keys say how the `tokenizers` package uses it:
    it matches user-defined tokens before it adds spaces, SentencePiece afterwards.
    """

    def __init__(self, v: Vocabulary):
        self._scheme: str | None = v.own("prepend_scheme", str, None)
        if self._scheme not in (None, *SCHEMES):
            raise TokenizerError(
                f"{v.path}: pyllama2c.tokenizer.prepend_scheme is {self._scheme!r:.50}; known: "
                f"{', '.join(SCHEMES)}"
            )
        cut = v.of_type(USER_DEFINED) if self._scheme else []
        BaseTokenizer.__init__(self, v.of_type(CONTROL, UNKNOWN), cut, v.strips)
        self.path, self.ends = v.path, v.ends
        self.unk_id, self.pad_id = v.unknown, v.padding
        self.sep_id, self.cls_id, self.mask_id = v.separator, v.classifier, v.mask
        self.add_bos, self.add_eos = v.add_bos, v.add_eos
        self.adds_space = self._scheme != "never" if self._scheme else v.add_space
        unknown = v.own("unk_surface", str, UNKNOWN_TEXT).encode()
        self._decoded = {i: b"" if kind == CONTROL else unknown for i, kind in enumerate(v.types)
                      if kind in (CONTROL, UNKNOWN)}  # fmt: skip
        self._as_is = frozenset(i for i, kind in enumerate(v.types) if kind in (UNKNOWN, BYTE))
        out, err = ffi.new("l2c_tokenizer **"), new_error()
        vocabulary, lists = engine_vocabulary(v, self._scheme)
        status = lib.l2c_tokenizer_create(vocabulary, out, err)
        del lists  # which the engine has copied
        self._take(status, out, err)

    def _space_before(self, text: str, opens: bool) -> bool:
        if self._scheme in (None, "every", "never"):
            return self.adds_space
        return (opens or self._scheme == "always") and not text.startswith((" ", _SPACE))

    def _piece(self, token: int) -> bytes:
        decoded = self._decoded.get(token)
        return super()._piece(token) if decoded is None else decoded

    def opening(self, token: int) -> bytes:
        return self.piece(token) if token in self._as_is else super().opening(token)


def engine_vocabulary(v: Vocabulary, scheme: str | None) -> tuple[Any, Any]:
    """An l2c_vocabulary, and the arrays that it points to."""
    merges = v.own("merges", list, None)
    types = _engine_types(v, scheme, merges is not None)
    texts = [piece.replace(_SPACE, " ").encode() for piece in v.pieces]
    lists = {
        "text": ffi.from_buffer("char[]", b"".join(texts)),
        "lengths": ffi.new("int32_t[]", [len(text) for text in texts]),
        "types": ffi.new("int32_t[]", types),
        "scores": ffi.new("float[]", v.scores()),
        "merges": ffi.NULL,
    }
    vocabulary = ffi.new("l2c_vocabulary *")
    if merges is not None:
        pairs = _pairs(v, merges, types)
        lists["merges"] = ffi.new("int32_t[]", pairs or 1)
        vocabulary.n_merges = len(pairs) // 2
    for name, values in lists.items():
        setattr(vocabulary, name, values)
    vocabulary.n_pieces, vocabulary.text_bytes = v.size, sum(map(len, texts))
    vocabulary.bos, vocabulary.eos, vocabulary.unknown = v.bos, v.eos, v.unknown
    if v.unknown == NONE and UNKNOWN in v.types:
        vocabulary.unknown = v.types.index(UNKNOWN)
    vocabulary.split_spaces = v.own("split_spaces", bool, False)
    return vocabulary, lists


def _engine_types(v: Vocabulary, scheme: str | None, has_merges: bool) -> list[int]:
    """The pieces' types for the engine, which never makes an UNKNOWN piece of a text."""
    types, known = list(v.types), set(v.pieces)
    for i, (text, kind) in enumerate(zip(v.pieces, v.types, strict=True)):
        if kind == USER_DEFINED and scheme is not None:
            # Matched before the engine sees the text, but merges may still produce it.
            types[i] = NORMAL if has_merges else UNKNOWN
        # A space in a text is looked up as U+2581.
        if " " in text and (types[i] == NORMAL or text.replace(" ", _SPACE) in known):
            types[i] = UNKNOWN if types[i] in (NORMAL, USER_DEFINED) else kind
    return types


def _pairs(v: Vocabulary, merges: list[str], types: list[int]) -> list[int]:
    """The two ids of each merge."""
    ids = {piece: i for i, piece in enumerate(v.pieces) if types[i] == NORMAL}
    return [ids[text] for pair in v.pairs(v.of("merges", merges, str), ids) for text in pair]
