"""The C side of a Llama: model, worker pool, sessions; opened and closed together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pyllama2c._ffi import DTYPES, KV_DTYPES, check, ffi, isa_name, lib, new_error, resolve_isa
from pyllama2c.engine.config import read_config
from pyllama2c.engine.device import Card, open_card
from pyllama2c.engine.draft import WORTH_DRAFTING, Draft
from pyllama2c.engine.memory import limits
from pyllama2c.engine.needs import RUNQ, Needs
from pyllama2c.engine.options import Options
from pyllama2c.engine.plan import (
    Plan,
    check_fits,
    context_of,
    dtype_key,
    has_room,
    plan_buffer,
    plan_file,
)
from pyllama2c.engine.session import (
    MAX_CARD_ROWS,
    MAX_ROWS,
    MAX_STEPS,
    PREFILL_ROWS,
    Session,
    SessionOptions,
    Sessions,
)
from pyllama2c.engine.workers import batch_threads, default_threads, new_pool
from pyllama2c.errors import CheckpointError, ClosedError, ContextLengthError, OutOfMemoryError
from pyllama2c.handle import Handle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BUFFERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""model handle -> the buffer it was opened from"""


_Open = Callable[[Card | None, int, Any, Any, Any], int]
"""opens the model: called with the card, l2c_dtype, l2c_pool *, l2c_model ** and l2c_error *"""


def _open(plan: Plan, path: str, options: Options, call: _Open) -> Engine:
    isa, kv_dtype = resolve_isa(options.isa), options.kv_dtype
    dtype, context = dtype_key(plan, options, isa, path), context_of(plan, options)
    card = None if options.card is None else open_card(options.card)
    against = limits() if card is None else card.limits()
    check_fits(plan, against, dtype, kv_dtype, context, path)
    needs = plan.needs[dtype, kv_dtype]
    threads = default_threads(needs.sweep) if options.threads is None else options.threads
    pool, out, err = new_pool(threads), ffi.new("l2c_model **"), new_error()
    number = lib.L2C_DTYPE_FILE if dtype == RUNQ else DTYPES[dtype]
    with nullcontext() if card is None else card.upload_shown(needs.weights):
        check(call(card, number, pool, out, err), err, path)
    handle = ffi.gc(out[0], lib.l2c_model_free)
    at_once = (PREFILL_ROWS, 1) if card is None else (MAX_CARD_ROWS, MAX_STEPS)
    session_options = SessionOptions(isa, KV_DTYPES[kv_dtype], context, *at_once)
    draft = None
    if _should_draft(options.speculative, needs, _worth_drafting(plan, handle, kv_dtype, card)):
        small = card is None and needs.sweep < WORTH_DRAFTING
        if small or has_room(plan, against, dtype, kv_dtype, context, "int8"):
            quantize = partial(lib.l2c_model_quantize, handle, lib.L2C_DTYPE_INT8, pool)
            make = quantize if card is None else partial(call, card, lib.L2C_DTYPE_INT8, pool)
            draft = Draft(make, pool, session_options)
        elif options.speculative != "auto":
            raise OutOfMemoryError(
                "no room for an int8 copy beside the model, to draft; speculative=False needs none"
            )
    return Engine(handle, pool, threads, session_options, options.threads is None, draft, card)


def _should_draft(speculative: bool | str, needs: Needs, worth: bool) -> bool:
    if speculative == "auto":
        return worth and needs.dtype == "float32"
    if speculative and needs.dtype != "float32":
        raise ValueError(f"speculative decoding is for float32 weights, not {needs.dtype}")
    return bool(speculative)


def _worth_drafting(plan: Plan, model: Any, kv_dtype: str, card: Card | None) -> bool:
    if card is None:
        return int(lib.l2c_model_sweep_bytes(model)) >= WORTH_DRAFTING
    # Launches take as long as reading some two gigabytes (computed); with them, the copy has to be
    # half as fast again.
    copy, launches = plan.needs.get(("int8", kv_dtype)), 2 << 30
    if copy is None:
        return False
    read = int(lib.l2c_model_device_bytes(model))
    return read + launches >= 1.5 * (copy.weights + launches)


