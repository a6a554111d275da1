"""Log-probabilities of the tokens of a story."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllama2c._ffi import ffi, lib

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_TOP: int = lib.L2C_MAX_TOP
"""the most likeliest tokens that can be reported for each"""

_LOGPROB = struct.Struct("@id")
"""an l2c_logprob"""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable a sampled token was to the model itself: before masks, a logits_processor,
    logit_bias, penalties and temperature. The same numbers as `Llama.score` has for the text."""

    token: int
    logprob: float
    """natural logarithm of its probability"""
    top: tuple[tuple[int, float], ...]
    """the likeliest tokens and their log-probabilities, likeliest first; of equals, the smaller id
    first"""


def token_logprob(token: int, logprob: float, top: Any, n_top: int) -> TokenLogprob:
    """From an l2c_logprob * of `n_top`, which it copies."""
    likeliest = _LOGPROB.iter_unpack(ffi.buffer(top, n_top * _LOGPROB.size)) if n_top else ()
    return TokenLogprob(token, logprob, tuple((token, logprob) for token, logprob in likeliest))


class LogprobReader:
    """Where C writes the log-probabilities of up to `n_draws` tokens of a single story."""

    def __init__(self, n_top: int, vocab_size: int, n_draws: int):
        n_top = min(n_top, vocab_size)
        self._row = ffi.new("float[]", vocab_size)
        self._top = ffi.new("l2c_logprob[]", n_draws * n_top)
        self.options = ffi.new("l2c_draw_options[]", n_draws)
        """of draws that are made one after the other"""
        for i, option in enumerate(self.options):
            option.logits, option.top, option.n_top = self._row, self._top + i * n_top, n_top

    def keep(self, logits: NDArray[np.float32]) -> None:
        """Takes the first draw's logits (vocab_size) as the model computed them, unchanged."""
        ffi.buffer(self._row)[:] = logits.tobytes()
        self.options[0].logits_are_kept = 1

    def read(self, token: int, draw: int = 0) -> TokenLogprob:
        option = self.options[draw]
        return token_logprob(token, option.logprob, option.top, option.n_top)
