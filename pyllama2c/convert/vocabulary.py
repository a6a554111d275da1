"""A tokenizer as GGUF holds it: every id of the model has a piece, a type and maybe a score."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

from pyllama2c.errors import CheckpointWarning, TokenizerError
from pyllama2c.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER_DEFINED", "Vocabulary"]


MAX_PIECE = 512
"""characters: what joins pieces takes their length squared"""


@dataclass
class Vocabulary:
    path: Path
    """where it is from, for messages"""
    model: str
    """`llama`: SentencePiece's BPE, joining by score; `gpt2`: byte-level BPE, joining by merges"""
    size: int
    """of the model's embedding, which may have more rows than there are pieces"""
    pieces: dict[int, tuple[str, int, float]] = field(default_factory=dict)
    """id: text, type, score"""
    merges: list[str] = field(default_factory=list)
    """`llama`: where scores cannot say the same"""
    pre: str | None = None
    """how byte-level BPE splits a text first, by llama.cpp's name for it"""
    bos: int | None = None
    eos: int | None = None
    eot: int | None = None
    """ends a chat's turn, where that is not `eos`"""
    unk: int | None = None
    pad: int | None = None
    add_bos: bool = True
    add_eos: bool = False
    add_space: bool = False
    prepend_scheme: str | None = None
    """one of gguf_tokenizer.SCHEMES, for a vocabulary of a tokenizer.json"""
    split_spaces: bool = False
    """nothing is joined across the front of a space"""
    unk_surface: str | None = None
    """what <unk> is decoded to, where that is not SentencePiece's own"""
    chat_template: str | None = None

    def put(self, number: object, text: object, kind: int, score: float = 0.0) -> None:
        """A piece; one that is there already is replaced, as added tokens do it."""
        if type(number) is not int or not 0 <= number < self.size or not isinstance(text, str):
            raise TokenizerError(
                f"{self.path}: piece {str(text)[:50]!r} has id {str(number)[:50]}; "
                f"the model knows 0 to {self.size - 1}"
            )
        if len(text) > MAX_PIECE:
            raise TokenizerError(f"{self.path}: a piece has more than {MAX_PIECE} characters")
        self.pieces[number] = (text, kind, score)

    def add(self, number: object, text: object, special: bool, score: float = 0.0) -> None:
        """A token that was added to a tokenizer; without a row in the embedding, it is left out."""
        if type(number) is int and number >= self.size and isinstance(text, str):
            warnings.warn(
                f"{self.path}: the added token {text[:50]!r} has id {number}, beyond the model's "
                f"{self.size}: it is left out",
                CheckpointWarning,
                stacklevel=2,
            )
            return
        self.put(number, text, CONTROL if special else USER_DEFINED, score)

    def find(self, text: str) -> int | None:
        """The id of a piece."""
        return next((i for i, piece in self.pieces.items() if piece[0] == text), None)

    def rows(self) -> list[tuple[str, int, float]]:
        """(size): pieces by id; ids that no piece has are named and never chosen."""
        return [self.pieces.get(i, (f"[PAD{i}]", UNUSED, -1e9)) for i in range(self.size)]
