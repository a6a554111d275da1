"""How well a model predicts texts: bits per byte and perplexity, every token from the true ones."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c.recognize import PROSE, expect

if TYPE_CHECKING:
    from pyllama2c.model import Llama

SEPARATOR = "<|endoftext|>"


class Evaluation(NamedTuple):
    """Sums over all passages, each from BOS on; a passage longer than the context is cut there."""

    passages: int
    cut: int
    """passages of which only a beginning fits the context"""
    tokens: int
    """tokens predicted"""
    bytes: int
    """bytes of UTF-8 text that they stand for"""
    bits_per_byte: float
    perplexity: float
    """of a token; depends on the tokenizer, so compare models by bits per byte"""


def read_passages(path: str | os.PathLike[str]) -> list[str]:
    """The passages of a file: JSON (a list of strings, or an object with a list "passages"), or
    text with `<|endoftext|>` between them. ValueError where there is none."""
    expect(path, PROSE, ValueError)
    text = Path(path).read_text(encoding="utf-8")
    passages = _from_json(path, text) if Path(path).suffix == ".json" else text.split(SEPARATOR)
    passages = [passage.strip() for passage in passages]
    passages = [passage for passage in passages if passage]
    if not passages:
        raise ValueError(f"{path}: there is no text in it")
    return passages


def _from_json(path: str | os.PathLike[str], text: str) -> list[str]:
    try:
        data: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if isinstance(data, dict):
        data = data.get("passages")
    if not isinstance(data, list) or not all(isinstance(passage, str) for passage in data):
        raise ValueError(f"{path}: neither a list of strings nor an object with one as passages")
    return data


def evaluate(llama: Llama, passages: Iterable[str]) -> Evaluation:
    """Scores every passage; see Evaluation."""
    n = cut = n_tokens = n_bytes = 0
    totals: list[float] = []
    for passage in passages:
        tokens = llama.tokenizer.encode_prompt(passage)
        fitting = tokens[: llama.config.seq_len]
        score = llama.score(fitting)
        n += 1
        cut += len(fitting) < len(tokens)
        n_tokens += len(fitting) - 1
        scored = fitting if fitting[0] == llama.tokenizer.bos_id else fitting[1:]
        n_bytes += len(llama.tokenizer.decode_bytes(scored))
        totals.append(score.total)
    total = -math.fsum(totals)
    return Evaluation(
        passages=n,
        cut=cut,
        tokens=n_tokens,
        bytes=n_bytes,
        bits_per_byte=total / math.log(2) / n_bytes if n_bytes else math.nan,
        perplexity=math.exp(total / n_tokens) if n_tokens else math.nan,
    )


def to_text(result: Evaluation) -> str:
    cut = f", {result.cut} of them cut at the end of the context" if result.cut else ""
    return (
        f"passages       {result.passages:,}{cut}\n"
        f"tokens         {result.tokens:,} for {result.bytes:,} bytes\n"
        f"bits per byte  {result.bits_per_byte:.4f}\n"
        f"perplexity     {result.perplexity:.4f} a token"
    )
