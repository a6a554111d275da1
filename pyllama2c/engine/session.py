"""A C session held for one computation: rows in, logits out; and the pool that lends them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import ref

from pyllama2c._ffi import KV_DTYPES, check, ffi, lib, new_error
from pyllama2c.errors import ClosedError, DeviceError
from pyllama2c.handle import Handle

MAX_ROWS: int = lib.L2C_MAX_ROWS
PREFILL_ROWS = 64
"""tokens of a prompt per call: enough to share the reading of weights, few enough to stop soon"""

MAX_CARD_ROWS: int = lib.L2C_MAX_DEVICE_ROWS
"""the same on a card, which stops between layers, and the most stories of a batch there"""

MAX_DRAFT = 16
"""most tokens that a draft proposes at a time"""

MAX_STEPS: int = lib.L2C_MAX_STEPS
"""most tokens that a card decodes at a time"""

_IDLE_SESSIONS = 2
"""kept for the next story, so that it finds its memory warm and its prefix cached"""


class SessionOptions(NamedTuple):
    """What sessions of a model have in common."""

    isa: int
    """l2c_isa"""
    kv: int
    """l2c_kv: the type of keys and values"""
    context: int
    """positions of a story"""
    rows: int
    """tokens of a prompt per call, at most"""
    steps: int
    """tokens of a story per call, at most"""

    @property
    def kv_dtype(self) -> str:
        """`kv` as Llama's argument"""
        return next(name for name, number in KV_DTYPES.items() if number == self.kv)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def new_session(
    model: Any, pool: Any, options: SessionOptions, n_sequences: int, context: int
) -> Any:
    """An l2c_session; model and pool must outlive it."""
    out, err, o = ffi.new("l2c_session **"), new_error(), options
    check(lib.l2c_session_create(model, pool, n_sequences, context, o.kv, o.isa, out, err), err)
    return ffi.gc(out[0], lib.l2c_session_free)


def rows_of(session: Any, options: SessionOptions) -> int:
    """Tokens of a prompt per call: a card short of memory takes fewer."""
    return min(options.rows, int(lib.l2c_session_max_rows(session)))


