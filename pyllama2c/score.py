"""How probable a text is to a model."""

from __future__ import annotations

import math
from typing import NamedTuple


class Score(NamedTuple):
    """How probable a text is. Log-probabilities are natural."""

    tokens: list[int]
    logprobs: list[float | None]
    """entry i is log p(token i | tokens before it); the first has none before it"""
    total: float
    """sum of the logprobs"""
    perplexity: float
    """exp(-total / number of logprobs); NaN when there is none"""
    bits_per_byte: float
    """-total / ln 2 / bytes of UTF-8 text; NaN for an empty text, or ids without a tokenizer"""


def make_score(tokens: list[int], logprobs: list[float | None], n_bytes: int) -> Score:
    """Sums up; `n_bytes` is the length of the text that the tokens stand for."""
    scored = [p for p in logprobs if p is not None]
    total = math.fsum(scored)
    return Score(
        tokens=tokens,
        logprobs=logprobs,
        total=total,
        perplexity=math.exp(-total / len(scored)) if scored else math.nan,
        bits_per_byte=-total / math.log(2) / n_bytes if scored and n_bytes else math.nan,
    )
