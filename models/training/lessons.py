"""Stories as tokens, with or without a teacher's marks: its probabilities of the next token.

Marks are what makes learning from a teacher more than reading what it wrote: after every token
they say what else could have come next, and how likely (Hinton, Vinyals & Dean 2015,
"Distilling the Knowledge in a Neural Network"). Only the likeliest K are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm
from numpy.typing import NDArray

from pyllama2c.files.whole import whole_file

BOS = 1  # before every story, and so what comes after one
K = 12


@dataclass
class Lessons:
    """Stories one after the other, each from its BOS on."""

    tokens: NDArray[np.uint16]
    starts: NDArray[np.int64]
    """where each story begins, and last where the last one ends"""
    ids: NDArray[np.uint16] | None = None
    """(tokens, K): what the teacher finds likeliest after each token; 0 (unknown) for no mark"""
    probabilities: NDArray[np.float16] | None = None
    """(tokens, K); 0 for no mark"""

    def story(self, i: int) -> list[int]:
        """Its tokens, without BOS."""
        return self.tokens[self.starts[i] + 1 : self.starts[i + 1]].tolist()

    def chosen(self, keep: Sequence[int]) -> Lessons:
        """Only these stories."""
        at = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in keep])
        lengths = np.diff(self.starts)[keep]
        ids = None if self.ids is None else self.ids[at]
        probabilities = None if self.probabilities is None else self.probabilities[at]
        return Lessons(self.tokens[at], _starts(lengths), ids, probabilities)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])


def from_stories(stories: list[str], tokenizer: spm.SentencePieceProcessor) -> Lessons:
    """Without marks."""
    tokens = [[BOS, *ids] for ids in tokenizer.encode(stories)]
    lengths = np.array([len(story) for story in tokens])
    return Lessons(np.concatenate(tokens).astype(np.uint16), _starts(lengths))


def likeliest(logits: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
    """logits (tokens, vocab_size) -> ids and probabilities (tokens, K)."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    ids = np.argpartition(weights, -K, axis=1)[:, -K:]
    shares = np.take_along_axis(weights, ids, axis=1) / weights.sum(axis=1, keepdims=True)
    return ids.astype(np.uint16), shares.astype(np.float16)


Marked = tuple[list[int], NDArray[np.uint16], NDArray[np.float16]]
"""A story's tokens from BOS on, and after each of them the likeliest ids and probabilities."""


def from_marked(stories: list[Marked]) -> Lessons:
    return Lessons(
        np.concatenate([np.array(tokens, np.uint16) for tokens, _, _ in stories]),
        _starts(np.array([len(tokens) for tokens, _, _ in stories])),
        np.concatenate([ids for _, ids, _ in stories]),
        np.concatenate([shares for _, _, shares in stories]),
    )


def save(path: Path, lessons: Lessons) -> None:
    """Lessons with marks. The file appears under its name when it is whole."""
    assert lessons.ids is not None and lessons.probabilities is not None
    with whole_file(path) as file:
        np.savez(
            file,
            tokens=lessons.tokens,
            lengths=np.diff(lessons.starts),
            ids=lessons.ids,
            probabilities=lessons.probabilities,
        )


def _read(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


def count(folder: Path) -> int:
    """Stories that were saved in it."""
    total = 0
    for path in folder.glob("*.npz"):
        with np.load(path) as file:
            total += len(file["lengths"])
    return total


def load(folders: list[Path]) -> Lessons:
    """All that was saved in these folders and in those in them."""
    if not folders:
        raise FileNotFoundError("there are no folders of lessons")
    paths: list[Path] = []
    for folder in folders:
        found = sorted(folder.rglob("*.npz"))
        if not found:
            raise FileNotFoundError(f"there are no lessons (*.npz) in {folder}")
        paths += found
    files = [_read(path) for path in paths]
    return Lessons(
        np.concatenate([file["tokens"] for file in files]),
        _starts(np.concatenate([file["lengths"] for file in files])),
        np.concatenate([file["ids"] for file in files]),
        np.concatenate([file["probabilities"] for file in files]),
    )
