"""A C session of several sequences, and models to open it on."""

from __future__ import annotations

from typing import Any

import numpy as np
from tiny import Shape, TinyLlama

from pyllama2c import Llama
from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.engine.session import new_session

Row = tuple[int, int, int]


class Sequences:
    """A C session of several sequences, fed row by row as a test likes."""

    def __init__(self, llama: Llama, n_sequences: int, context: int = 0):
        engine = llama._engine
        options = engine.session_options
        self.handle = new_session(engine.model, engine.pool, options, n_sequences, context)
        self.vocab_size = llama.config.vocab_size

    def feed(self, rows: list[Row]) -> np.ndarray:
        """(sequence, position, token) of each row -> float32 logits (len(rows), vocab_size)."""
        data, err = ffi.new("l2c_row[]", [(*row, 1) for row in rows]), new_error()
        check(lib.l2c_session_forward(self.handle, data, len(rows), err), err)
        pointer = lib.l2c_session_logits(self.handle, 0)
        buffer = ffi.buffer(pointer, 4 * len(rows) * self.vocab_size)
        return np.frombuffer(buffer, np.float32).reshape(len(rows), -1).copy()


def model(shape: Shape, **options: Any) -> Llama:
    truth = TinyLlama.random(shape)
    return Llama.from_buffer(truth.v2() if shape.group_size else truth.v0(), **options)
