"""How well a model predicts texts: bits per byte and perplexity, teacher-forced."""

from __future__ import annotations

import codecs
import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c.files.recognize import PROSE, expect
from pyllama2c.generation.score import perplexity

if TYPE_CHECKING:
    from pyllama2c.model import Llama

SEPARATOR = "<|endoftext|>"


class Evaluation(NamedTuple):
    """Sums over all passages, each from BOS on, and whole: in one longer than the context, each
    token is predicted from half a context or more before it (see Llama.score)."""

    passages: int
    long: int
    """of those, longer than the context"""
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
    text = _read_text(Path(path))
    passages = _from_json(path, text) if Path(path).suffix == ".json" else text.split(SEPARATOR)
    passages = [passage.strip() for passage in passages]
    passages = [passage for passage in passages if passage]
    if not passages:
        raise ValueError(f"{path}: no text in it")
    return passages


_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""byte order marks of what is not read; UTF-32's first, since UTF-16's is its beginning"""


def _read_text(path: Path) -> str:
    """UTF-8, without its byte order mark."""
    with path.open("rb") as file:
        if stat.S_ISCHR(os.fstat(file.fileno()).st_mode) and not file.isatty():
            raise ValueError(f"{path}: a device, which may have no end; name a file of text")
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = next((name for mark, name in _ENCODINGS if data.startswith(mark)), None)
        if found is None:
            at = error.start
            raise ValueError(
                f"{path}: not UTF-8 text: byte 0x{data[at]:02x} at offset {at:,}"
            ) from None
        raise ValueError(f"{path}: {found} text; only UTF-8 is read") from None


def _from_json(path: str | os.PathLike[str], text: str) -> list[str]:
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if isinstance(data, dict):
        data = data.get("passages")
    if not isinstance(data, list) or not all(isinstance(passage, str) for passage in data):
        raise ValueError(f"{path}: neither a list of strings nor an object with one as passages")
    return data


def evaluate(llama: Llama, passages: Iterable[str]) -> Evaluation:
    """Scores every passage; see Evaluation."""
    n = long = n_tokens = n_bytes = 0
    totals: list[float] = []
    for passage in passages:
        tokens = llama.tokenizer.encode_prompt(passage)
        score = llama.score(tokens)
        n += 1
        long += len(tokens) > llama.config.seq_len + 1
        n_tokens += len(tokens) - 1
        scored = tokens if tokens[0] == llama.tokenizer.bos_id else tokens[1:]
        n_bytes += len(llama.tokenizer.decode_bytes(scored))
        totals.append(score.total)
    total = -math.fsum(totals)
    return Evaluation(
        passages=n,
        long=long,
        tokens=n_tokens,
        bytes=n_bytes,
        bits_per_byte=total / math.log(2) / n_bytes if n_bytes else math.nan,
        perplexity=perplexity(total, n_tokens),
    )


def to_json(result: Evaluation) -> str:
    """A figure that is not finite is null: JSON has no infinity and no NaN."""
    figures = {k: v if math.isfinite(v) else None for k, v in result._asdict().items()}
    return json.dumps(figures, indent=2)


def to_text(result: Evaluation) -> str:
    long = f", {result.long:,} of them longer than the context" if result.long else ""
    return (
        f"passages       {result.passages:,}{long}\n"
        f"tokens         {result.tokens:,} for {result.bytes:,} bytes\n"
        f"bits per byte  {result.bits_per_byte:.4f}\n"
        f"perplexity     {result.perplexity:.4f} a token"
    )
