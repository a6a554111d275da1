"""Tokenizers from GGUF metadata: ids, text that round-trips, lists that are wrong."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from environment import real_file
from gguf_files import INT32, STRING, UINT32, File, Key
from gguf_tokenizers import IM_START, KINDS, TOKENIZERS, read
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_keys import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_level_keys,
    chat_model,
    sentencepiece_keys,
)

from pyllama2c import Llama, Tokenizer, TokenizerError, UnsupportedError
from pyllama2c.convert.tiktoken import as_text
from pyllama2c.files.gguf import Gguf
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.byte_level import CHARACTERS
from pyllama2c.tokenizers.gguf import read_tokenizer

pytest.importorskip("tokenizers", reason="byte-level tokenizers need the tokenizers package")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pieces(tokenizer: BaseTokenizer, text: str, **options: Any) -> list[bytes]:
    return [tokenizer.piece(t) for t in tokenizer.encode(text, **options)]


def test_the_same_as_tokenizer_bin(tokenizer_path: Path) -> None:
    reference, own = Tokenizer(tokenizer_path), TOKENIZERS["llama"]
    for text in ("", "abc", "a ab  cde", "日本é", "\n<s>", "x" * 50, "</s><0x41>"):
        assert own.encode(text) == reference.encode(text)
        assert own.decode(own.encode(text, bos=True)) == text


def test_byte_level_merges() -> None:
    tokenizer = TOKENIZERS["gpt2"]
    assert pieces(tokenizer, "hello world") == [b"hello", b" world"]
    assert pieces(tokenizer, "hellé") == [b"hell", "é".encode()]
    assert pieces(tokenizer, "日") == [bytes([b]) for b in "日".encode()]  # half characters


# What each cuts "It's 12345 a/b\n\n x日本3 ΑΒγ" into, merges being there for all of it.
CUTS = {
    "gpt-2": "It|'s| 12345| a|/|b|\n\n| x日本|3| ΑΒγ",
    "smollm": "It|'s| |1|2|3|4|5| a|/|b|\n\n| x日本|3| ΑΒγ",
    "llama-bpe": "It|'s| |123|45| a|/b|\n\n| x日本|3| ΑΒγ",
    "qwen2": "It|'s| |1|2|3|4|5| a|/b|\n\n| x日本|3| ΑΒγ",
    "tekken": "It|'s| |1|2|3|4|5| a|/b|\n\n| x日本|3| ΑΒγ",
    "gpt-4o": "It's| |123|45| a|/b|\n\n| x日本|3| ΑΒγ",
    "deepseek-llm": "It|'|s| |12345| a|/|b|\n|\n| x|日本|3| ΑΒγ",
    "deepseek-coder": "It|'|s| |1|2|3|4|5| a|/|b|\n|\n| x|日本|3| ΑΒγ",
}
NOT_WHOLE = ["dbrx", "smaug-bpe"]  # the expression only
SAME = {
    "gpt-2": ["phi-2", "gigachat", "mellum", "exaone4"],
    "smollm": ["starcoder", "refact", "command-r"],
    "llama-bpe": ["llama3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", *NOT_WHOLE],
    "gpt-4o": ["llama4"],
}  # fmt: skip


@pytest.mark.parametrize("pre", [*CUTS, *(name for names in SAME.values() for name in names)])
def test_pre_tokenizers(pre: str) -> None:
    """What can be joined is, unless the text is cut there first; where merges may be ignored, a
    part that is a piece needs none."""
    same = next((name for name, names in SAME.items() if pre in names), pre)
    parts = [part.encode() for part in CUTS[same].split("|")]
    written = as_text(b"".join(parts))
    n = len(written)
    halves = [(i, j, k) for i in range(n) for j in range(i + 1, n) for k in range(j + 1, n + 1)]
    merges = list(dict.fromkeys((written[i:j], written[j:k]) for i, j, k in halves))
    known = ["<|endoftext|>", *dict.fromkeys([*CHARACTERS, *(a + b for a, b in merges)]), "qzq"]
    file = File(byte_level_keys(pre=pre))
    file.key("tokenizer.ggml.tokens").value = known
    file.key("tokenizer.ggml.token_type").value = [CONTROL] + [NORMAL] * (len(known) - 1)
    file.key("tokenizer.ggml.merges").value = [" ".join(pair) for pair in merges]
    for name in ("bos_token_id", "eos_token_id"):
        file.key(f"tokenizer.ggml.{name}").value = 0
    own = read(file.keys, len(known))
    assert pieces(own, b"".join(parts).decode()) == parts
    whole = same in ("llama-bpe", "tekken") and pre not in NOT_WHOLE
    assert own.add_bos == whole
    assert pieces(own, "qzq") == ([b"qzq"] if whole else [b"q", b"z", b"q"])


def test_unknown_pre_tokenizer() -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer.ggml.pre is 'bloom'; known: gpt-2"):
        read(byte_level_keys(pre="bloom"))


def test_control_tokens_only_where_asked(kind: str) -> None:
    own, start = TOKENIZERS[kind], IM_START[kind]
    text = "<|im_start|>abc<|im_end|>"
    assert start not in own.encode(text) and own.decode(own.encode(text)) == text
    ids = own.encode(text, special=True)
    assert ids[0] == start and own.piece(start) == b""
    assert own.special_text(start) == "<|im_start|>"
    assert own.special_tokens["<|im_end|>"] in own.ends
    # user-defined ones are found in any text
    assert own.encode("~user~")[-1] == own.encode("a~user~")[-1]
    assert own.decode(own.encode("a~user~b")) == "a~user~b"


def test_keys_about_bos_and_spaces(kind: str) -> None:
    keys = KINDS[kind]
    with_bos, without = read(keys(add_bos_token=True)), read(keys(add_bos_token=False))
    assert with_bos.encode_prompt("a") == [1, *without.encode_prompt("a")]
    assert without.encode_prompt("") == [1]  # there is nothing else to begin with
    assert read(keys(add_eos_token=True)).add_eos
    bare = read(sentencepiece_keys(add_space_prefix=False))
    assert bare.piece(bare.encode("ab")[0]) == b"ab"
    assert bare.decode(bare.encode(" ab", bos=True)) == " ab"


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581~")),
)
def test_text_round_trips(name: str, text: str) -> None:
    own = TOKENIZERS[name]
    assert own.decode(own.encode(text)) == text
    assert not own.ends & set(own.encode(text))


@settings(max_examples=200, deadline=None)
@given(st.binary())
def test_bytes_round_trip(data: bytes) -> None:
    own = TOKENIZERS["gpt2"]
    assert own.decode_bytes(own.encode(data)) == data


def test_streams_whole_characters() -> None:
    keys = byte_level_keys()
    with Llama.from_buffer(chat_model(keys).build()) as llama:
        story = llama.generate("日本é", seed=3, max_tokens=150, stop_tokens=[])
        told = list(story)
        assert "".join(told) == llama.tokenizer.decode(story.tokens)
        assert any(byte >= 0x80 for byte in llama.tokenizer.decode_bytes(story.tokens))


def test_a_model_finds_its_tokenizer(kind: str, tmp_path: Path, tokenizer_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(chat_model(KINDS[kind]()).build())
    with Llama(path) as llama:
        assert llama.tokenizer.encode("abc") == TOKENIZERS[kind].encode("abc")
        prompt = llama.generate("abc", max_tokens=3).prompt_tokens
        assert prompt == [1] * (kind == "llama") + llama.tokenizer.encode("abc")
    with Llama(path, tokenizer_path) as llama:
        assert type(llama.tokenizer) is Tokenizer
    path.with_name("tokenizer.bin").write_bytes(tokenizer_path.read_bytes())
    path.write_bytes(chat_model([]).build())
    with Llama(path) as llama:
        assert type(llama.tokenizer) is Tokenizer


def changed(keys: list[Key], name: str, value: Any = None, kind: int | None = None) -> list[Key]:
    key = next(key for key in keys if key.name == f"tokenizer.ggml.{name}")
    if value is None:
        return [other for other in keys if other is not key]
    key.value, key.kind = value, key.kind if kind is None else kind
    return keys


def with_entry(keys: list[Key], name: str, i: int, value: Any) -> list[Key]:
    key = next(key for key in keys if key.name == f"tokenizer.ggml.{name}")
    key.value = [*key.value[:i], value, *key.value[i + 1 :]]
    return keys


SPM, BPE = sentencepiece_keys, byte_level_keys
HOSTILE = [
    (changed(SPM(), "tokens"), "tokens is missing; it must be of type list"),
    (changed(SPM(), "tokens", ["a"]), "tokens has 1 entries; the model's vocab_size is 300"),
    (
        changed(SPM(), "tokens", [1] * 300, INT32),
        "tokens must be of type str",
    ),
    (changed(SPM(), "tokens", "text"), "tokens is 'text'; it must be of type list"),
    (changed(SPM(), "scores"), "scores is missing"),
    (changed(SPM(), "token_type"), "token_type is missing"),
    (
        changed(SPM(), "scores", [1] * 300, INT32),
        "scores must be of type float",
    ),
    (changed(SPM(), "bos_token_id", 300), "bos_token_id is 300; the model's ids are 0 to 299"),
    (changed(SPM(), "bos_token_id", "x", STRING), "bos_token_id is 'x'; it must be of type int"),
    (with_entry(SPM(), "token_type", 260, 7), "piece 260 has type 7, not 1 to 6"),
    (with_entry(SPM(), "token_type", 260, -1), "piece 260 has type -1"),
    (with_entry(SPM(), "scores", 260, math.nan), "piece 260: score is NaN"),
    (with_entry(SPM(), "tokens", 260, ""), "piece 260: length is 0"),
    (
        with_entry(SPM(), "tokens", 260, "x" * 5000),
        "piece 260: length is 5000; it must be 0 to 4096",
    ),
    (with_entry(SPM(), "tokens", 260, "b"), "pieces 260 and 261 are the same"),
    (with_entry(SPM(), "tokens", 7, "<0x05>"), "pieces 7 and 8 are the same byte, 0x05"),
    (with_entry(SPM(), "tokens", 7, "<0x4>"), "piece 7: it is a byte, but not called <0xHH>"),
    (with_entry(BPE(), "tokens", 260, "日"), r"piece 260 \('日'\) is not byte-level text"),
    (with_entry(BPE(), "tokens", 260, ""), r"piece 260 \(''\) is not byte-level text"),
    (with_entry(BPE(), "tokens", 262, "he"), "pieces 259 and 262 are the same"),
    (with_entry(BPE(), "merges", 0, "h"), "merge 0 .* does not join two pieces into a third"),
    (with_entry(BPE(), "merges", 0, "h x"), "merge 0 .* does not join two pieces into a third"),
    (
        changed(BPE(), "merges", [1], INT32),
        "merges must be of type str",
    ),
    (changed(BPE(), "model", "t5"), "tokenizer.ggml.model is 't5'; known: llama, gpt2"),
    (changed(BPE(), "model", 1, UINT32), "tokenizer.ggml.model is 1; it must be of type str"),
]


@pytest.mark.parametrize(("keys", "message"), HOSTILE)
def test_hostile_lists(keys: list[Key], message: str) -> None:
    with pytest.raises((TokenizerError, UnsupportedError), match=message):
        read(keys)


def test_bytes_without_a_token() -> None:
    keys = with_entry(byte_level_keys(), "token_type", 3 + 4, UNUSED)
    with pytest.raises(TokenizerError, match="no token for byte 0x04"):
        read(keys).encode("a\x04b")


def test_no_bos() -> None:
    own = read(changed(sentencepiece_keys(), "bos_token_id", 2**32 - 1))
    assert own.bos_id == -1 and not own.add_bos
    with pytest.raises(TokenizerError, match="has no BOS"):
        own.encode("a", bos=True)


def test_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'pyllama2c\[gguf\]'"):
        read(byte_level_keys())


def test_llama_2(tmp_path: Path) -> None:
    """Llama 2's tokenizer.model as GGUF has the ids of its tokenizer.bin."""
    gguf = pytest.importorskip("gguf", reason="needs the gguf package")
    from pyllama2c.convert.sentencepiece_model import read_sentencepiece
    from pyllama2c.convert.writer import add_vocabulary

    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add_vocabulary(writer, read_sentencepiece(real_file("llama2_tokenizer.model"), 32000))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    reference = Tokenizer(real_file("llama2_tokenizer.bin"))
    with Gguf(path) as file:
        own = read_tokenizer(file, 32000)
    for text in ("Hello world", "  a\tb\n", "日本 é ☃ 😀", "<s>x</s>", "1234 don't", "x" * 200):
        assert own.encode(text) == reference.encode(text)


