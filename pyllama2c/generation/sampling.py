"""Sampling parameters: checked here, before anything runs, and handed to the C sampler."""

from __future__ import annotations

import random
from typing import Any

from pyllama2c import validate
from pyllama2c._ffi import ffi, lib

_FLOAT_MAX = 3.4e38
_FLOAT_MIN = 1.1754944e-38
"""float32's largest and smallest normal number: a smaller penalty would be 0 in C"""

_MAX_SEED = 2**64 - 1


def fresh_seed() -> int:
    """A seed that run.c's -s takes as well: 1 to 2**31 - 1."""
    return random.SystemRandom().randint(1, 2**31 - 1)


def seed_or_none(name: str, seed: Any) -> int | None:
    """A seed as the library takes it: None and -1 ask for a fresh one (None)."""
    if seed is None:
        return None
    seed = validate.integer(name, seed, -1, _MAX_SEED, "0 to 2**64 - 1, or -1 for a fresh one")
    return None if seed == -1 else seed


def rng_state_after(seed: int, n_coins: int) -> int:
    """State of a new sampler's xorshift64* generator after `n_coins` coins: one for each token that
    was sampled, the one that ended the story included, none at temperature 0."""
    sampler = ffi.new("l2c_sampler *")
    lib.l2c_sampler_init(sampler, seed)
    state = int(sampler.rng_state)
    for _ in range(n_coins):
        state ^= state >> 12
        state ^= state << 25 & _MAX_SEED
        state ^= state >> 27
    return state


def new_sampler(
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    seed: int,
) -> Any:
    """An `l2c_sampler *`; TypeError or ValueError for what is not a finite number in range."""
    sampler = ffi.new("l2c_sampler *")
    lib.l2c_sampler_init(sampler, validate.integer("seed", seed, 0, _MAX_SEED, "0 to 2**64 - 1"))
    number = validate.number
    sampler.temperature = number(
        "temperature", temperature, 0.0, _FLOAT_MAX, f"0 to {_FLOAT_MAX:.2g}"
    )
    sampler.top_p = number("top_p", top_p, 0.0, 1.0, "0 to 1")
    sampler.top_k = validate.integer("top_k", top_k, 0, 2**31 - 1, "0 to 2**31 - 1")
    sampler.min_p = number("min_p", min_p, 0.0, 1.0, "0 to 1")
    sampler.repetition_penalty = number(
        "repetition_penalty", repetition_penalty, _FLOAT_MIN, _FLOAT_MAX, "1.2e-38 to 3.4e38"
    )
    return sampler
