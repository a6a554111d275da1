"""Random vocabularies of all layouts encode and decode as the packages that they are from do."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from folders import Model, write_hugging_face
from gguf_files import File
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_keys import BYTE as BYTE_TYPE
from tokenizer_keys import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from vocabularies import BYTES, SPACE, Layout, as_opened, block, like_sentencepiece, piece, varint

from pyllama2c import Tokenizer, TokenizerError, UnsupportedError
from pyllama2c.files.gguf import Gguf
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.gguf import read_tokenizer

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


@settings(max_examples=300, deadline=None)
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


# ---- Some layouts, and what is wrong with others ----

HI = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
INSTRUCTIONS = [("[INST]", 0.0, CONTROL), ("[/INST]", 0.0, CONTROL)]
WORDS = [(text, -float(i), NORMAL) for i, text in enumerate([SPACE, "h", "i", "hi", f"{SPACE}hi"])]


def test_bytes_behind_other_special_pieces() -> None:
    """As Mistral's second and third vocabulary have them."""
    own = Layout([*HI, *INSTRUCTIONS, *BYTES, *WORDS]).through_gguf()
    assert own.encode("hié") == [265, 200, 174]
    assert own.encode("[INST]") == own.encode("[") + own.encode("INST]")[1:]
    assert own.encode("[INST]hi", special=True) == [3, 265]


def test_no_bytes() -> None:
    own = Layout([*HI, *WORDS], add_space=False).through_gguf()
    assert own.encode("ééhié") == [0, 6, 0]  # neighbours are one <unk>
    assert own.decode([0, 6]) == " ⁇ hi"


def test_the_order_of_t5(tmp_path: Path) -> None:
    """Padding, EOS, <unk>, and no BOS: a prompt begins with nothing, however the file says so."""
    layout = Layout([("<pad>", 0.0, CONTROL), HI[2], HI[0], *WORDS])
    keys = layout.keys()
    for given_keys in (keys, [key for key in keys if "bos" not in key.name]):
        with Gguf.from_buffer(File(given_keys).build()) as gguf:
            own = read_tokenizer(gguf, len(layout.pieces))
        assert (own.bos_id, own.eos_id, own.add_bos) == (-1, 1, False)
        assert own.encode_prompt("hi") == [7]
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    assert layout.through_convert(tmp_path).encode_prompt("hi") == [7]


def test_the_layout_of_tokenizer_bin(tmp_path: Path) -> None:
    path, layout = tmp_path / "tokenizer.bin", Layout([*HI, *BYTES, *WORDS])
    path.write_bytes(layout.tokenizer_bin())
    with Tokenizer(path) as own, layout.through_gguf() as other:
        assert (own.bos_id, own.eos_id) == (1, 2) == (other.bos_id, other.eos_id)
        for text in ("hi hié", " hi", "hi  hi"):
            assert own.encode(text) == other.encode(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda proto: proto + block(2, varint(3 << 3) + varint(2) + varint(24 << 3) + varint(1)),
         "treat_whitespace_as_suffix"),
        (lambda proto: proto + block(3, varint(4 << 3) + varint(0) + varint(5 << 3) + varint(0)),
         "escape_whitespaces"),
        (lambda proto: proto + piece("<0x41>", 0.0, BYTE_TYPE), "are the same byte, 0x41"),
        (lambda proto: proto + piece("x<0x41>", 0.0, BYTE_TYPE), "a byte, but not called <0xHH>"),
        (lambda proto: proto + piece("hi", 0.0, NORMAL), "pieces 262 and 264 are the same"),
    ],
)  # fmt: skip
def test_what_convert_refuses(change: Any, message: str, tmp_path: Path) -> None:
    """Before anything is written."""
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    from pyllama2c.convert import convert

    folder = write_hugging_face(tmp_path / "m", Model(vocab_size=300, dim=32, n_layers=1))
    proto = Layout([*HI, *BYTES, *WORDS]).proto()
    (folder / "tokenizer.model").write_bytes(change(proto))
    target = tmp_path / "out.gguf"
    with pytest.raises((UnsupportedError, TokenizerError), match=message) as caught:
        convert(folder, target)
    assert "tokenizer.model" in str(caught.value) and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("kind", ["bytes", "no bytes", "user-defined", "unused"])
