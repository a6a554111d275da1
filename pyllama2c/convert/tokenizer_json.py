"""Hugging Face's tokenizer.json: BPE over bytes (Llama 3, SmolLM), or SentencePiece's BPE."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pyllama2c.convert.json_files import Fields, read_json
from pyllama2c.convert.vocabulary import (
    BYTE,
    MAX_PIECE,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Added,
    Vocabulary,
)
from pyllama2c.errors import TokenizerError, UnsupportedError
from pyllama2c.tokenizers.gguf import SCHEMES
from pyllama2c.tokenizers.pre_tokenizers import PRE_TOKENIZERS

_BYTES_ONLY = ("ByteLevel", False, False)
_PRE: dict[tuple[tuple[object, ...], ...], list[str]] = {
    (("Digits", True), ("ByteLevel", False, True)): ["smollm"],
    (("ByteLevel", False, True),): ["gpt-2"],
}
"""pre-tokenizers that readers of GGUF know, by what they do"""

for _name, _pre in PRE_TOKENIZERS.items():
    _splits = [("Split", expression, "Isolated", False) for expression in _pre.expressions]
    _PRE.setdefault((*_splits, _BYTES_ONLY), []).append(_name)


_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


def _steps(stage: object, inner: str) -> list[dict[str, Any]]:
    """The steps of a stage of the pipeline."""
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
    names = _PRE.get(steps, [])
    if not names or source.get("normalizer") is not None:
        raise UnsupportedError(
            f"{v.path}: it splits or normalizes text as neither Llama 3, SmolLM, GPT-2 nor another "
            f"known model does ({str(steps)[:300]})"
        )
    ignored = model.boolean("ignore_merges", False)
    v.pre = next((n for n in names if PRE_TOKENIZERS[n].ignore_merges == ignored), None)
    if v.pre is None:
        raise UnsupportedError(
            f"{v.path}: model.ignore_merges is not what readers of GGUF assume for {names[0]}"
        )
    v.merges = _joined_by_space(v, _merges(model))
    v.add_bos = False


def _ranks(v: Vocabulary, merges: list[tuple[str, str]]) -> dict[str, int]:
    """The rank of each joined piece: of its first merge."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        if len(left + right) > MAX_PIECE:
            raise TokenizerError(f"{v.path}: a merge makes more than {MAX_PIECE} characters")
        ranks.setdefault(left + right, rank)
    return ranks


def _scores_suffice(known: set[str], merges: list[tuple[str, str]], ranks: dict[str, int]) -> bool:
    """Whether scores by rank give the pieces `known` the same ids as the merges.

    SentencePiece merges whichever two pieces make the best one. Merges do the same if each piece
    has one for every two pieces that make it, and those are consecutive.
    """
    merged = [left + right for left, right in merges]
    in_order = [text for i, text in enumerate(merged) if text != merged[i - 1] or i == 0]
    pairs = set(merges)
    return (
        len(in_order) == len(ranks)
        and all(len(text) == 1 or text in ranks for text in known)
        and all(
            (piece[:i], piece[i:]) in pairs
            for piece in ranks
            for i in range(1, len(piece))
            if piece[:i] in known and piece[i:] in known
        )
    )


