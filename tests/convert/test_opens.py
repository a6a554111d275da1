"""Whatever `convert` writes opens, tokenizes, chats and scores; what cannot is refused before."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import run_python
from folders import LLAMA3_SCALING, Model, write_hugging_face, write_meta, write_torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizer_keys import TEMPLATE

pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")

from tokenizer_files import LLAMA3_PRE, MERGES, byte_level, sentencepiece, tiktoken
from vocabularies import like_sentencepiece, varint

from pyllama2c import (
    ChatTemplateError,
    ContextLengthError,
    Llama,
    Llama2cError,
    TokenizerError,
)
from pyllama2c.convert import convert

DTYPES = ("float32", "float16", "int8", "int4")
TEXT = "ab a bb\n\té abcd 7\u4e16 \U0001f642."
BYTES = varint(35 << 3) + varint(1)  # byte_fallback


def small(vocab_size: int, **options: Any) -> Model:
    return Model(vocab_size=vocab_size, dim=32, head_size=8, n_layers=1, hidden_dim=64, **options)


# ---- Every layout of weights with every kind of tokenizer ----


def _sharded(folder: Path, model: Model) -> None:
    write_hugging_face(folder, model, "bfloat16", shards=3)


def _no_index(folder: Path, model: Model) -> None:
    write_hugging_face(folder, model, "float32", shards=2, index=False)


def _pytorch(folder: Path, model: Model) -> None:
    write_hugging_face(folder, model)
    (folder / "model.safetensors").unlink()
    write_torch(folder / "pytorch_model.bin", model.weights, "bfloat16")


def _mistral(folder: Path, model: Model) -> None:
    write_hugging_face(folder, model)
    names = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (folder / "config.json").write_text(
        json.dumps(model.config() | names | {"sliding_window": None})
    )


def _meta(folder: Path, model: Model) -> None:
    write_meta(folder, model, 2, embedding_axis=1)


def _meta_rows(folder: Path, model: Model) -> None:
    write_meta(folder, model, 2, embedding_axis=0, dtype="float32")


LAYOUTS: dict[str, Callable[[Path, Model], Any]] = {
    "safetensors": write_hugging_face,
    "sharded": _sharded,
    "sharded, no index": _no_index,
    "pytorch": _pytorch,
    "Mistral": _mistral,
    "Meta": _meta,
    "Meta, by rows": _meta_rows,
}


def _write_json(folder: Path, source: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(source))
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    if "<|im_start|>" in json.dumps(source):
        named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def _protobuf(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece(trainer=BYTES))


def _protobuf_and_added(folder: Path) -> None:
    _protobuf(folder)
    added = {"266": {"content": "<|im_start|>", "special": True}}
    added |= {"267": {"content": "<|im_end|>", "special": True}}
    settings = {"added_tokens_decoder": added, "bos_token": "<s>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 267]}))


def _gpt2(folder: Path) -> None:
    pre = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    _write_json(folder, byte_level(pre))


def _tiktoken(folder: Path) -> None:
    pieces = [bytes([i]) for i in range(256)] + [b"ab", b" a", b"bb", b" ab"]
    (folder / "tokenizer.model").write_bytes(tiktoken(pieces))


TOKENIZERS: dict[str, tuple[Callable[[Path], None], int]] = {
    "SentencePiece": (_protobuf, 300),
    "SentencePiece and added tokens": (_protobuf_and_added, 268),
    "SentencePiece as JSON": (lambda f: _write_json(f, like_sentencepiece(MERGES)), 272),
    "SmolLM": (lambda f: _write_json(f, byte_level()), 300),
    "Llama 3": (lambda f: _write_json(f, byte_level(LLAMA3_PRE, ignore_merges=True)), 264),
    "GPT-2": (_gpt2, 320),
    "tiktoken": (_tiktoken, 516),
}
"""what writes one, and rows of the embedding"""


def reference(folder: Path) -> list[int] | None:
    """TEXT's ids, as the package that such a file is of has them; None without it."""
    if (folder / "tokenizer.json").is_file():
        package = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
        source = json.loads((folder / "tokenizer.json").read_text())
        source["post_processor"] = None  # puts BOS before a text, which is not asked for
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        source["added_tokens"] = [flags | token for token in source["added_tokens"]]
        return list(package.Tokenizer.from_str(json.dumps(source)).encode(TEXT).ids)
    if (folder / "tokenizer.model").read_bytes()[:1] == b"\n":
        package = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
        model = package.SentencePieceProcessor(str(folder / "tokenizer.model"))
        return list(model.encode(TEXT))
    return None


def use(llama: Llama) -> None:
    """Everything that is asked of a model."""
    tokenizer = llama.tokenizer
    tokens = tokenizer.encode(TEXT)
    assert tokenizer.decode(tokens) == TEXT
    answer = llama.chat([{"role": "user", "content": "ab"}], max_tokens=1, temperature=0)
    answer.read()
    assert len(answer.tokens) <= 1
    score = llama.score(TEXT)
    assert np.isfinite(score.total) and score.total < 0