def test_long_monotonous_text(kind: str) -> None:
    """As for tokenizer.bin: quadratic merging would take hours."""
    pieces = [*HI, *(BYTES if kind == "bytes" else []), ("a", -9.0, NORMAL), ("aa", -1.0, NORMAL)]
    pieces += [("a" * n, -2.0, USER_DEFINED) for n in range(300, 500) if kind == "user-defined"]
    pieces += [("a" * 2**n, -2.0, UNUSED) for n in range(2, 9) if kind == "unused"]
    own = Layout(pieces, add_space=False).through_gguf()
    started = time.process_time()
    for text in ("a" * 1_000_000, "z" * 1_000_000, "é" * 500_000):
        own.encode(text)
    assert time.process_time() - started < 60


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


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_as_tokenizers(data: st.DataObject) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    from pyllama2c.convert.tokenizer_json import read_tokenizer_json

    reference = json_tokenizer(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        reference.save(str(path))
        own = as_opened(read_tokenizer_json(path, reference.get_vocab_size() + 3))
    stretches = [s for s in STRETCHES if s != "<s>"] + ["~user~", "xyz"]
    for text in data.draw(st.lists(st.lists(st.sampled_from(stretches)).map("".join), max_size=5)):
        ids = reference.encode(text).ids
        assert own.encode(text) == ids
        assert own.decode(ids) == reference.decode(ids)


def test_merges_decide(tmp_path: Path) -> None:
    """A piece that no merge makes is not made, though a score would make it."""
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    source = like_sentencepiece([f"{SPACE} a"])
    known = source["model"]["vocab"]
    for text in ("t", f"{SPACE}t"):
        known[text] = len(known)
    own = from_json(source, tmp_path)
    assert own.encode("t") == [known[SPACE], known["t"]]
    assert own.encode("a") == [known[f"{SPACE}a"]]
    assert Layout([*HI, (SPACE, 0.0, NORMAL), ("t", 0.0, NORMAL), (f"{SPACE}t", -1.0, NORMAL)]
                  ).through_gguf().encode("t") == [5]  # fmt: skip


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_spaces_of_metaspace(scheme: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    pre = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    merges = ["H i", f"{SPACE} H", f"{SPACE} Hi", f"{SPACE}H i"]
    source = like_sentencepiece(merges, normalizer=None, pre_tokenizer=pre)
    known = source["model"]["vocab"]
    for text in ("[INST]", "[/INST]"):
        source["added_tokens"].append({"id": len(known), "content": text, "special": True})
        known[text] = len(known)
    own = from_json(source, tmp_path)
    hi, bare = known[f"{SPACE}Hi"], known["Hi"]
    assert own.encode(" Hi") == [hi]
    assert own.encode("Hi") == [bare if scheme == "never" else hi]
    inst, end = known["[INST]"], known["[/INST]"]
    assert own.encode("<s>[INST] Hi[/INST]", special=True) == [1, inst, hi, end]
    after = hi if scheme == "always" else bare
    assert own.encode("<s>[INST]Hi[/INST]", special=True) == [1, inst, after, end]
    assert own.decode([1, hi, hi]) == (" Hi Hi" if scheme == "never" else "Hi Hi")


def from_json(source: dict[str, Any], folder: Path) -> BaseTokenizer:
    from pyllama2c.convert.tokenizer_json import read_tokenizer_json

    path = folder / "tokenizer.json"
    path.write_text(json.dumps(source))
    return as_opened(read_tokenizer_json(path, 400))
