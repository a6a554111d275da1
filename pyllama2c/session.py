"""A C session held for one computation: rows in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllama2c._ffi import check, ffi, lib, new_error

MAX_ROWS: int = lib.L2C_MAX_ROWS


class Session:
    """One sequence of a model. Not to be shared between threads while it computes."""

    def __init__(self, model: Any, pool: Any, isa: int):
        out, err = ffi.new("l2c_session **"), new_error()
        check(lib.l2c_session_create(model, pool, 1, 0, isa, out, err), err)
        self.handle: Any = ffi.gc(out[0], lib.l2c_session_free)
        self._parents = (model, pool)  # they must outlive the handle
        self._error = err
        self._rows = ffi.new("l2c_row[]", MAX_ROWS)
        self._token = ffi.new("int32_t *")
        self._logprob = ffi.new("double *")

    def feed(self, tokens: Sequence[int], position: int, want_logits: int = 1) -> None:
        """One sweep: at most MAX_ROWS tokens from `position` on; logits of the last `want_logits`.

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
        check(lib.l2c_session_forward(self.handle, rows, len(tokens), err), err)

    def sample(self, sampler: Any, history: Any, n_history: int) -> int:
        """A token from the last row's logits, which it uses up."""
        token, err = self._token, self._error
        status = lib.l2c_session_sample(self.handle, 0, sampler, history, n_history, token, err)
        if status:
            check(status, err)
        return token[0]  # type: ignore[no-any-return]

    def logprob(self, row: int, token: int) -> float:
        """log p(token) under a row's logits, in nats."""
        err = self._error
        check(lib.l2c_session_logprob(self.handle, row, token, self._logprob, err), err)
        return float(self._logprob[0])

    def logits(self, n_rows: int, vocab_size: int) -> Any:
        """The last call's logits as a writable NumPy view (n_rows, vocab_size), float32."""
        import numpy as np  # only for those who ask for arrays: half of the start-up time

        data = lib.l2c_session_logits(self.handle, 0)
        buffer = ffi.buffer(data, 4 * n_rows * vocab_size)
        return np.frombuffer(buffer, np.float32).reshape(n_rows, vocab_size)

    def cancel(self) -> None:
        """Stops a call that runs in another thread, at the next layer."""
        lib.l2c_session_cancel(self.handle)
