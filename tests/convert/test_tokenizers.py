"""Tokenizers of model folders: what reaches the GGUF file, and what is refused."""

from __future__ import annotations

import contextlib
import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from environment import real_file
from folders import Model, write_hugging_face, write_meta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_files import LLAMA3_PRE, MERGES, SPACE, byte_level, sentencepiece, tiktoken
from vocabularies import block, like_sentencepiece, varint

pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")

from pyllama2c import CheckpointWarning, Llama, Llama2cError, TokenizerError, UnsupportedError
from pyllama2c.convert import convert
from pyllama2c.convert.sentencepiece_model import read_sentencepiece
from pyllama2c.convert.tiktoken import read_tiktoken
from pyllama2c.convert.tokenizer_files import read_vocabulary
from pyllama2c.convert.tokenizer_json import read_tokenizer_json
from pyllama2c.files.gguf import Gguf
from pyllama2c.tokenizers.pre_tokenizers import PRE_TOKENIZERS

VOCAB = 600


def converted(folder: Path) -> dict[str, Any]:
    """The metadata of a converted folder."""
    target = folder.parent / "out.gguf"
    convert(folder, target)
    with Gguf(target) as file:
        return {key.removeprefix("tokenizer.ggml."): file[key] for key in file}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hugging_face(tmp_path / "m", Model(vocab_size=VOCAB, dim=32, n_layers=1))


# ---- SentencePiece's protobuf ----


