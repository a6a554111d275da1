"""What a Llama holds on the C side: model, worker pool, sessions; opened and closed together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from pyllama2c._ffi import (
    check,
    dtype_number,
    ffi,
    isa_name,
    kv_number,
    lib,
    new_error,
    resolve_isa,
)
from pyllama2c.config import read_config
from pyllama2c.draft import WORTH_DRAFTING, Draft
from pyllama2c.errors import CheckpointError, ClosedError, ContextLengthError, OutOfMemoryError
from pyllama2c.handle import Handle
from pyllama2c.plan import Plan, check_fits, context_of, has_room, plan_buffer, plan_file
from pyllama2c.session import PREFILL_ROWS, Computing, Session, Sessions
from pyllama2c.workers import batch_threads, default_threads, new_pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BUFFERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""model handle -> the memory it was opened from"""


class Opened(NamedTuple):
    """An l2c_model, and what its stories get."""

    handle: Any
    n_ctx: int
    kv: int
    room_for_draft: bool
    """an int8 copy fits beside it"""


def _opened(handle: Any, plan: Plan, dtype: str, kv_dtype: str, n_ctx: int) -> Opened:
    room = plan.needs[dtype, kv_dtype].sweep < WORTH_DRAFTING or has_room(
        plan, dtype, kv_dtype, n_ctx, "int8"
    )
    return Opened(handle, n_ctx, kv_number(kv_dtype), room)


def open_file(
    path: str, dtype: str, context: int | None, kv_dtype: str, threads: int | None
) -> Opened:
    """CheckpointError and the like for no model, OutOfMemoryError for one that does not fit."""
    plan = plan_file(path, threads)
    n_ctx = context_of(plan, context)
    check_fits(plan, dtype, kv_dtype, n_ctx, path)
    out, err = ffi.new("l2c_model **"), new_error()
    check(lib.l2c_model_open(os.fsencode(path), dtype_number(dtype), out, err), err, path)
    handle = ffi.gc(out[0], lib.l2c_model_free)
    return _opened(handle, plan, dtype, kv_dtype, n_ctx)


def aligned(checkpoint: Any) -> Any:
    """A buffer that begins where floats may, with something in it: the same one, or a copy."""
    with memoryview(checkpoint) as view:
        if view.nbytes == 0:
            raise CheckpointError("<memory>: checkpoint is empty")
        buffer = ffi.from_buffer(checkpoint)
        if int(ffi.cast("uintptr_t", buffer)) % 4 == 0:
            return checkpoint
        return view.tobytes()


def open_buffer(
    checkpoint: Any, dtype: str, context: int | None, kv_dtype: str, threads: int | None
) -> Opened:
    """The same from memory, which lives as long as the model."""
    buffer = ffi.from_buffer(checkpoint)
    plan = plan_buffer(buffer, threads)
    n_ctx = context_of(plan, context)
    check_fits(plan, dtype, kv_dtype, n_ctx, "<memory>")
    number, out, err = dtype_number(dtype), ffi.new("l2c_model **"), new_error()
    check(lib.l2c_model_open_memory(buffer, len(buffer), number, out, err), err, "<memory>")
    handle = ffi.gc(out[0], lib.l2c_model_free)
    # Tied to the handle, not to the Llama: a session holds the handle and may outlive it.
    _BUFFERS[handle] = buffer
    return _opened(handle, plan, dtype, kv_dtype, n_ctx)


class Engine(Handle):
    """An open model with its threads. `threads` None: as many as its size is worth."""

    def __init__(
        self, opened: Opened, speculative: bool | str, threads: int | None, isa: str | None
    ):
        handle = self._model = opened.handle
        self.config = read_config(lib.l2c_model_config(handle))._replace(seq_len=opened.n_ctx)
        self.sweep_bytes = int(lib.l2c_model_sweep_bytes(handle))
        self.computing = Computing(resolve_isa(isa), opened.kv, opened.n_ctx)
        self.isa = isa_name(self.computing.isa)
        self.threads = default_threads(self.sweep_bytes) if threads is None else threads
        self._default_threads = threads is None
        self.pool: Any = new_pool(self.threads)
        self.sessions = Sessions(handle, self.pool, self.computing)
        self.draft: Draft | None = None
        if self._drafts(speculative, opened.room_for_draft):
            self.draft = Draft(handle, self.pool, self.computing)

    def _drafts(self, speculative: bool | str, room: bool) -> bool:
        if speculative == "auto":
            worth = self.config.dtype == "float32" and self.sweep_bytes >= WORTH_DRAFTING
            return worth and room
        if speculative and self.config.dtype != "float32":
            raise ValueError(
                f"speculative decoding is for float32 weights, not {self.config.dtype}"
            )
        if speculative and not room:
            raise OutOfMemoryError(
                "no room for an int8 copy beside the model, to draft; speculative=False needs none"
            )
        return bool(speculative)

    def check_open(self) -> None:
        if self._model is None:
            raise ClosedError("the model is closed")

    @property
    def model(self) -> Any:
        """The l2c_model handle."""
        self.check_open()
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
