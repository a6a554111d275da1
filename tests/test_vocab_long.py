"""Random vocabularies of all layouts encode and decode as the packages that they are from do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

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
STRETCHES = [*ALPHABET, " ", " ", "z", "☃", "\n", "<s>", "[INST]", "ab"]
TEXTS = st.lists(st.sampled_from(STRETCHES), max_size=25).map("".join)


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
def shuffled(draw: st.DrawFn, things: list[Any]) -> list[Any]:
    """In another order, from few choices: st.permutations makes one for each thing."""
    at, step = draw(st.integers(0, len(things) - 1)), draw(st.sampled_from([1, 2, 3, 7, 31]))
    order = sorted(range(len(things)), key=lambda i: ((i * step + at) % len(things), i))
    return [things[i] for i in order]


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
    return Layout(draw(shuffled(pieces)), add_space=draw(st.booleans()))


@settings(max_examples=4000, deadline=None)
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


@settings(max_examples=4000, deadline=None)
@given(layouts(), TEXTS)
def test_through_convert(layout: Layout, text: str) -> None:
    package = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    reference = package.SentencePieceProcessor(model_proto=layout.proto())
    with tempfile.TemporaryDirectory() as folder, layout.through_convert(Path(folder)) as own:
        assert (own.bos_id, own.eos_id) == (reference.bos_id(), reference.eos_id())
        assert own.encode(text) == reference.encode(text)
        assert own.decode(own.encode(text)) == reference.decode(own.encode(text))


SCHEMES = ("every", "always", "first", "never")


def json_tokenizer(data: st.DataObject) -> Any:
    """A random tokenizer of the `tokenizers` package: BPE with spaces as SentencePiece has them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    characters, texts = data.draw(joined())
    never = ["xyz"] if texts and data.draw(st.booleans()) else []  # which no merge makes
    names = [*characters, *texts, "<unk>", "<s>", *never]
    has_bytes = data.draw(st.booleans())
    names += [text for text, _, _ in BYTES] if has_bytes else []
    vocabulary = {text: i for i, text in enumerate(data.draw(shuffled(names)))}
    every = [
        (text[:i], text[i:])
        for text in texts
        for i in range(1, len(text))
        if text[:i] in vocabulary and text[i:] in vocabulary
    ]
    merges = every
    if data.draw(st.booleans()) and every:
        merges = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=has_bytes, fuse_unk=True
    )
    tokenizer, scheme = Tokenizer(model), data.draw(st.sampled_from(SCHEMES))
    if scheme == "every" or data.draw(st.booleans()):
        replace = normalizers.Replace(" ", SPACE)
        steps = [normalizers.Prepend(SPACE), replace] if scheme == "every" else [replace]
        if scheme in ("every", "never"):
            tokenizer.normalizer = normalizers.Sequence(steps)
    if tokenizer.normalizer is None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme=scheme, split=data.draw(st.booleans())
        )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        steps if scheme == "never" else [*steps, decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    plain = ["ab", "b", "abc", "~user~", f"{SPACE}a", "ab "] if merges else ["~user~", "ab "]
    plain = data.draw(st.lists(st.sampled_from(plain)))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in plain])
    return tokenizer


@settings(max_examples=4000, deadline=None)
@given(st.data())
def test_as_tokenizers(data: st.DataObject) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    from pyllama2c.convert.tokenizer_json import read_tokenizer_json
    from pyllama2c.convert.writer import check_vocabulary

    reference = json_tokenizer(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        reference.save(str(path))
        own = check_vocabulary(read_tokenizer_json(path, reference.get_vocab_size() + 3))
    stretches = [s for s in STRETCHES if s != "<s>"] + ["~user~", "xyz"]
    for text in data.draw(st.lists(st.lists(st.sampled_from(stretches)).map("".join), max_size=5)):
        ids = reference.encode(text).ids
        assert own.encode(text) == ids
        assert own.decode(ids) == reference.decode(ids)
