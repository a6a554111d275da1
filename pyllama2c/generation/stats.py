"""Figures of a story."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Times are seconds on a monotonic clock, spent generating (not in the caller's loop)."""

    prompt_tokens: int
    """tokens of the prompt, BOS included"""
    cached_tokens: int
    """of those, found in a cache and not computed again"""
    tokens: int
    """sampled tokens, the stop token excluded"""
    time_to_first_token: float
    prefill_tokens_per_second: float
    """all tokens of the prompt over the time until the first new one"""
    decode_seconds: float
    """from the first token on"""
    tokens_per_second: float
    """tokens after the first, a final stop token included, over decode_seconds: as run.c reports"""
    drafted_tokens: int
    """tokens that the draft proposed; 0 without speculative decoding"""
    accepted_tokens: int
    """of those, the ones that the model itself picked as well"""
