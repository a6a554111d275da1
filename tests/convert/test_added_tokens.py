"""Tokens that were added to a tokenizer are found where the `tokenizers` package finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from tokenizer_files import MERGES, byte_level, sentencepiece
from vocabularies import as_opened, like_sentencepiece

pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from pyllama2c import UnsupportedError
from pyllama2c.convert.tokenizer_files import read_vocabulary
from pyllama2c.tokenizers.base import BaseTokenizer

VOCAB = 600
SPACES = ["", " ", "\n", "\t ", "\x1c", "\x85\u2003", "\u3000"]
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
SOURCES = {
    "bytes": byte_level(),
    "every": like_sentencepiece(MERGES),
    "first": like_sentencepiece(
        MERGES,
        normalizer=None,
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
    ),
}


def token(text: str, **flags: bool) -> dict[str, Any]:
    return {"content": text} | dict.fromkeys(FLAGS, False) | flags


def with_added(source: dict[str, Any], *added: dict[str, Any]) -> dict[str, Any]:
    """Tokens with the id that they have as pieces, else with the next one."""
    old = [token(e["content"], special=e["special"]) for e in source["added_tokens"]]
    ids = dict(source["model"]["vocab"])
    entries = [{**t, "id": ids.setdefault(t["content"], len(ids))} for t in [*old, *added]]
    return source | {"added_tokens": entries, "post_processor": None}


def both(folder: Path, source: dict[str, Any], **files: Any) -> tuple[BaseTokenizer, Any]:
    """A folder's tokenizer, converted and opened, and the package's."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    path.write_text(json.dumps(source))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return as_opened(read_vocabulary(folder, VOCAB)), Tokenizer.from_file(str(path))


def encoded(theirs: Any, text: str) -> list[int]:
    try:
        return list(theirs.encode(text).ids)
    except BaseException as error:  # the package's own panics are no Exception
        if type(error).__name__ != "PanicException":
            raise
        reject()  # "AddedVocabulary bad split": nothing to compare with


@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.sampled_from([*SOURCES]), st.data())
def test_white_space_beside_added_tokens(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    special = data.draw(st.lists(st.sampled_from(["<|user|>", "</s> x", "~\n"]), unique=True))
    plain = data.draw(st.lists(st.sampled_from(["~y~", "\n\n", "\n~x~"]), unique=True))
    strips = st.fixed_dictionaries({"lstrip": st.booleans(), "rstrip": st.booleans()})
    added = [token(text, special=True, **data.draw(strips)) for text in special]
    # What is found in the normalized text is found second, as ours are that are not special.
    normalized = kind != "every"
    added += [token(t, normalized=normalized, **data.draw(strips)) for t in plain[: 9 * normalized]]
    ours, theirs = both(tmp_path, with_added(SOURCES[kind], *added))
    stretches = [*SPACES, "a", "ab", *special, *plain]
    for text in data.draw(st.lists(st.lists(st.sampled_from(stretches)).map("".join), max_size=5)):
        assert ours.encode(text, special=True) == encoded(theirs, text)


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_the_settings_have_the_last_word(kind: str, tmp_path: Path) -> None:
    """As in transformers: tokenizer_config.json says again what was added, maybe otherwise."""
    source = like_sentencepiece(MERGES)
    (tmp_path / "tokenizer.json").write_text(json.dumps(with_added(source, token("<|user|>"))))
    if kind == "tokenizer.model":
        (tmp_path / kind).write_bytes(sentencepiece())
    number = str(len(source["model"]["vocab"]))
    decoder = {number: token("<|user|>", special=True, rstrip=True)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    ours = as_opened(read_vocabulary(tmp_path, VOCAB))
    (user,) = ours.encode("<|user|>", special=True)
    assert ours.encode("<|user|> \n<|user|>\n", special=True) == [user, user]
    assert user not in ours.encode("<|user|>")


@pytest.mark.parametrize("value", [3, True, "ab", [None, 7, {}, "none such"], {"a": None}])
def test_lists_of_special_tokens_that_are_none(value: Any, tmp_path: Path) -> None:
    source, settings = with_added(byte_level()), {"extra_special_tokens": value}
    ours, theirs = both(tmp_path, source, tokenizer_config=settings)
    assert ours.encode("abab", special=True) == theirs.encode("abab").ids


def test_every_named_token_has_an_id(tmp_path: Path) -> None:
    names = {name: f"<{name}>" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
    settings = {f"{name}_token": text for name, text in names.items()}
    source = with_added(byte_level(), *(token(text, special=True) for text in names.values()))
    ours, theirs = both(tmp_path, source, tokenizer_config=settings)
    for name, text in names.items():
        assert getattr(ours, f"{name}_id") == theirs.token_to_id(text)
        assert ours.special_text(theirs.token_to_id(text)) == text


def test_bytes_without_merges(tmp_path: Path) -> None:
    source = byte_level(merges=[])
    ours, theirs = both(tmp_path, with_added(source))
    for text in ("ab cd", "é"):
        assert ours.encode(text) == theirs.encode(text).ids


def test_what_a_tokenizer_model_cannot_say(tmp_path: Path) -> None:
    """Its user-defined tokens are found by the engine, as SentencePiece finds them."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece())
    for flag in ("lstrip", "rstrip", "single_word"):
        decoder = {"266": token("~x~", **{flag: True})}
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({"added_tokens_decoder": decoder}))
        with pytest.raises(UnsupportedError, match=f"the added token '~x~' is {flag}"):
            read_vocabulary(tmp_path, VOCAB)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("text", ["a", "b", "é", "☃"])
def test_a_single_character_stays_text(
    text: str, kind: str, special: bool, named: bool, tmp_path: Path
) -> None:
    """Such as the "!" that fine-tunes have for padding: wherever a text has the character, it is
    the token, and the token is the character."""
    source = with_added(SOURCES[kind], token(text, special=special))
    ours, theirs = both(tmp_path, source, tokenizer_config={"pad_token": text} if named else {})
    for said in ("ab", f"a{text}{text}b", "cab é日é", "語"):
        ids = ours.encode(said)
        assert ids == ours.encode(said, special=True) == theirs.encode(said).ids
        if kind == "bytes" and text != "é":  # which is how a byte is written
            assert ours.decode(ids) == said


@pytest.mark.parametrize("kind", SOURCES)
def test_named_tokens_are_special(kind: str, tmp_path: Path) -> None:
    """Also those that nobody added: transformers adds them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "ab"}
    for changes in ({}, {"pad_token": "b"}, {"pad_token": "<s>", "extra_special_tokens": ["ab"]}):
        ours, _ = both(tmp_path, with_added(SOURCES[kind]), tokenizer_config=settings | changes)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in ("abab", " ab", "b ab bab"):
            assert ours.encode(text, special=True) == theirs(text).input_ids
