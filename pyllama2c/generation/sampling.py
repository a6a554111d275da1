"""Sampling parameters: checked here, before anything runs, and handed to the C sampler."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from pyllama2c import validate
from pyllama2c._ffi import ffi, lib

_FLOAT_MAX = 3.4e38
_FLOAT_MIN = 1.1754944e-38
"""float32's largest and smallest normal number: a smaller penalty would be 0 in C"""

_FINITE = f"-{_FLOAT_MAX:.2g} to {_FLOAT_MAX:.2g}"

_MAX_SEED = 2**64 - 1

_BIASES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""l2c_logit_bias[] of an l2c_sampler, which points to them"""


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
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    n_prompt: int = 0,
    vocab_size: int = 2**31,
) -> Any:
    """An `l2c_sampler *`; TypeError or ValueError for what is not a finite number in range."""
    sampler = ffi.new("l2c_sampler *")
    lib.l2c_sampler_init(sampler, validate.integer("seed", seed, 0, _MAX_SEED, "0 to 2**64 - 1"))
    number = validate.number
    sampler.temperature = number(
        "temperature", temperature, 0.0, _FLOAT_MAX, f"0 to {_FLOAT_MAX:.2g}"
    )
    nucleus = number("top_p", top_p, 0.0, 1.0, "0 to 1")
    sampler.top_p = max(nucleus, _FLOAT_MIN) if nucleus > 0 else 0.0  # rounded to 0 it would be off
    sampler.top_k = validate.integer("top_k", top_k, 0, 2**31 - 1, "0 to 2**31 - 1")
    sampler.min_p = number("min_p", min_p, 0.0, 1.0, "0 to 1")
    sampler.repetition_penalty = number(
        "repetition_penalty", repetition_penalty, _FLOAT_MIN, _FLOAT_MAX, "1.2e-38 to 3.4e38"
    )
    for name, penalty in (
        ("presence_penalty", presence_penalty),
        ("frequency_penalty", frequency_penalty),
    ):
        setattr(sampler, name, number(name, penalty, -_FLOAT_MAX, _FLOAT_MAX, _FINITE))
    sampler.n_prompt = n_prompt
    biases = _biases(logit_bias, vocab_size)
    if biases:
        _BIASES[sampler] = sampler.biases = ffi.new("l2c_logit_bias[]", biases)
        sampler.n_biases = len(biases)
    return sampler


def _biases(logit_bias: Any, vocab_size: int) -> list[tuple[int, float]]:
    if logit_bias is None:
        return []
    if not isinstance(logit_bias, Mapping):
        needed = "a dict from token ids to numbers"
        raise validate.wrong("logit_bias", logit_bias, needed, TypeError)
    last, biases = vocab_size - 1, []
    for key, value in logit_bias.items():
        token = validate.integer("a key of logit_bias", key, 0, last, f"a token id, 0 to {last}")
        name, limits = f"logit_bias[{token}]", f"{_FINITE}, or minus infinity"
        bias = validate.number(name, value, -math.inf, _FLOAT_MAX, limits)
        if -math.inf < bias < -_FLOAT_MAX:
            raise validate.wrong(name, value, limits)
        biases.append((token, bias))
    return biases