def _spaces(source: Fields) -> tuple[str, bool] | None:
    """Where spaces are added (one of SCHEMES) and whether text is split at spaces; None if these do
    not become U+2581, as in SentencePiece. UnsupportedError for other steps."""
    replaced, scheme, split, other = False, "never", False, []
    for step in _steps(source.get("normalizer"), "normalizers"):
        if step == {"type": "Prepend", "prepend": "▁"}:
            scheme = "every"
        elif step.get("pattern") == {"String": " "} and step.get("content") == "▁":
            replaced = True
        else:
            other.append(step.get("type"))
    for step in _steps(source.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("replacement") == "▁":
            replaced, split = True, split or step.get("split") is not False
            added = "never" if step.get("add_prefix_space") is False else "always"
            if scheme == "never":  # no second space is added
                scheme = step.get("prepend_scheme", added)
        elif not (
            replaced and step.get("type") == "Split" and step.get("pattern") == {"String": " "}
        ):
            other.append(step.get("type"))
    if not replaced:
        return None
    if other or scheme not in SCHEMES:
        raise UnsupportedError(
            f"{source.path}: it normalizes or splits text by {str(other or scheme)[:200]}"
        )
    return scheme, split


def _check_plain(v: Vocabulary, model: Fields) -> None:
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(f"{v.path}: model.{name} is {str(model.get(name))[:50]!r}")


def _sentencepiece(
    v: Vocabulary,
    model: Fields,
    known: dict[str, object],
    spaces: tuple[str, bool],
    added: list[Added],
) -> None:
    v.prepend_scheme, v.split_spaces = spaces
    v.add_space = v.prepend_scheme != "never"
    if model.boolean("ignore_merges", False):
        raise UnsupportedError(f"{v.path}: it leaves whole words unmerged (model.ignore_merges)")
    merges = _merges(model)
    ranks = _ranks(v, merges)
    unknown = model.get("unk_token")
    has_bytes = model.boolean("byte_fallback", False)
    n_bytes = 0
    for text, number in known.items():
        kind = BYTE if has_bytes and _BYTE_PIECE.fullmatch(text) else NORMAL
        n_bytes += kind == BYTE
        # Pieces that no merge makes come after all others, as in SentencePiece.
        rank = ranks.get(text, len(ranks) + 1) if kind == NORMAL else 0
        v.put(number, text, UNKNOWN if text == unknown else kind, -float(rank))
    v.unk = v.find(unknown) if isinstance(unknown, str) else None
    if v.unk is not None and n_bytes < 256 and not model.boolean("fuse_unk", False):
        raise UnsupportedError(
            f"{v.path}: adjacent characters without a piece become one <unk> here, not one each "
            "(model.fuse_unk is false)"
        )
    v.unk_surface = "" if any(t.text == unknown for t in added) else str(unknown or "")
    plain = {str(t.text) for t in added if t.type == USER_DEFINED}
    special = {str(t.text) for t in added} - plain
    own = {text for text, kind, _ in v.pieces.values() if kind == NORMAL} - special
    if plain & known.keys() or not _scores_suffice(own, merges, ranks):
        if not merges:
            raise UnsupportedError(f"{v.path}: it has pieces, but no merges")
        v.merges = _joined_by_space(v, merges)


def _joined_by_space(v: Vocabulary, merges: list[tuple[str, str]]) -> list[str]:
    for left, right in merges:
        if " " in left or " " in right:
            raise TokenizerError(f"{v.path}: the merge of {left!r} and {right!r} contains a space")
    return [f"{left} {right}" for left, right in merges]


def added_tokens(source: Fields | None, settings: Fields | None) -> list[Added]:
    """Tokens added to a tokenizer: those of tokenizer.json, overridden by tokenizer_config.json."""
    listed = source.table("added_tokens") if source is not None else []
    added = [Added.of(entry, entry.get("id")) for entry in listed if isinstance(entry, dict)]
    if settings is None or settings.get("added_tokens_decoder") is None:
        return added
    again = {
        int(key): Added.of(entry, int(key))
        for key, entry in settings.object("added_tokens_decoder").items()
        if key.isdecimal() and len(key) < 10 and isinstance(entry, dict)
    }
    kept = [t for t in added if not (isinstance(t.number, int) and t.number in again)]
    return [*kept, *again.values()]


def _around(step: Any) -> tuple[list[int], list[int]]:
    """Ids that a step of the post-processor puts before and after a text."""
    if step["type"] in ("BertProcessing", "RobertaProcessing"):
        return [step["cls"][1]], [step["sep"][1]]
    sides: list[list[int]] = [[]]
    for each in step["single"]:
        if "Sequence" in each:
            sides.append([])
        else:
            sides[-1] += step["special_tokens"][each["SpecialToken"]["id"]]["ids"]
    before, after = sides
    return before, after


def around(source: Fields) -> tuple[list[int], list[int]]:
    """Ids that are put before and after a text."""
    steps = _steps(source.get("post_processor"), "processors")
    steps = [step for step in steps if step.get("type") != "ByteLevel"]  # which adds none
    if not steps:
        return [], []
    try:
        (step,) = steps
        before, after = ([*map(int, ids)] for ids in _around(step))
    except (AttributeError, KeyError, IndexError, OverflowError, TypeError, ValueError):
        raise source.fail("post_processor", "one TemplateProcessing around one text") from None
    return before, after


def read_tokenizer_json(path: Path, vocab_size: int, settings: Fields | None = None) -> Vocabulary:
    """TokenizerError for a damaged file; UnsupportedError for what GGUF cannot express."""
    source = read_json(path, TokenizerError)
    model = source.object("model")
    if model.text("type", "BPE") != "BPE":
        raise UnsupportedError(f"{path}: a tokenizer of type {model.text('type')[:50]}, not BPE")
    added = added_tokens(source, settings)
    later = [t.text for t in added if type(t.number) is int and t.number >= vocab_size]
    known: dict[str, object] = {
        text: number for text, number in model.object("vocab").items() if text not in later
    }
    spaces = _spaces(source)
    if spaces is not None:
        v = Vocabulary(path, "llama", vocab_size)
        _sentencepiece(v, model, known, spaces, added)
    elif model.boolean("byte_fallback", False):
        raise UnsupportedError(f"{path}: it has byte_fallback, but not SentencePiece's spaces")
    else:
        v = Vocabulary(path, "gpt2", vocab_size)
        _byte_level(v, source, model)
        for text, number in known.items():
            v.put(number, text, NORMAL)
    _check_plain(v, model)
    if len(v.pieces) != len(known):
        raise TokenizerError(f"{path}: two pieces of model.vocab have the same id")
    for token in added:
        v.add(token)
    before, after = around(source)
    v.bos = before[0] if len(before) == 1 and before[0] in v.pieces else None
    v.eos = after[0] if len(after) == 1 and after[0] in v.pieces else None
    return v
