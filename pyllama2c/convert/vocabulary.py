"""A tokenizer as GGUF stores it: a piece, a type and perhaps a score for every id of the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pyllama2c.errors import CheckpointWarning, TokenizerError, UnsupportedError, warn
from pyllama2c.tokenizers.control_tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    classify,
)

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER_DEFINED", "Vocabulary"]


MAX_PIECE = 512
"""characters: merging takes time quadratic in the length"""


class Added(NamedTuple):
    """A token that was added to a tokenizer, and how it is matched in texts."""

    number: object
    text: object
    special: bool = False
    lstrip: bool = False
    """absorbs the white space before it"""
    rstrip: bool = False
    """absorbs the white space after it"""
    single_word: bool = False
    """only matches whole words"""
    normalized: bool = False
    """matches in the normalized text"""

    @classmethod
    def of(cls, entry: dict[str, Any], number: object) -> Added:
        """A token as JSON files have it."""
        flags = {name: entry.get(name) is True for name in cls._fields[2:]}
        return cls(number, entry.get("content"), **flags)

    @property
    def type(self) -> int:
        """What is special is a control token, but a single character is always text."""
        return CONTROL if self.special and len(str(self.text)) > 1 else USER_DEFINED


@dataclass
class Vocabulary:
    path: Path
    """where it is from, for messages"""
    model: str
    """`llama`: SentencePiece's BPE, by scores; `gpt2`: byte-level BPE, by merges"""
    size: int
    """of the model's embedding, which may have more rows than there are pieces"""
    pieces: dict[int, tuple[str, int, float]] = field(default_factory=dict)
    """id: text, type, score"""
    merges: list[str] = field(default_factory=list)
    """for `llama`: only where scores do not suffice"""
    pre: str | None = None
    """how byte-level BPE splits a text first, by llama.cpp's name for it"""
    bos: int | None = None
    eos: int | None = None
    eot: int | None = None
    """ends a turn, if that is not `eos`"""
    ends: list[int] = field(default_factory=list)
    """all that end an answer, as generation_config.json or config.json lists them"""
    unk: int | None = None
    pad: int | None = None
    sep: int | None = None
    cls: int | None = None
    mask: int | None = None
    add_bos: bool = True
    add_eos: bool = False
    add_space: bool = False
    prepend_scheme: str | None = None
    """one of tokenizers.gguf.SCHEMES, for a vocabulary from a tokenizer.json"""
    split_spaces: bool = False
    """no merge crosses the start of a space"""
    unk_surface: str | None = None
    """what <unk> is decoded to, where that is not SentencePiece's own"""
    lstrip: set[int] = field(default_factory=set)
    """tokens that absorb the white space before them"""
    rstrip: set[int] = field(default_factory=set)
    chat_template: str | None = None
    left_out: dict[int, str] = field(default_factory=dict)
    """tokens that the model has no row for"""

    def put(self, number: object, text: object, kind: int, score: float = 0.0) -> None:
        """Sets a piece, replacing any that has the id, as added tokens do.

        An added token beyond the model's rows is left out. A piece of text there is an error: the
        tokenizer belongs to another model.
        """
        added = isinstance(text, str) and kind in (CONTROL, USER_DEFINED, UNUSED)
        if added and type(number) is int and number >= self.size:
            self.left_out[number] = str(text)
            return
        if type(number) is not int or not 0 <= number < self.size or not isinstance(text, str):
            raise TokenizerError(
                f"{self.path}: piece {str(text)[:50]!r} has id {str(number)[:50]}; "
                f"the model's ids are 0 to {self.size - 1}"
            )
        if len(text) > MAX_PIECE:
            raise TokenizerError(f"{self.path}: a piece has more than {MAX_PIECE} characters")
        self.pieces[number] = (text, kind, score)

    def add(self, token: Added) -> None:
        """UnsupportedError for a token that readers of GGUF would match differently."""
        number = token.number
        old = self.pieces.get(number) if type(number) is int else None
        if old is None or old[0] != token.text or old[1] == NORMAL:
            self.put(number, token.text, token.type)
        if type(number) is not int or number not in self.pieces:
            return  # left out
        odd = ["single_word"] if token.single_word else []
        if self.model == "llama" and self.prepend_scheme is None and token.type == USER_DEFINED:
            odd += [name for name in ("lstrip", "rstrip") if getattr(token, name)]
        if self.prepend_scheme == "every" and token.normalized:
            odd.append("normalized")  # with a space in front, as a text has it
        if odd:
            raise UnsupportedError(f"{self.path}: the added token {token.text!r:.52} is {odd[0]}")
        for name, numbers in (("lstrip", self.lstrip), ("rstrip", self.rstrip)):
            numbers.discard(number)
            if getattr(token, name):
                numbers.add(number)

    def make_special(self, text: str) -> int | None:
        """The id of a piece that other files name as special, if there is one."""
        number = self.find(text)
        if number is not None:
            _, kind, score = self.pieces[number]
            if kind in (NORMAL, USER_DEFINED):
                self.pieces[number] = (text, Added(number, text, special=True).type, score)
        return number

    def warn_of_left_out(self) -> None:
        """CheckpointWarning that names some of the tokens left out."""
        if not self.left_out:
            return
        named = [f"{text!r:.50} ({i})" for i, text in sorted(self.left_out.items())]
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        warn(
            f"{self.path.parent}: the model's ids are 0 to {self.size - 1}; its tokenizer's tokens "
            f"beyond are left out: {', '.join(named[:10])}{more}",
            CheckpointWarning,
        )

    def find(self, text: str) -> int | None:
        """The id of a piece."""
        return next((i for i, piece in self.pieces.items() if piece[0] == text), None)

    def mark_control_tokens(self) -> None:
        """Gives the pieces that should be control tokens that type (see control_tokens)."""
        texts, given, scores = zip(*self.rows(), strict=True)
        named = {i for i in (self.bos, self.eos, self.eot) if i is not None}
        types, _ = classify(
            texts, given, template=self.chat_template, named=named, listed=self.ends
        )
        for i in self.pieces:
            self.pieces[i] = (texts[i], types[i], scores[i])

    def rows(self) -> list[tuple[str, int, float]]:
        """(size): pieces by id; ids without one get a name, and are never produced."""
        return [self.pieces.get(i, (f"[PAD{i}]", UNUSED, -1e9)) for i in range(self.size)]
