"""Sampling parameters: checked here, before anything runs, and handed to the C sampler."""

from __future__ import annotations

import math
import random
from typing import Any

from pyllama2c._ffi import ffi, lib

_FLOAT_MAX = 3.4e38


def _number(name: str, value: float, low: float, high: float) -> float:
    value = float(value)
    if not (math.isfinite(value) and low <= value <= high):
        limits = f"{low:g} to {high:g}" if high < _FLOAT_MAX else f"{low:g} or more"
        raise ValueError(f"{name} is {value}; it must be {limits}")
    return value


def fresh_seed() -> int:
    """A seed that llama2.c's -s takes as well: 1 to 2**31 - 1."""
    return random.SystemRandom().randint(1, 2**31 - 1)


def new_sampler(
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    seed: int,
) -> Any:
    """An `l2c_sampler`; raises ValueError for what is not finite or out of range."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must be 0 to 2**64 - 1")
    if not 0 <= top_k < 2**31:
        raise ValueError(f"top_k is {top_k}; it must be 0 to 2**31 - 1")
    if repetition_penalty <= 0:
        raise ValueError(f"repetition_penalty is {repetition_penalty}; it must be more than 0")
    sampler = ffi.new("l2c_sampler *")
    lib.l2c_sampler_init(sampler, seed)
    sampler.temperature = _number("temperature", temperature, 0.0, _FLOAT_MAX)
    sampler.top_p = _number("top_p", top_p, 0.0, 1.0)
    sampler.top_k = top_k
    sampler.min_p = _number("min_p", min_p, 0.0, 1.0)
    sampler.repetition_penalty = _number("repetition_penalty", repetition_penalty, 0.0, _FLOAT_MAX)
    return sampler
