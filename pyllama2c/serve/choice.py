"""How the sampler's coin came to its token: the cumulative line that it fell on.

The choice is C's (csrc/sampler.c). What it chose by, e ** (logit - largest) of each token after
penalties and temperature, is what it leaves in the row (l2c_session_sample says so). The line is
drawn from these numbers, with the sampler's own float32 steps, and held against the token that C
took.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int64]

_SUM_BLOCK, _LANES = 64, 16
_F = np.float32


class Line(NamedTuple):
    """Kept tokens side by side, each as long as it is probable."""

    order: str
    """of the tokens: "id", "probability" (falling), or "greedy": no line, the largest won"""
    p: Floats
    """(vocab_size) probabilities after penalties and temperature, before anything is cut"""
    ids: Ids
    """(kept) the tokens"""
    ends: Floats
    """(kept) where each ends; it begins where the one before ends, the first at 0"""
    target: float | None
    """where the coin fell: the token that ends first beyond it is taken"""

    @property
    def sum(self) -> float | None:
        return None if self.target is None else float(self.ends[-1])

    @property
    def taken(self) -> int:
        """The token at the target."""
        if self.target is None:
            return int(self.ids[0])
        at = int(np.searchsorted(self.ends, _F(self.target), side="right"))
        return int(self.ids[min(at, len(self.ids) - 1)])  # by rounding, the coin may pass the end

    def interval(self, token: int) -> tuple[float | None, float | None]:
        """Where a token begins and ends; None for one that was cut, and without a line."""
        at = np.flatnonzero(self.ids == token)
        if self.target is None or len(at) == 0:
            return None, None
        i = int(at[0])
        return (float(self.ends[i - 1]) if i > 0 else 0.0), float(self.ends[i])

    def cut_by(self, token: int, sampler: Any) -> str | None:
        """By what a token was cut: "min_p", "top_k", "top_p", "zero" (no probability is left of it
        after penalties and temperature), or None: it is on the line, or there is none."""
        if self.target is None or (self.ids == token).any():
            return None
        p = self.p[token]
        if p == 0:
            return "zero"
        if p < _F(sampler.min_p) * self.p.max():
            return "min_p"
        before = int((self.p > p).sum() + (self.p[:token] == p).sum())
        return "top_k" if 0 < sampler.top_k <= before else "top_p"


def coin_of(rng_state: int) -> float:
    """The coin, in [0, 1), whose toss left the generator (xorshift64*) in this state."""
    return float(((rng_state * 0x2545F4914F6CDD1D) % 2**64 >> 40) / 2**24)


def tossed(before: int, after: int) -> bool:
    """Whether a coin was tossed. RuntimeError where the states are not one toss apart either."""
    if before == after:
        return False
    state = before
    state ^= state >> 12
    state = (state ^ (state << 25)) % 2**64
    state ^= state >> 27
    if state != after:
        raise RuntimeError(f"the sampler's state went from {before} to {after}")
    return True


def total(exps: Floats, in_turn: bool) -> np.float32:
    """The sum of a row as the kernels have it: in 16 lanes, by blocks; `in_turn`, as runq.c."""
    if in_turn:
        return _F(np.add.accumulate(exps)[-1])
    padded = np.zeros(-(-len(exps) // _SUM_BLOCK) * _SUM_BLOCK, np.float32)
    padded[: len(exps)] = exps
    parts = padded.reshape(-1, _SUM_BLOCK // _LANES, _LANES)
    blocks = np.add.accumulate(parts, axis=1)[:, -1]
    lanes = np.add.accumulate(blocks, axis=0)[-1]
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return _F(lanes[0])


def no_line(vocab_size: int, token: int) -> Line:
    """The largest logit was taken."""
    p = np.zeros(vocab_size, np.float32)
    p[token] = 1
    return Line("greedy", p, np.array([token]), np.ones(1, np.float32), None)


def draw_line(exps: Floats, in_turn: bool, sampler: Any, coin: float) -> Line:
    """The line that an l2c_sampler's coin fell on."""
    p = exps / total(exps, in_turn)
    top_p, top_k, largest = _F(sampler.top_p), int(sampler.top_k), p.max()
    floor = _F(sampler.min_p) * largest
    nucleus = bool(0 < top_p < 1)
    if not nucleus and top_k == 0:
        kept = np.flatnonzero((p >= floor) & (p > 0))
        return _line("id", p, kept, coin, whole=sampler.min_p == 0)
    if nucleus and top_k == 0 and len(p) > 1:  # llama2.c: what is smaller cannot be in the nucleus
        floor = max(floor, (_F(1) - top_p) / _F(len(p) - 1))
    kept = np.flatnonzero((p >= floor) & (p > 0))
    kept = kept[np.argsort(-p[kept], kind="stable")]
    mass = _F(1)
    if top_k > 0:
        kept = kept[:top_k]
        mass = np.add.accumulate(p[kept])[-1]
    if nucleus:
        beyond = np.flatnonzero(np.add.accumulate(p[kept]) > top_p * mass)
        kept = kept[: beyond[0] + 1] if len(beyond) else kept
    return _line("probability", p, kept, coin)


def _line(order: str, p: Floats, kept: Ids, coin: float, whole: bool = False) -> Line:
    if len(kept) == 0:  # flat logits and a tiny top_p: the first of the likeliest
        kept = np.array([int(p.argmax())])
    ends = np.add.accumulate(p[kept])
    return Line(order, p, kept, ends, coin if whole else float(_F(coin) * ends[-1]))
