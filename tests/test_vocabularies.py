"""Random vocabularies of all layouts encode and decode as the packages that they are from do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import (
    BYTES,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Layout,
)

from pyllama2c import Tokenizer

ALPHABET = f"abcé日{SPACE}"
TEXTS = st.text(st.sampled_from([*ALPHABET, " ", " ", "z", "☃", "\n", "<s>", "[INST]", "ab"]))


@st.composite
def joined(draw: st.DrawFn, most: int = 12) -> tuple[list[str], list[str]]:
    """Characters, and pieces that are each made of two others; all different."""
    characters = draw(st.lists(st.sampled_from(ALPHABET), min_size=2, unique=True))
    pieces = list(characters)
    for _ in range(draw(st.integers(0, most))):
        new = draw(st.sampled_from(pieces)) + draw(st.sampled_from(pieces))
        if new not in pieces and len(new) < 9:
            pieces.append(new)
    return characters, pieces[len(characters) :]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    characters, texts = draw(joined())
    texts += draw(st.lists(st.text(ALPHABET, min_size=2, max_size=4), max_size=3))
    texts = list(dict.fromkeys(texts))
    scores = draw(st.permutations(range(len(texts))))
    if draw(st.booleans()):  # ties
        scores = [score // 3 for score in scores]
    kinds = st.sampled_from([NORMAL, NORMAL, NORMAL, NORMAL, UNUSED, USER_DEFINED])
    pieces = [(text, -float(score), draw(kinds)) for text, score in zip(texts, scores, strict=True)]
    pieces += [(text, -99.0, draw(kinds)) for text in characters]
    pieces += [("<unk>", 0.0, UNKNOWN)]
    names = ["<s>", "</s>", "<pad>", "[INST]", "ab☃"]
    pieces += [(name, 0.0, CONTROL) for name in draw(st.lists(st.sampled_from(names), unique=True))]
    if draw(st.booleans()):
        pieces += BYTES
    at, step = draw(st.integers(0, len(pieces) - 1)), draw(st.sampled_from([1, 2, 3, 7, 31]))
    order = sorted(range(len(pieces)), key=lambda i: ((i * step + at) % len(pieces), i))
    return Layout([pieces[i] for i in order], add_space=draw(st.booleans()))


@settings(max_examples=1500, deadline=None)
@given(layouts(), st.lists(TEXTS, min_size=1, max_size=5))
def test_as_sentencepiece(layout: Layout, texts: list[str]) -> None:
    package = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    reference = package.SentencePieceProcessor(model_proto=layout.proto())
    with layout.through_gguf() as own:
        assert (own.bos_id, own.eos_id) == (reference.bos_id(), reference.eos_id())
        for text in texts:
            ids = reference.encode(text)
            assert own.encode(text) == ids
            assert own.decode(ids) == reference.decode(ids)


@settings(max_examples=100, deadline=None)
@given(layouts(), TEXTS)
def test_through_convert(layout: Layout, text: str) -> None:
    package = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    reference = package.SentencePieceProcessor(model_proto=layout.proto())
    with tempfile.TemporaryDirectory() as folder, layout.through_convert(Path(folder)) as own:
        assert (own.bos_id, own.eos_id) == (reference.bos_id(), reference.eos_id())
        assert own.encode(text) == reference.encode(text)
        assert own.decode(own.encode(text)) == reference.decode(own.encode(text))