@pytest.mark.parametrize("type_", [CONTROL, UNKNOWN, USER_DEFINED])
def test_bytes_whose_token_is_something_else_too(type_: int) -> None:
    """Such as "!", which is padding as well."""
    keys = with_entry(byte_level_keys(), "token_type", 3 + ord("!"), type_)
    tokenizer = read(keys)
    assert tokenizer.encode("hi!!") == [3 + byte for byte in b"hi!!"]
    assert tokenizer.decode(tokenizer.encode("hi!!")) == "hi!!"


def test_no_merges() -> None:
    tokenizer = read(changed(byte_level_keys(), "merges"))
    assert tokenizer.encode("hello é") == [3 + byte for byte in "hello é".encode()]


def test_a_newline_that_ends_a_text(kind: str) -> None:
    """EOS may be a character, which texts still have."""
    file = File(KINDS[kind]())
    character = "a" if kind == "llama" else "Ċ"
    number = file.key("tokenizer.ggml.tokens").value.index(character)
    file.key("tokenizer.ggml.eos_token_id").value = number
    tokenizer = read(file.keys)
    assert tokenizer.eos_id == number and number in tokenizer.ends
    ids = tokenizer.encode("!a\n!")
    assert number in ids and tokenizer.decode(ids) == "!a\n!"


@pytest.mark.parametrize(
    ("pre", "character"), [("qwen2", " "), ("llama-bpe", "\t"), ("tekken", "A"), ("gpt-4o", "Ж")]
)
def test_a_run_that_is_too_long_to_be_split(pre: str, character: str) -> None:
    tokenizer = read(byte_level_keys(pre=pre))
    with pytest.raises(
        TokenizerError, match=r"run of 11000000 characters like .*; the limit is 5000000"
    ):
        tokenizer.encode("a." + character * 11_000_000 + "!")
