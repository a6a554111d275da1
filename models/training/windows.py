"""Training windows: stories in a new order every epoch, cut into equal lengths."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch
from lessons import Lessons
from numpy.typing import NDArray
from run import Stage


class Batch(NamedTuple):
    tokens: torch.Tensor
    """int64 (batch_size, window + 1): what is read, and from the second on what comes next"""
    ids: torch.Tensor | None
    """int64 (batch_size, window, k): the tokens that a teacher finds likeliest to come next"""
    probabilities: torch.Tensor | None
    """float32, of the same shape: how likely"""


def _story_starts(ends: NDArray[np.int64], length: int, count: int) -> NDArray[np.int64]:
    """Where `count` windows begin, each with a story: the one that the window before cut short.

    `ends`: of the stories in a stream. A story longer than a window is never seen to its end.
    """
    cuts, at = [], 0
    for _ in range(count):
        cuts.append(at)
        last = int(np.searchsorted(ends, at + length, side="right")) - 1
        begin = int(ends[last]) if last >= 0 else 0
        at = begin if begin > at else int(ends[last + 1])
        if at == ends[-1]:
            at = 0
    return np.array(cuts)


class Windows:
    """The windows of one stage.

    Every epoch shuffles the stories and cuts the new stream, so that a window seldom repeats.
    Which windows step i sees depends on the seed and i alone, so a resumed run sees the same.
    """

    def __init__(self, stage: Stage, lessons: Lessons, seed: int):
        self.lessons, self.seed = lessons, seed
        self.length, self.batch = stage.window + 1, stage.batch_size
        self.from_starts = stage.from_starts
        self.steps_per_epoch = max(1, len(lessons.tokens) // (self.length * self.batch))
        self.epoch, self.windows = -1, np.empty(0, np.int64)

    def _cut(self, epoch: int) -> NDArray[np.int64]:
        """(windows, window + 1): where in the lessons each token stands."""
        begins, lengths = self.lessons.starts[:-1], np.diff(self.lessons.starts)
        order = list(range(len(begins)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        stream = np.concatenate([np.arange(begins[j], begins[j] + lengths[j]) for j in order])
        count = self.steps_per_epoch * self.batch
        if self.from_starts:
            cuts = _story_starts(np.cumsum(lengths[order]), self.length, count)
        else:
            cuts = np.arange(count) * self.length
        return stream[(cuts[:, None] + np.arange(self.length)) % len(stream)]

    def __getitem__(self, step: int) -> Batch:
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch, self.windows = epoch, self._cut(epoch)
        at = self.windows[i * self.batch : (i + 1) * self.batch]
        tokens = torch.from_numpy(self.lessons.tokens[at].astype(np.int64))
        if self.lessons.ids is None or self.lessons.probabilities is None:
            return Batch(tokens, None, None)
        after = at[:, :-1]
        return Batch(
            tokens,
            torch.from_numpy(self.lessons.ids[after].astype(np.int64)),
            torch.from_numpy(self.lessons.probabilities[after].astype(np.float32)),
        )