def aligned(checkpoint: Any) -> Any:
    """`checkpoint`, or a copy where it is not 4-byte aligned. CheckpointError for an empty one."""
    with memoryview(checkpoint) as view:
        if view.nbytes == 0:
            raise CheckpointError("<memory>: checkpoint is empty")
        buffer = ffi.from_buffer(checkpoint)
        if int(ffi.cast("uintptr_t", buffer)) % 4 == 0:
            return checkpoint
        return view.tobytes()


def open_file(path: str, options: Options) -> Engine:
    """CheckpointError and the like for a file that is no model, OutOfMemoryError where it does not
    fit, DeviceError and UnsupportedError where a card cannot be used."""
    name = os.fsencode(path)

    def call(card: Card | None, number: int, pool: Any, out: Any, err: Any) -> int:
        if card is None:
            return int(lib.l2c_model_open(name, number, pool, out, err))
        return int(lib.l2c_model_open_on(card.handle, name, number, pool, out, err))

    return _open(plan_file(path, options), path, options, call)


def open_buffer(checkpoint: Any, options: Options) -> Engine:
    """As open_file, from memory that `aligned` returned; it is kept as long as the model."""
    buffer = ffi.from_buffer(checkpoint)

    def call(card: Card | None, number: int, pool: Any, out: Any, err: Any) -> int:
        source = (buffer, len(buffer))
        if card is None:
            return int(lib.l2c_model_open_memory(*source, number, pool, out, err))
        return int(lib.l2c_model_open_memory_on(card.handle, *source, number, pool, out, err))

    engine = _open(plan_buffer(buffer, options), "<memory>", options, call)
    # Tied to the handle, not to the Llama: a session holds the handle and may outlive it.
    _BUFFERS[engine.model] = buffer
    return engine


class Engine(Handle):
    """An open model with its threads and sessions."""

    def __init__(
        self,
        handle: Any,
        pool: Any,
        threads: int,
        session_options: SessionOptions,
        threads_by_size: bool,
        draft: Draft | None,
        card: Card | None,
    ):
        self._model, self.pool, self.threads = handle, pool, threads
        self._threads_by_size = threads_by_size
        self._fingerprint: int | None = None
        self.session_options, self.isa = session_options, isa_name(session_options.isa)
        config = read_config(lib.l2c_model_config(handle))
        self.config = replace(config, seq_len=session_options.context)
        self.n_parameters = int(lib.l2c_model_parameters(handle))
        self.sweep_bytes = int(lib.l2c_model_sweep_bytes(handle))
        self.sessions = Sessions(handle, pool, session_options)
        self.draft = draft
        self.card = card
        self.device = "cpu" if card is None else card.info.device
        self.max_batch = MAX_ROWS if card is None else MAX_CARD_ROWS
        """stories of a batch, at most"""

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
        """Of shape and weights; the first use reads them all (0.1 s per gigabyte)."""
        model = self.model
        if self._fingerprint is None:
            self._fingerprint = int(lib.l2c_model_fingerprint(model))
        return self._fingerprint

    def check_length(self, tokens: Sequence[int]) -> None:
        if len(tokens) > self.config.seq_len:
            raise ContextLengthError(
                f"{len(tokens)} tokens; the model's context is {self.config.seq_len}"
            )

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """float32 (len(tokens), vocab_size)."""
        import numpy as np

        self.check_length(tokens)
        vocab_size = self.config.vocab_size
        out = np.empty((len(tokens), vocab_size), np.float32)
        with self.sessions.lent() as session:
            for start in range(0, len(tokens), session.max_rows):
                chunk = tokens[start : start + session.max_rows]
                session.feed(chunk, start, want_logits=len(chunk))
                out[start : start + len(chunk)] = session.logits(len(chunk), vocab_size)
        return out

    @contextmanager
    def session_with(self, tokens: Sequence[int]) -> Iterator[Session]:
        """A session that has the keys and values of `tokens` in its cache."""
        self.check_length(tokens)
        with self.sessions.lent(tokens) as session:
            start = session.cached(tokens)
            for at in range(start, len(tokens), session.max_rows):
                session.feed(tokens[at : at + session.max_rows], at, want_logits=0)
            yield session

    def batch_pool(self) -> Any:
        """The pool for a batch, whose many rows keep more threads busy than one does: a new one,
        unless the caller chose `threads` or this engine's own has as many."""
        if not self._threads_by_size or self.threads >= (count := batch_threads()):
            return self.pool
        return new_pool(count)

    def close(self) -> None:
        self.sessions.close()
        self._model = self.pool = self.draft = self.card = None