class Session(Handle):
    """One sequence of a model. Not to be shared between threads while it computes."""

    def __init__(self, model: Any, pool: Any, options: SessionOptions):
        self.handle: Any = new_session(model, pool, options, 1, options.context)
        self.kv = options.kv
        self._parents = (model, pool)  # they must outlive the handle
        self._error = new_error()
        self.max_rows = rows_of(self.handle, options)
        self._rows = ffi.new("l2c_row[]", self.max_rows)
        self._token = ffi.new("int32_t *")
        self._count = ffi.new("size_t *")
        self._states = ffi.new("uint64_t[]", max(MAX_DRAFT + 1, MAX_STEPS))
        self.max_steps = options.steps
        self.fed: list[int] = []
        """tokens whose keys and values are cached, position by position"""

    def cached(self, tokens: Sequence[int]) -> int:
        """How many first tokens have their keys and values in the cache."""
        return common_prefix(self.fed, tokens)

    def feed(self, tokens: Sequence[int], position: int, want_logits: int = 1) -> None:
        """One sweep: at most max_rows tokens from `position` on, logits of the last few.

        The classifier is the largest matrix of a small model: rows that need no logits skip it.
        """
        rows = self._rows
        first_wanted = len(tokens) - want_logits
        for i, token in enumerate(tokens):
            row = rows[i]
            row.position = position + i
            row.token = token
            row.want_logits = i >= first_wanted
        err = self._error
        del self.fed[position:]
        check(lib.l2c_session_forward(self.handle, rows, len(tokens), err), err)
        self.fed += tokens

    def attention(self, token: int, position: int, shape: tuple[int, int, int]) -> Any:
        """Feeds one token; what it looks at, as float32 of `shape`: (n_layers, n_heads,
        position + 1). UnsupportedError on a card."""
        import numpy as np

        row = self._rows[0]
        row.position, row.token, row.want_logits = position, token, 1
        weights, err = np.empty(shape, np.float32), self._error
        out = ffi.cast("float *", weights.ctypes.data)
        del self.fed[position:]
        check(lib.l2c_session_attention(self.handle, self._rows, out, err), err)
        self.fed.append(token)
        return weights

    def sample(self, sampler: Any, history: Any, n_history: int, options: Any = None) -> int:
        """A token from the last row's logits, which it uses up. `options`: l2c_draw_options *."""
        token, err = self._token, self._error
        if options is not None:
            draw = ffi.new("l2c_draw *", (0, sampler, history, n_history))
            check(lib.l2c_session_sample_with(self.handle, draw, options, 1, err), err)
            check(draw.status, err)
            return draw.token  # type: ignore[no-any-return]
        status = lib.l2c_session_sample(self.handle, 0, sampler, history, n_history, token, err)
        if status:
            check(status, err)
        return token[0]  # type: ignore[no-any-return]

    def speculate(
        self,
        draft: Session,
        sampler: Any,
        history: Any,
        n: int,
        n_draft: int,
        ends: Any,
        options: Any = None,
    ) -> list[tuple[int, int]]:
        """The tokens after the n of `history` (all but the last of them cached), each with the
        sampler's rng_state after it: at least one, none after one of `ends`, an int32_t[].
        `options`: l2c_draw_options[] of n_draft + 1 or more."""
        err, count, states = self._error, self._count, self._states
        tokens = list(history[0:n])
        lib.l2c_session_cut(draft.handle, 0, draft.cached(tokens), ffi.NULL)
        status = lib.l2c_speculate(
            self.handle, draft.handle, sampler, history, n, n_draft, ends, len(ends),
            states, options or ffi.NULL, count, err,
        )  # fmt: skip
        if status == lib.L2C_OK:
            tokens = list(history[0 : n + count[0]])
        for session in (self, draft):
            session.fed = tokens[: lib.l2c_session_length(session.handle, 0)]
        check(status, err)
        return list(zip(tokens[n:], states[0 : count[0]], strict=True))

    def decode(
        self, sampler: Any, history: Any, n: int, n_steps: int, ends: Any
    ) -> list[tuple[int, int]]:
        """The same without a draft: at least one token, at most `n_steps`."""
        err, count, states = self._error, self._count, self._states
        tokens = list(history[0:n])
        status = lib.l2c_session_decode(
            self.handle, sampler, history, n, n_steps, ends, len(ends), states, count, err
        )
        if status == lib.L2C_OK:
            tokens = list(history[0 : n + count[0]])
        self.fed = tokens[: lib.l2c_session_length(self.handle, 0)]
        check(status, err)
        return list(zip(tokens[n:], states[0 : count[0]], strict=True))

    def logits(self, n_rows: int, vocab_size: int) -> Any:
        """The last call's logits as a writable NumPy view (n_rows, vocab_size), float32."""
        import numpy as np  # here, because it is half of the start-up time

        # A card's logits come when they are asked for, row by row, and lie behind one another.
        rows = [lib.l2c_session_logits(self.handle, i) for i in range(n_rows)]
        if ffi.NULL in rows:
            raise DeviceError("the card that computed the logits is lost")
        data = rows[0]
        buffer = ffi.buffer(data, 4 * n_rows * vocab_size)
        return np.frombuffer(buffer, np.float32).reshape(n_rows, vocab_size)

    def cancel(self) -> None:
        """Stops the call that another thread is making at its next layer, else the next call."""
        lib.l2c_session_cancel(self.handle)


class Sessions(Handle):
    """Lends the sessions of a model, each to one computation at a time."""

    def __init__(self, model: Any, pool: Any, options: SessionOptions):
        self._new: Any = (model, pool, options)
        self._idle: list[Session] = []
        # With their holders. No __del__ gives a session back: Ctrl-C within it would be lost.
        self._lent: dict[Session, Callable[[], object]] = {}
        # A signal handler may end a story while this thread holds it.
        self._lock = threading.RLock()

    def lease(self, tokens: Sequence[int] = (), holder: object = None) -> Session:
        """The idle session with the longest prefix of `tokens` cached, or a new one.

        It is lent until it is given back, or `holder` is garbage-collected.
        """
        with self._lock:
            if self._new is None:
                raise ClosedError("the model is closed")
            for session in self._lent.keys() - self.in_use:
                self.give_back(session)
            if self._idle:
                session = max(self._idle, key=lambda s: s.cached(tokens))
                self._idle.remove(session)
            else:
                session = Session(*self._new)
            self._lent[session] = ref(holder) if holder is not None else object
            lib.l2c_session_resume(session.handle)  # a late cancel was for the previous story
            return session

    @property
    def in_use(self) -> set[Session]:
        return {session for session, holder in self._lent.items() if holder() is not None}

    def give_back(self, session: Session) -> None:
        """The most recently used are kept."""
        with self._lock:
            self._lent.pop(session, None)
            if self._new is not None:
                self._idle = [*self._idle, session][-_IDLE_SESSIONS:]

    @contextmanager
    def lent(self, tokens: Sequence[int] = ()) -> Iterator[Session]:
        session = self.lease(tokens)
        try:
            yield session
        finally:
            self.give_back(session)

    def close(self) -> None:
        """Idle sessions go; those in use stay until they are given back."""
        with self._lock:
            self._idle.clear()
            self._new = None
