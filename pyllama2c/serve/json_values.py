"""What JSON has no type for: integers of 64 bits, dicts whose keys are integers, and infinity."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pyllama2c import validate


def uint64(name: str, value: Any, low: int = 0) -> int:
    """An integer from `low` on, or its decimal text: many parsers keep 53 bits of a number."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value):
        value = int(value)
    limits = f"{low} to 2**64 - 1, as an integer or a decimal string"
    return validate.integer(name, value, low, 2**64 - 1, limits)


def token_keys(biases: Any) -> Any:
    """A logit_bias with integers as keys, and minus infinity for null; what is wrong stays, for the
    sampler to refuse by name."""
    if not isinstance(biases, Mapping):
        return biases
    return {
        int(k) if re.fullmatch("[0-9]{1,9}", str(k)) else k: -math.inf if v is None else v
        for k, v in biases.items()
    }
