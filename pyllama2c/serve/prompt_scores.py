"""Log-probabilities of a prompt's own tokens, a sweep at a time, between those of the batch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.errors import NonFiniteLogitsError
from pyllama2c.generation.logprobs import TokenLogprob

if TYPE_CHECKING:
    from pyllama2c.engine.engine import Engine


class PromptScorer:
    """Scores `tokens`; `logprobs` has an entry for each, None for the first."""

    def __init__(self, engine: Engine, tokens: list[int], n_top: int):
        self._engine, self._tokens = engine, tokens
        self._n_top = min(n_top, engine.config.vocab_size)
        self._fed = 0
        self._exit = ExitStack()
        self._session = self._exit.enter_context(engine.sessions.lent())
        self.logprobs: list[TokenLogprob | None] = [None]

    def step(self) -> bool:
        """One sweep; whether it was the last. The last token is not fed: what follows it is the
        story's."""
        session, at = self._session, self._fed
        chunk = self._tokens[at : min(at + session.max_rows, len(self._tokens) - 1)]
        if chunk:
            session.feed(chunk, at, want_logits=len(chunk))
            rows = session.logits(len(chunk), self._engine.config.vocab_size)
            for row, token in enumerate(self._tokens[at + 1 : at + len(chunk) + 1]):
                self.logprobs.append(self._score(row, token, rows[row]))
            self._fed += len(chunk)
        return self._fed == len(self._tokens) - 1

    def _score(self, row: int, token: int, logits: object) -> TokenLogprob:
        import numpy as np

        values = np.asarray(logits)
        if not np.isfinite(values).all():
            raise NonFiniteLogitsError("the logits hold NaN or infinity")
        top: list[int] = []
        if self._n_top:
            # All that are as likely as the last of the top, so that equals go by their ids.
            least = np.partition(values, -self._n_top)[-self._n_top]
            ids = np.flatnonzero(values >= least)
            top = ids[np.argsort(-values[ids], kind="stable")][: self._n_top].tolist()
        likeliest = tuple((each, self._logprob(row, each)) for each in top)
        return TokenLogprob(token, self._logprob(row, token), likeliest)

    def _logprob(self, row: int, token: int) -> float:
        out, err = ffi.new("double *"), new_error()
        check(lib.l2c_session_logprob(self._session.handle, row, token, out, err), err)
        return float(out[0])

    def close(self) -> None:
        """Gives the session back."""
        self._exit.close()