CASES = [
    pytest.param(layout, kind, turn, id=f"{layout}-{kind}")
    for turn, (layout, kind) in enumerate(itertools.product(LAYOUTS, TOKENIZERS))
]


@pytest.mark.parametrize(("layout", "kind", "turn"), CASES)
def test_every_folder(layout: str, kind: str, turn: int, tmp_path: Path) -> None:
    """Types, tied embeddings, chat templates and RoPE's scaling in turn."""
    write_tokenizer, vocab_size = TOKENIZERS[kind]
    scaling = LLAMA3_SCALING if turn % 5 == 0 and "Meta" not in layout else None
    model = small(vocab_size, tied=turn % 2 == 0, scaling=scaling)
    folder, target = tmp_path / "m", tmp_path / "m.gguf"
    LAYOUTS[layout](folder, model)
    write_tokenizer(folder)
    if turn % 3:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    dtype = DTYPES[turn % 4]
    assert convert(folder, target, dtype=dtype) == target.stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"m", "m.gguf"}
    with Llama(target, speculative=False) as llama:
        use(llama)
        assert (llama.chat_template == TEMPLATE) == bool(turn % 3)
        tokens = llama.tokenizer.encode(TEXT, bos=False)
        ids = reference(folder)
        assert ids is None or tokens == ids
        if dtype == "float32":
            assert np.abs(llama.logits(tokens) - model.logits(tokens)).max() < 1e-4


# ---- What cannot be used is refused before anything is written ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hugging_face(tmp_path / "m", small(300))


def refused(folder: Path, error: type[Exception], message: str, **options: Any) -> None:
    """Named, and before a weight is read; nothing is left behind."""
    target = folder.parent / "m.gguf"
    before = sorted(folder.parent.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyllama2c.convert.writer._encoded", None)
        with pytest.raises(error, match=message) as caught:
            convert(folder, target, **options)
    assert str(folder) in str(caught.value) or str(target) in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "TemplateSyntaxError"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ messages.nothing.at_all }}", "nothing"),
        ("x" * (1 << 18) + "x", "262145 characters"),
    ],
)
def test_templates_that_make_no_prompt(template: str, message: str, folder: Path) -> None:
    _protobuf(folder)
    (folder / "chat_template.jinja").write_text(template)
    refused(folder, ChatTemplateError, message)


def test_what_the_engine_refuses(tmp_path: Path) -> None:
    """Limits of the engine's reader, which the source's own format does not have."""
    folder = write_hugging_face(tmp_path / "m", Model(n_layers=1, theta=1000.0))
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"max_position_embeddings": (1 << 24) + 1}, "llama.context_length is 16777217"),
        ({"rms_norm_eps": 2.0}, "layer_norm_rms_epsilon is 2"),
        ({"rope_theta": 1e-50}, "rope.freq_base is 0"),
        ({"rope_scaling": {"type": "linear", "factor": 1e7}}, "rope.scaling.factor is 1e[+]07"),
        ({"rope_scaling": LLAMA3_SCALING | {"factor": 1e-50}}, "of rope_freqs.weight is 0"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        refused(folder, Llama2cError, message, tokenizer=False)


def test_tokenizers_that_the_engine_refuses(folder: Path) -> None:
    source = byte_level()
    source["model"]["vocab"]["not\u00a0bytes"] = 290
    _write_json(folder, source)
    refused(folder, Llama2cError, "piece 290 .* is not byte-level text")
    source = byte_level()
    source["model"]["merges"].append("a zz")
    _write_json(folder, source)
    refused(folder, Llama2cError, "'a zz'. does not join two pieces")


def test_targets_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        data = (folder / name).read_bytes()
        with pytest.raises(FileExistsError, match="one of the source files"):
            convert(folder, folder / name, tokenizer=False)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(folder / name)
        with pytest.raises(FileExistsError, match="one of the source files"):
            convert(folder, tmp_path / "link", tokenizer=False)
        assert (folder / name).read_bytes() == data
    for _ in range(2):  # a GGUF file there is nobody's source
        convert(folder, folder / "m.gguf", tokenizer=False)
    with pytest.raises(FileNotFoundError, match=r"no such folder: '.*/no'"):
        convert(folder, tmp_path / "no" / "x.gguf", tokenizer=False)
    with pytest.raises((NotADirectoryError, FileNotFoundError), match=r"config\.json"):
        convert(folder, folder / "config.json" / "x.gguf", tokenizer=False)


def test_a_disk_without_room(tmp_path: Path) -> None:
    """A model of more zeros than the disk has room for, in a file that is all hole."""
    free, hidden = shutil.disk_usage(tmp_path).free, 1 << 21
    dim = 2 * (free // (3 * 4 * hidden) // 2 + 1)
    model = Model(dim=2, hidden_dim=3, n_layers=1, n_heads=1, n_kv_heads=1, head_size=2)
    real = {2: dim, 3: hidden, model.vocab_size: model.vocab_size}
    folder = tmp_path / "m"
    folder.mkdir()
    config = {"hidden_size": dim, "head_dim": dim, "intermediate_size": hidden}
    (folder / "config.json").write_text(json.dumps(model.config() | config))
    header, at = {}, 0
    for name, values in model.weights.items():
        shape = [real[n] for n in values.shape]
        n_bytes = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(file.tell() + at)
        except OSError:
            pytest.skip("the file system has no files of such a size")
    refused(folder, OSError, "the file needs .* are free", dtype="float32", tokenizer=False)


def test_a_limit_on_files(folder: Path) -> None:
    """A process that may not write so much learns it at once."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from pyllama2c.cli.main import main\n"
        "raise SystemExit(main(['convert', sys.argv[1], sys.argv[2], '--no-tokenizer']))"
    )
    target = folder.parent / "m.gguf"
    done = run_python("-c", code, str(folder), str(target))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "cannot be written: File too large" in done.stderr and str(target) in done.stderr
    assert {path.name for path in folder.parent.iterdir()} == {"m"}


# ---- Any damage to a good folder ----

ODD = [None, True, False, -1, 0, 1, 3, 2**31, 2**63, 0.5, 1e-40, 1e30, "", "a", "é", "\ud800"]
ODD += [[], {}, [[]], [None], {"a": 1}, "<s>", [1, 2], "x" * 600, "{{ 1 / 0 }}", 299, 300]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a JSON value, as the keys that lead there; of long lists and
    objects only the ends."""
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return [at]
    keys = keys if len(keys) < 24 else keys[:4] + keys[-8:]
    return [at, *(place for key in keys for place in places(value[key], (*at, key)))]


def damaged(value: Any, at: int, odd: int, remove: bool) -> Any:
    """`value` with something odd in one place, or without it."""
    everywhere = places(value)
    *way, last = everywhere[at % len(everywhere)] or (None,)
    if last is None:
        return ODD[odd % len(ODD)]
    inner = value
    for key in way:
        inner = inner[key]
    if remove:
        del inner[last]
    else:
        inner[last] = ODD[odd % len(ODD)]
    return value


SENTENCEPIECE, BYTE_LEVEL = "SentencePiece and added tokens", "SmolLM"


def good(folder: Path, kind: str) -> None:
    write_tokenizer, vocab_size = TOKENIZERS[kind]
    write_hugging_face(folder, small(vocab_size, scaling=LLAMA3_SCALING), shards=2)
    write_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))


