"""What a Llama holds on the C side: model, worker pool, sessions; opened and closed together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pyllama2c._ffi import check, dtype_number, ffi, isa_name, lib, new_error, resolve_isa
from pyllama2c.config import read_config
from pyllama2c.draft import WORTH_DRAFTING, Draft
from pyllama2c.errors import ClosedError, ContextLengthError
from pyllama2c.session import PREFILL_ROWS, Session, Sessions
from pyllama2c.workers import batch_threads, default_threads, new_pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BUFFERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""model handle -> the memory it was opened from"""


def open_file(path: str, dtype: str) -> Any:
    """An l2c_model; CheckpointError and the like for what is not one."""
    out, err = ffi.new("l2c_model **"), new_error()
    check(lib.l2c_model_open(os.fsencode(path), dtype_number(dtype), out, err), err, path)
    return ffi.gc(out[0], lib.l2c_model_free)


def open_buffer(checkpoint: Any, dtype: str) -> Any:
    """The same from memory, which lives as long as the model."""
    buffer = ffi.from_buffer(checkpoint)
    number, out, err = dtype_number(dtype), ffi.new("l2c_model **"), new_error()
    check(lib.l2c_model_open_memory(buffer, len(buffer), number, out, err), err, "<memory>")
    handle = ffi.gc(out[0], lib.l2c_model_free)
    # Tied to the handle, not to the Llama: a session holds the handle and may outlive it.
    _BUFFERS[handle] = buffer
    return handle


class Engine:
    """An open model with its threads. `threads` None: as many as its size is worth."""

    def __init__(self, handle: Any, speculative: bool | str, threads: int | None, isa: str | None):
        self._model: Any = handle
        self.config = read_config(handle)
        self.sweep_bytes = int(lib.l2c_model_sweep_bytes(handle))
        self.isa_number = resolve_isa(isa)
        self.isa = isa_name(self.isa_number)
        self.threads = default_threads(self.sweep_bytes) if threads is None else threads
        self._default_threads = threads is None
        self.pool: Any = new_pool(self.threads)
        self.sessions = Sessions(handle, self.pool, self.isa_number)
        self.draft: Draft | None = None
        if self._drafts(speculative):
            self.draft = Draft(handle, self.pool, self.isa_number)

    def _drafts(self, speculative: bool | str) -> bool:
        if speculative not in (True, False, "auto"):
            raise ValueError(f"speculative is {speculative!r}; it must be True, False or 'auto'")
        if speculative == "auto":
            return self.config.dtype == "float32" and self.sweep_bytes >= WORTH_DRAFTING
        if speculative and self.config.dtype != "float32":
            raise ValueError(
                f"speculative decoding is for float32 weights, not {self.config.dtype}"
            )
        return bool(speculative)

    @property
    def model(self) -> Any:
        """The l2c_model handle."""
        if self._model is None:
            raise ClosedError("the model is closed")
        return self._model

    @property
    def fingerprint(self) -> int:
        return int(lib.l2c_model_fingerprint(self.model))

    def check_fits(self, tokens: Sequence[int]) -> None:
        if len(tokens) > self.config.seq_len:
            raise ContextLengthError(
                f"{len(tokens)} tokens; the model's context is {self.config.seq_len}"
            )

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """float32 (len(tokens), vocab_size)."""
        import numpy as np

        self.check_fits(tokens)
        vocab_size = self.config.vocab_size
        out = np.empty((len(tokens), vocab_size), np.float32)
        with self.sessions.lent() as session:
            for start in range(0, len(tokens), PREFILL_ROWS):
                chunk = tokens[start : start + PREFILL_ROWS]
                session.feed(chunk, start, want_logits=len(chunk))
                out[start : start + len(chunk)] = session.logits(len(chunk), vocab_size)
        return out

    @contextmanager
    def computed(self, tokens: Sequence[int]) -> Iterator[Session]:
        """A session that has the keys and values of `tokens`."""
        self.check_fits(tokens)
        with self.sessions.lent(tokens) as session:
            start = session.cached(tokens)
            for at in range(start, len(tokens), PREFILL_ROWS):
                session.feed(tokens[at : min(at + PREFILL_ROWS, len(tokens))], at, want_logits=0)
            yield session

    def batch_pool(self) -> Any:
        """A model too small for several threads is not, many rows at a time."""
        if not self._default_threads or self.threads >= (count := batch_threads()):
            return self.pool
        return new_pool(count)

    def close(self) -> None:
        self.sessions.close()
        self._model = self.pool = self.draft = None
