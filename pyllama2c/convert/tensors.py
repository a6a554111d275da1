"""Weights still in their files: read a few rows at a time, then merged and reordered."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pyllama2c.errors import CheckpointError

CHUNK = 1 << 22
"""weights at a time: memory does not grow with the model"""

WEIGHT_TYPES = ("float32", "float16", "bfloat16")


class Tensor(ABC):
    """A weight of a checkpoint; only `rows` reads it."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str):
        self.name = name
        """for messages: the file, and what the file calls it"""
        self.shape = shape
        self.dtype = dtype

    @abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """(stop - start, ...): a copy of these rows."""


class Merged(Tensor):
    """One matrix from its parts in several shards, concatenated along `axis`."""

    def __init__(self, parts: Sequence[Tensor], axis: int):
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        super().__init__(parts[0].name, tuple(shape), parts[0].dtype)
        self._parts, self._axis = parts, axis

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        if self._axis == 1:
            return np.concatenate([part.rows(start, stop) for part in self._parts], axis=1)
        pieces, first = [], 0
        for part in self._parts:
            last = first + part.shape[0]
            if start < last and stop > first:
                pieces.append(part.rows(max(start, first) - first, min(stop, last) - first))
            first = last
        return np.concatenate(pieces)


class Interleaved(Tensor):
    """wq or wk with its rows in the order of adjacent RoPE pairs, from Hugging Face's halves.

    Hugging Face rotates elements j and j + head_size / 2 of a head together; Meta, llama.cpp and
    this engine 2j and 2j + 1. The angles are the same, so the rows of each head are permuted.
    """

    def __init__(self, halves: Tensor, head_size: int):
        super().__init__(halves.name, halves.shape, halves.dtype)
        self._halves, self._head_size = halves, head_size

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        size = self._head_size
        first, last = start // size * size, -(-stop // size) * size  # whole heads
        row = np.arange(start, stop)
        within = row % size
        source = row - within + within // 2 + within % 2 * (size // 2)
        out: NDArray[np.float32] = self._halves.rows(first, last)[source - first]
        return out


class Computed(Tensor):
    """Values that follow from the configuration and are in no file."""

    def __init__(self, name: str, values: NDArray[np.float32]):
        super().__init__(name, values.shape, "float32")
        self._values = values

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._values[start:stop].copy()


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two weights hold the same numbers."""
    if a.shape != b.shape or not {a.dtype, b.dtype} <= {*WEIGHT_TYPES}:
        return False
    return all(np.array_equal(a.rows(i, j), b.rows(i, j)) for i, j in spans(a.shape))


def spans(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(start, stop) of a few rows at a time."""
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def check(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """CheckpointError for a weight that is not of a known type and this shape."""
    if tensor.dtype not in WEIGHT_TYPES:
        raise CheckpointError(
            f"{tensor.name} has type {tensor.dtype}; known: {', '.join(WEIGHT_TYPES)}"
        )
    if tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.name} has shape {tensor.shape}; the configuration implies {shape}"
        )