def works_or_is_refused(folder: Path, temporary: Path) -> None:
    target = folder.parent / "m.gguf"
    before = {path.name for path in folder.iterdir()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = None
        try:
            convert(folder, target)
        except (Llama2cError, OSError) as refusal:
            error = str(refusal)
        assert target.exists() == (error is None)
        assert error is None or str(folder) in error
        if error is None:
            with Llama(target, speculative=False) as llama:
                llama.tokenizer.decode(llama.tokenizer.encode("ab a"))
                with contextlib.suppress(ContextLengthError):  # the damage may be a short context
                    assert np.isfinite(llama.score("ab a").total)
                    messages: list[Any] = [{"role": "user", "content": "ab"}]
                    if llama.chat_template is None and llama.tokenizer.bos_id == -1:
                        with pytest.raises(TokenizerError, match="no BOS"):  # for Llama 2's format
                            llama.chat(messages)
                    else:
                        llama.chat(messages, max_tokens=1).read()
            target.unlink()
    assert {path.name for path in folder.iterdir()} == before
    assert not any(temporary.iterdir())
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, temporary.name}


@pytest.mark.parametrize("kind", [SENTENCEPIECE, "SentencePiece as JSON", BYTE_LEVEL, "Llama 3"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[*HealthCheck], phases=[Phase.generate]
)
@given(data=st.data())
def test_any_damage_to_json(kind: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("damage")
    folder, temporary = root / "m", root / "temporary"
    temporary.mkdir()
    good(folder, kind)
    names = sorted(path.name for path in folder.glob("*.json"))
    for _ in range(data.draw(st.integers(1, 2))):
        path = folder / data.draw(st.sampled_from(names))
        numbers = [data.draw(st.integers(0, 999)) for _ in range(2)]
        value = damaged(json.loads(path.read_text()), *numbers, remove=data.draw(st.booleans()))
        path.write_text(json.dumps(value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        works_or_is_refused(folder, temporary)


@pytest.mark.parametrize("kind", [SENTENCEPIECE, BYTE_LEVEL])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[*HealthCheck], phases=[Phase.generate]
)
@given(data=st.data())
def test_any_damage_to_bytes(kind: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    """In a file's first bytes, headers among them, and its length."""
    root = tmp_path_factory.mktemp("damage")
    folder, temporary = root / "m", root / "temporary"
    temporary.mkdir()
    good(folder, kind)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 9999)) % min(len(content), 1500)] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 100, len(content)]))
    path.write_bytes(content[: len(content) - cut])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        works_or_is_refused(folder, temporary)