def test_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    read = converted(folder)
    assert read["model"] == "llama"
    assert read["tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert read["tokens"][259:266] == [SPACE, "a", "b", "é", SPACE + "a", "ab", SPACE + "ab"]
    assert read["scores"][259:266] == [-float(i) for i in range(7)]
    assert read["token_type"][:4] == [2, 3, 3, 6] and read["token_type"][259] == 1
    # The model knows more ids than the tokenizer has pieces.
    assert len(read["tokens"]) == VOCAB and read["tokens"][266] == "[PAD266]"
    assert set(read["token_type"][266:]) == {5}
    ids = [read.get(f"{name}_token_id") for name in ("unknown", "bos", "eos", "padding")]
    assert ids == [0, 1, 2, None]
    flags = [read[f"add_{name}"] for name in ("bos_token", "eos_token", "space_prefix")]
    assert flags == [True, False, True]


def test_sentencepiece_package_agrees() -> None:
    package = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    path = real_file("llama2_tokenizer.model")
    theirs, ours = package.SentencePieceProcessor(str(path)), read_sentencepiece(path, 32000)
    for i, (text, kind, score) in enumerate(ours.rows()):
        assert (theirs.id_to_piece(i), theirs.get_score(i)) == (text, score)
        flags = (theirs.is_unknown(i), theirs.is_control(i), theirs.is_byte(i))
        assert flags == (kind == 2, kind == 3, kind == 6)
    assert (ours.bos, ours.eos, ours.unk, ours.pad, ours.add_space) == (1, 2, 0, None, True)


def test_trained_by_sentencepiece(tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    text = tmp_path / "text.txt"
    text.write_text("a cat and a dog sat on a mat with a rat and a bat\n" * 20)
    options = {"input": str(text), "model_prefix": str(tmp_path / "m"), "vocab_size": 300}
    options |= {"byte_fallback": True, "minloglevel": 2}
    package.SentencePieceTrainer.train(
        **options, model_type="bpe", normalization_rule_name="identity",
        remove_extra_whitespaces=False, pad_id=3, add_dummy_prefix=False
    )  # fmt: skip
    ours = read_sentencepiece(tmp_path / "m.model", 300)
    assert (ours.bos, ours.eos, ours.unk, ours.pad, ours.add_space) == (1, 2, 0, 3, False)
    package.SentencePieceTrainer.train(**options, model_type="bpe")
    with pytest.warns(CheckpointWarning, match="merges runs of spaces"):
        read_sentencepiece(tmp_path / "m.model", 300)
    options["vocab_size"] = 280
    package.SentencePieceTrainer.train(**options, model_type="unigram", hard_vocab_limit=False)
    with pytest.raises(UnsupportedError, match="not of type BPE"):
        read_sentencepiece(tmp_path / "m.model", 300)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\x7f" + b"x" * 5,
        sentencepiece()[:-3],
        sentencepiece() + b"\x0b",
        sentencepiece([("a", float("nan"), 1)]),
        sentencepiece([("a", 0.0, 7)]),
        sentencepiece([("a" * 513, 0.0, 1)]),
        sentencepiece([("a", 0.0, 1)] * (VOCAB + 1)),
        block(1, block(1, b"\xff\xfe")),
        varint(1 << 3) + varint(5),
        block(1, varint(1 << 3) + varint(5)),
        block(1, block(1, b"a") + block(2, b"abc")),
    ],
)
def test_damaged_sentencepiece(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        converted(folder)


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_change_of_a_sentencepiece_model(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(sentencepiece([("<unk>", 0, 2), ("<s>", 0, 3), ("a", -1, 1), ("b", -2, 1)]))
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with warnings.catch_warnings(), contextlib.suppress(Llama2cError):
        warnings.simplefilter("ignore")
        assert len(read_sentencepiece(path, 10).rows()) == 10


def test_added_tokens_and_settings(folder: Path) -> None:
    """What was added to a tokenizer.model, from each file that may say it."""
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    config = {"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    config |= {"add_bos_token": False, "add_eos_token": True, "chat_template": "{{ bos_token }}"}
    decoder = {"266": {"content": "<|im_end|>", "special": True}, "267": {"content": "<pad>"}}
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    first = converted(folder)
    assert first["tokens"][265:269] == [SPACE + "ab", "<|im_end|>", "<pad>", "[PAD268]"]
    assert first["token_type"][265:269] == [1, 3, 3, 5]  # what is named is special
    ids = [first[f"{name}_token_id"] for name in ("unknown", "bos", "eos", "padding")]
    assert ids == [0, 1, 266, 267]
    assert (first["add_bos_token"], first["add_eos_token"]) == (False, True)
    assert first["tokenizer.chat_template"] == "{{ bos_token }}"
    path.write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 266, "<pad>": 267}')
    assert converted(folder) == first  # <|im_end|> is a control token, whatever the file says
    added = [{"id": 266, "content": "<|im_end|>", "special": True}, {"id": 267, "content": "<pad>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert converted(folder) == first
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 600}')
    with pytest.warns(CheckpointWarning, match=r"'<\|im_end\|>' \(600\)"):
        assert converted(folder)["eos_token_id"] == 2


def test_ids_of_config_json(folder: Path) -> None:
    """A list of ends, as Llama 3.1 has it; ids that are no piece's are none."""
    (folder / "tokenizer.model").write_bytes(sentencepiece([("<unk>", 0, 2), ("a", 0, 1)]))
    config = json.loads((folder / "config.json").read_text())
    ids = {"bos_token_id": 1, "eos_token_id": [0, 1], "pad_token_id": 9999}
    (folder / "config.json").write_text(json.dumps(config | ids))
    read = read_vocabulary(folder, VOCAB)
    assert (read.bos, read.eos, read.pad) == (1, 0, None)


# ---- More pieces than the model has rows, or fewer ----


def filled(n: int) -> list[tuple[str, float, int]]:
    """`n` pieces of SentencePiece's."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]
    return [*pieces, *((f"p{i}", -float(i), 1) for i in range(n - 259))]


@pytest.mark.parametrize("source", ["tokenizer.json", "decoder", "added_tokens.json", "protobuf"])
def test_tokens_beyond_the_embedding(source: str, folder: Path) -> None:
    """[PAD] with the first id that the model has no row for, as fine-tunes come, from each file
    that may say so: left out with one warning; the padding id with it."""
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    settings: dict[str, Any] = {"pad_token": "[PAD]", "bos_token": "<s>"}
    pad = {"id": VOCAB, "content": "[PAD]", "special": True}
    more = {"id": VOCAB + 7, "content": "<more>", "special": False}
    if source == "tokenizer.json":
        (folder / source).write_text(json.dumps({"added_tokens": [pad, more]}))
    elif source == "decoder":
        settings["added_tokens_decoder"] = {str(t["id"]): t for t in (pad, more)}
    elif source == "added_tokens.json":
        (folder / source).write_text(json.dumps({"[PAD]": VOCAB, "<more>": VOCAB + 7}))
    else:
        unused = [(f"<unused{i}>", 0.0, 5) for i in range(6)]
        pieces = [*filled(VOCAB), ("[PAD]", 0.0, 3), *unused, ("<more>", 0.0, 4)]
        (folder / "tokenizer.model").write_bytes(sentencepiece(pieces))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.warns(CheckpointWarning) as caught:
        read = converted(folder)
    (message,) = [str(w.message) for w in caught]
    assert "0 to 599" in message and "'[PAD]' (600)" in message and "'<more>' (607)" in message
    assert len(read["tokens"]) == VOCAB and "[PAD]" not in read["tokens"]
    assert [read.get(f"{name}_token_id") for name in ("bos", "eos", "padding")] == [1, 2, None]


def test_tokens_beyond_the_embedding_of_byte_level(folder: Path) -> None:
    """Also where model.vocab lists an added token as well."""
    source = byte_level()
    source["added_tokens"].append({"id": VOCAB, "content": "[PAD]", "special": True})
    source["model"]["vocab"]["[PAD]"] = VOCAB
    (folder / "tokenizer.json").write_text(json.dumps(source))
    with pytest.warns(CheckpointWarning, match=r"'\[PAD\]' \(600\)"):
        read = converted(folder)
    assert len(read["tokens"]) == VOCAB and read["tokens"][262:264] == ["<extra>", "[PAD263]"]


def test_text_beyond_the_embedding(folder: Path) -> None:
    """A piece of text that the model has no row for is no padding."""
    (folder / "tokenizer.model").write_bytes(sentencepiece(filled(VOCAB + 1)))
    with pytest.raises(TokenizerError, match="'p341' has id 600; the model's ids are 0 to 599"):
        converted(folder)


def test_holes_among_the_ids(folder: Path) -> None:
    """Ids without a piece are filled with unused ones that no text becomes, whatever their name."""
    source = byte_level()
    source["added_tokens"][2] |= {"id": 599, "content": "[PAD263]"}
    (folder / "tokenizer.json").write_text(json.dumps(source))
    read = converted(folder)
    assert read["tokens"][262:264] == ["[PAD262]", "[PAD263]"] and read["tokens"][599] == "[PAD263]"
    assert set(read["token_type"][262:599]) == {5} and read["token_type"][599] == 4
    with Llama(folder.parent / "out.gguf") as llama:
        ids = llama.tokenizer.encode("a[PAD263][PAD264]", bos=False)
    assert ids[:2] == [ord("a"), 599] and 264 not in ids


# ---- Byte-level BPE ----


def test_smollm(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(byte_level()))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<gone>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ 'é' }}")
    read = converted(folder)
    assert (read["model"], read["pre"]) == ("gpt2", "smollm")
    assert read["tokens"][ord(" ")] == "Ġ" and read["tokens"][256:264] == [
        *("ab", "Ġab", "cd", "abcd", "<|im_start|>", "<|im_end|>", "<extra>", "[PAD263]")
    ]
    assert read["token_type"][255:264] == [1, 1, 1, 1, 1, 3, 3, 4, 5]
    assert read["merges"] == ["a b", "Ġ ab", "c d", "ab cd"] and "scores" not in read
    assert (read["bos_token_id"], read["eos_token_id"]) == (260, 261)
    flags = [read[f"add_{name}"] for name in ("bos_token", "eos_token", "space_prefix")]
    assert flags == [False] * 3
    assert read["tokenizer.chat_template"] == "{{ 'é' }}"


def test_llama_3(folder: Path) -> None:
    """Its split, BOS by post-processor, merges as pairs, the template of several called default."""
    source = byte_level(LLAMA3_PRE, ignore_merges=True, merges=[["a", "b"], ["Ġ", "ab"]])
    single = [{"SpecialToken": {"id": "<|im_start|>"}}, {"Sequence": {"id": "A"}}]
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [260], "tokens": ["<|im_start|>"]}}
    template = {"type": "TemplateProcessing", "single": single, "special_tokens": special}
    steps = [{"type": "ByteLevel"}, template]
    source["post_processor"] = {"type": "Sequence", "processors": steps}
    (folder / "tokenizer.json").write_text(json.dumps(source))
    templates = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    config = {"bos_token": "<|im_start|>", "add_bos_token": False, "chat_template": templates}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    read = converted(folder)
    assert (read["pre"], read["merges"]) == ("llama-bpe", ["a b", "Ġ ab"])
    assert (read["add_bos_token"], read["add_eos_token"]) == (True, False)
    assert read["tokenizer.chat_template"] == "d"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "neither Llama 3, SmolLM, GPT-2 nor"),
        ({"pre_tokenizer": None}, "neither Llama 3"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "neither Llama 3"),
        ({"normalizer": {"type": "NFC"}}, "normalizes"),
        ({"model": byte_level()["model"] | {"type": "Unigram"}}, "of type Unigram"),
        ({"model": byte_level()["model"] | {"ignore_merges": True}}, "ignore_merges"),
        ({"model": byte_level()["model"] | {"merges": ["a b c"]}}, "is not two pieces"),
        ({"model": byte_level()["model"] | {"merges": [["a b", "c"]]}}, "contains a space"),
        ({"model": byte_level()["model"] | {"merges": [3]}}, "is not two pieces"),
        ({"model": byte_level()["model"] | {"vocab": {"a": 0, "b": 0}}}, "have the same id"),
        ({"model": byte_level()["model"] | {"vocab": {"a": VOCAB}}}, "has id 600"),
        ({"model": byte_level()["model"] | {"vocab": {"a": -1}}}, "has id -1"),
        ({"model": byte_level()["model"] | {"vocab": {"a": "0"}}}, "has id 0"),
        ({"model": byte_level()["model"] | {"vocab": ["a"]}}, "vocab is not a JSON object"),
        ({"model": 3}, "model is not a JSON object"),
        ({"added_tokens": [{"id": 5}]}, "'None' has id 5"),
        ({"added_tokens": "x"}, "must be an array"),
    ],
)
def test_refused_tokenizer_json(changes: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(byte_level() | changes))
    with pytest.raises((TokenizerError, UnsupportedError), match=message) as caught:
        converted(folder)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("pre", ["qwen2", "tekken", "gpt-4o", "dbrx", "deepseek-coder"])
def test_other_pre_tokenizers(pre: str, tmp_path: Path) -> None:
    """Recognized by their expressions, those of Llama 3 by what becomes of whole words, too."""
    known = PRE_TOKENIZERS[pre]
    split = LLAMA3_PRE["pretokenizers"][0]
    steps = [split | {"pattern": {"Regex": expression}} for expression in known.expressions]
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [*steps, LLAMA3_PRE["pretokenizers"][1]]}
    path = tmp_path / "tokenizer.json"
    source = byte_level(pre_tokenizer, ignore_merges=known.ignore_merges)
    path.write_text(json.dumps(source))
    assert read_tokenizer_json(path, VOCAB).pre == pre


def test_gpt2(tmp_path: Path) -> None:
    pre = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(byte_level(pre)))
    assert read_tokenizer_json(path, VOCAB).pre == "gpt-2"


def test_no_valid_unicode(folder: Path) -> None:
    source = byte_level()
    source["added_tokens"][0]["content"] = "\ud800"
    (folder / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(TokenizerError, match=r"/tokenizer.json: its tokenizer has invalid Unicode"):
        converted(folder)
    (folder / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(TokenizerError, match="is not JSON"):
        converted(folder)


# ---- SentencePiece's BPE in a tokenizer.json ----


def test_json_of_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(like_sentencepiece(MERGES)))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    read = converted(folder)
    assert (read["model"], read["bos_token_id"], read["add_bos_token"]) == ("llama", 1, True)
    assert read["add_space_prefix"] is True and "merges" not in read
    assert read["token_type"][:4] == [2, 3, 3, 6]
    scores = dict(zip(read["tokens"], read["scores"], strict=True))
    assert scores[SPACE + "a"] > scores["ab"] > scores[SPACE + "ab"] > scores["bb"] > scores["a"]


def test_metaspace(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for scheme, added in (("always", True), ("first", True), ("never", False)):
        pre = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme}
        source = like_sentencepiece(MERGES, normalizer=None, pre_tokenizer=pre)
        path.write_text(json.dumps(source))
        v = read_tokenizer_json(path, VOCAB)
        assert (v.add_space, v.prepend_scheme, v.split_spaces) == (added, scheme, True)


def with_model(**changes: Any) -> dict[str, Any]:
    source = like_sentencepiece(MERGES)
    return source | {"model": source["model"] | changes}


def with_added(**flags: bool) -> dict[str, Any]:
    source = like_sentencepiece(MERGES)
    token = {"id": 500, "content": "x", "special": False} | flags
    return source | {"added_tokens": [*source["added_tokens"], token]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (like_sentencepiece(MERGES, normalizer=None), "not SentencePiece's spaces"),
        (like_sentencepiece(["a" * 400 + " " + "b" * 400]), "more than 512 characters"),
        (like_sentencepiece(MERGES, normalizer={"type": "NFC"}), "not SentencePiece's spaces"),
        (
            like_sentencepiece(
                MERGES,
                normalizer={"type": "Lowercase"},
                pre_tokenizer={"type": "Metaspace", "replacement": SPACE},
            ),
            "normalizes or splits text by .'Lowercase'",
        ),
        (with_model(ignore_merges=True), "leaves whole words unmerged"),
        (with_model(end_of_word_suffix="</w>"), "model.end_of_word_suffix is '</w>'"),
        (with_model(byte_fallback=False), "fuse_unk is false"),
        (with_added(single_word=True), "the added token 'x' is single_word"),
        (with_added(single_word=True, special=True), "the added token 'x' is single_word"),
        (with_added(normalized=True), "the added token 'x' is normalized"),
        (with_added(normalized=True, special=True), "the added token 'x' is normalized"),
    ],
)
def test_refused_json_of_sentencepiece(source: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises((TokenizerError, UnsupportedError), match=message):
        converted(folder)


# ---- Llama 3's tokenizer.model ----


def test_tiktoken(tmp_path: Path) -> None:
    """Merges are found again from the ranks, special tokens have Llama 3's names and places."""
    merges = [(b"a", b"b"), (b" ", b"ab"), (b"\xc3", b"\xa9"), (b"ab", b"ab"), (b" ab", b"ab")]
    pieces = [bytes([i]) for i in range(255, -1, -1)] + [a + b for a, b in merges]
    pieces.append(b"zzzz")  # which nothing is joined into, only found whole
    model = Model(vocab_size=len(pieces) + 256, dim=32, n_layers=1, head_size=8)
    folder = write_meta(tmp_path / "models" / "m", model)
    (folder.parent / "tokenizer.model").write_bytes(tiktoken(pieces))
    read = converted(folder)
    assert (read["model"], read["pre"]) == ("gpt2", "llama-bpe")
    assert read["merges"] == ["a b", "Ġ ab", "Ã ©", "ab ab", "Ġab ab"]
    n = len(pieces)
    special = {name: read["tokens"].index(name) - n for name in read["tokens"][n:]}
    assert special["<|begin_of_text|>"] == 0 and special["<|end_of_text|>"] == 1
    assert special["<|start_header_id|>"] == 6 and special["<|end_header_id|>"] == 7
    assert special["<|eot_id|>"] == 9 and special["<|reserved_special_token_0|>"] == 2
    assert special["<|reserved_special_token_4|>"] == 8
    assert special["<|reserved_special_token_5|>"] == 10
    assert special["<|reserved_special_token_250|>"] == 255
    assert set(read["token_type"][n:]) == {3}
    ids = [read[f"{name}_token_id"] - n for name in ("bos", "eos", "eot")]
    assert ids == [0, 1, 9] and read["add_bos_token"]


def test_tiktoken_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tiktoken([b"a", b"b"]))
    with pytest.raises(UnsupportedError, match="has 2 pieces"):
        read_tiktoken(path, 300)
    for damage in (b"YQ== 0\nYg== 2\n", b"YQ== 0\nYQ\n", b"YQ== x\n", b"Y!== 0\n"):
        path.write_bytes(damage)
        with pytest.raises(TokenizerError):
            read_tiktoken(path, 258)


def test_which_file(folder: Path) -> None:
    """SentencePiece's own file before its JSON; Llama 3's JSON before its own file."""
    (folder / "tokenizer.json").write_text(json.dumps(byte_level()))
    (folder / "tokenizer.model").write_bytes(tiktoken([b"a"]))
    assert converted(folder)["model"] == "gpt2"
    source = like_sentencepiece(MERGES)
    (folder / "tokenizer.json").write_text(json.dumps(source))
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    assert converted(folder)["scores"][259] == 0.0
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="--no-tokenizer"):
        converted(folder)


def test_the_tokenizers_package_agrees(folder: Path) -> None:
    """What SentencePiece's joining by our scores gives is what the tokenizer.json gives."""
    package = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from tokenizers import decoders, models, normalizers, trainers

    trained = package.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    trained.decoder = decoders.ByteFallback()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    trained.train_from_iterator(["a cat sat on a mat", "that rat and the bat"], trainer)
    trained.save(str(folder / "tokenizer.json"))
    source = json.loads((folder / "tokenizer.json").read_text())
    known = source["model"]["vocab"]
    pieces = [a + b for a, b in source["model"]["merges"]]
    # The trainer keeps one way to each piece; SentencePiece's exporter lists all.
    merges = [
        [text[:i], text[i:]]
        for text in pieces
        for i in range(1, len(text))
        if text[:i] in known and text[i:] in known
    ]
    source["model"]["merges"] = merges
    (folder / "tokenizer.json").write_text(json.dumps(source))
    theirs = package.Tokenizer.from_file(str(folder / "tokenizer.json"))
    read = converted(folder)
    scores = dict(zip(read["tokens"], read["scores"], strict=True))
    for text in ("a cat and a rat", "that mat", "the  bat sat", "attract"):
        parts = list(SPACE + text.replace(" ", SPACE))
        while True:
            joined = enumerate(a + b for a, b in pairwise(parts))
            joins = [(scores[text], -i) for i, text in joined if text in scores]
            if not joins:
                break
            i = -max(joins)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        known_parts = [part for part in parts if part in scores]
        assert [t for t in theirs.encode(text).tokens if t in known_parts] == known_parts
