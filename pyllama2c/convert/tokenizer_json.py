"""Hugging Face's tokenizer.json: BPE over bytes (Llama 3, SmolLM), or SentencePiece's BPE."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pyllama2c.convert.byte_level import LLAMA3
from pyllama2c.convert.json_files import Fields, read_json
from pyllama2c.convert.vocabulary import (
    BYTE,
    CONTROL,
    MAX_PIECE,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
)
from pyllama2c.errors import TokenizerError, UnsupportedError

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE: dict[tuple[tuple[object, ...], ...], str] = {
    (("Split", _LLAMA3_SPLIT, "Isolated", False), ("ByteLevel", False, False)): LLAMA3,
    (("Digits", True), ("ByteLevel", False, True)): "smollm",
    (("ByteLevel", False, True),): "gpt-2",
}
"""pre-tokenizers that readers of GGUF know by name"""


def _steps(stage: object, inner: str) -> list[dict[str, Any]]:
    """A stage of the pipeline as its steps, nested sequences unrolled."""
    if not isinstance(stage, dict):
        return []
    if stage.get("type") != "Sequence":
        return [stage]
    steps = stage.get(inner)
    return [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else []


def _described(step: dict[str, Any]) -> tuple[object, ...]:
    kind = str(step.get("type"))
    if kind == "Split":
        pattern = step.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        return kind, str(regex), str(step.get("behavior")), step.get("invert") is True
    if kind == "Digits":
        return kind, step.get("individual_digits") is True
    if kind == "ByteLevel":
        add = step.get("add_prefix_space", True) is not False
        return kind, add, step.get("use_regex", True) is not False
    return (kind,)


def _merges(model: Fields) -> list[tuple[str, str]]:
    out = []
    for merge in model.table("merges"):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(half, str) for half in pair)
        ):
            raise TokenizerError(f"{model.path}: merge {str(merge)[:50]!r} is not two pieces")
        out.append((pair[0], pair[1]))
    return out


def _byte_level(v: Vocabulary, source: Fields, model: Fields) -> None:
    steps = tuple(_described(s) for s in _steps(source.get("pre_tokenizer"), "pretokenizers"))
    v.pre = _PRE.get(steps)
    if v.pre is None or source.get("normalizer") is not None:
        raise UnsupportedError(
            f"{v.path}: it splits or normalizes text as neither Llama 3, SmolLM nor GPT-2 does "
            f"({str(steps)[:300]})"
        )
    if model.boolean("ignore_merges", False) != (v.pre == LLAMA3):
        raise UnsupportedError(
            f"{v.path}: model.ignore_merges is not what readers of GGUF take for {v.pre}"
        )
    for left, right in _merges(model):
        if " " in left or " " in right:
            raise TokenizerError(f"{v.path}: the merge of {left!r} and {right!r} has a space")
        v.merges.append(f"{left} {right}")
    v.add_bos = False


def _ranks(v: Vocabulary, model: Fields, known: dict[str, object]) -> dict[str, int]:
    """The rank of each joined piece, where a rank says all that the merges do.

    SentencePiece joins whatever pieces make the best one. Merges mean the same if each piece can be
    joined from any two others, and those merges follow each other.
    """
    ranks: dict[str, int] = {}
    merges = _merges(model)
    last = None
    for rank, (left, right) in enumerate(merges):
        if len(left + right) > MAX_PIECE:
            raise TokenizerError(f"{v.path}: a merge makes more than {MAX_PIECE} characters")
        if left + right != last and left + right in ranks:
            raise UnsupportedError(f"{v.path}: its merges have an order that scores cannot say")
        last = left + right
        ranks.setdefault(last, rank)
    pairs = set(merges)
    for piece in ranks:
        for i in range(1, len(piece)):
            left, right = piece[:i], piece[i:]
            if left in known and right in known and (left, right) not in pairs:
                raise UnsupportedError(
                    f"{v.path}: its merges leave out {left!r} and {right!r}, which scores cannot"
                )
    return ranks


def _spaces(source: Fields) -> tuple[bool, bool]:
    """Whether spaces become U+2581, as SentencePiece has it, and one is put before a text."""
    replaced = added = False
    for step in _steps(source.get("normalizer"), "normalizers"):
        pattern = step.get("pattern")
        added |= step == {"type": "Prepend", "prepend": "▁"}
        replaced |= pattern == {"String": " "} and step.get("content") == "▁"
    for step in _steps(source.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("replacement") == "▁":
            replaced = True
            added |= step.get("prepend_scheme", "always") != "never"
    return replaced, added


def _sentencepiece(v: Vocabulary, source: Fields, model: Fields, known: dict[str, object]) -> None:
    replaced, v.add_space = _spaces(source)
    if not replaced:
        raise UnsupportedError(f"{v.path}: it has byte_fallback, but no spaces as SentencePiece")
    ranks = _ranks(v, model, known)
    unknown = model.get("unk_token")
    for text, number in known.items():
        kind = BYTE if re.fullmatch("<0x[0-9A-F]{2}>", text) else NORMAL
        # Pieces that nothing is joined into come after all others, as SentencePiece has it.
        rank = ranks.get(text, len(ranks) + 1) if kind == NORMAL else 0
        v.put(number, text, UNKNOWN if text == unknown else kind, -float(rank))
    v.unk = v.find(unknown) if isinstance(unknown, str) else None


def added_tokens(source: Fields) -> list[tuple[object, object, bool]]:
    """id, text, and whether it is special: what was added to a tokenizer later."""
    entries = [e for e in source.table("added_tokens") if isinstance(e, dict)]
    return [(e.get("id"), e.get("content"), e.get("special") is True) for e in entries]


def template(source: Fields) -> list[str | None] | None:
    """What is put around a text, None for the text itself; None: nothing is said about it."""
    for step in _steps(source.get("post_processor"), "processors"):
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list):
            tokens = [e.get("SpecialToken") if isinstance(e, dict) else None for e in single]
            return [str(t.get("id")) if isinstance(t, dict) else None for t in tokens]
    return None


def read_tokenizer_json(path: Path, vocab_size: int) -> Vocabulary:
    """TokenizerError for a damaged file; UnsupportedError for what GGUF has no words for."""
    source = read_json(path, TokenizerError)
    model = source.object("model")
    if model.text("type", "BPE") != "BPE":
        raise UnsupportedError(f"{path}: a tokenizer of type {model.text('type')[:50]}, not BPE")
    added = added_tokens(source)
    later = [text for i, text, _ in added if type(i) is int and i >= vocab_size]
    known: dict[str, object] = {
        text: number for text, number in model.object("vocab").items() if text not in later
    }
    if model.boolean("byte_fallback", False):
        v = Vocabulary(path, "llama", vocab_size)
        _sentencepiece(v, source, model, known)
    else:
        v = Vocabulary(path, "gpt2", vocab_size)
        _byte_level(v, source, model)
        for text, number in known.items():
            v.put(number, text, NORMAL)
    if len(v.pieces) != len(known):
        raise TokenizerError(f"{path}: two pieces of model.vocab have one id")
    for i, content, special in added:
        old = v.pieces.get(i) if isinstance(i, int) else None
        if old is None or old[0] != content or old[1] == NORMAL:
            v.put(i, content, CONTROL if special else USER_DEFINED)
    return v
