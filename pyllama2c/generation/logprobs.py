"""Log-probabilities of the tokens of a story."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLogprob:
    """How probable a sampled token was to the model itself: before masks, a logits_processor,
    logit_bias, penalties and temperature. The same numbers as `Llama.score` has for the text."""

    token: int
    logprob: float
    """natural logarithm of its probability"""
    top: tuple[tuple[int, float], ...]
    """the likeliest tokens and their log-probabilities, likeliest first; of equals, the smaller id
    first"""
