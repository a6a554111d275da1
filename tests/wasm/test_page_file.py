"""The page as one file: what it asks of WebAssembly has the server's answers, to the last bit."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from environment import run_python
from gguf_files import BOOL, INT32, STRING, Key
from tiny import Shape, TinyLlama, tokenizer_file
from tokenizer_keys import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    byte_level_keys,
    chat_model,
    sentencepiece_keys,
)

from pyllama2c import Llama, UnsupportedError, wasm
from pyllama2c.serve import explain, page_file
from pyllama2c.serve.nodes import Nodes
from pyllama2c.tokenizers.gguf import SCHEMES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROMPT = "Once upon a time"
KNOBS = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
TEXTS = (
    "",
    " ",
    "Once upon a time",
    "A \u2603 \0 <s> \u00e9",
    "  two\n\nlines ",
    "~user~ a~user~",
    "\u2581a",
)


def ask(html: Path, *questions: tuple[str, dict[str, Any]]) -> list[Any]:
    """What the file's worker answers, in Node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run WebAssembly")
    done = subprocess.run(
        [node, HERE / "run_worker.mjs"],
        input=json.dumps({"html": str(html), "questions": questions}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    opened, *answers = json.loads(done.stdout)
    assert opened is None, opened
    return answers


def as_served(answer: dict[str, Any]) -> dict[str, Any]:
    """A worker's answer in the server's names. The model's own chance is for the eye: JavaScript's
    exp may round it otherwise."""
    for row in answer["top"]:
        row["p_before"] = pytest.approx(row["p_before"], rel=1e-12)
    before, after = answer.pop("before"), answer.pop("after")
    return answer | {"rng_before": before, "rng_after": after}


def same_story(
    llama: Llama, html: Path, seed: int, n: int, prompt: str = PROMPT, **sampling: Any
) -> None:
    """Asks how each of n tokens was chosen; between them the context is cut, and told once more."""
    nodes, ids = Nodes(), llama.tokenizer.encode_prompt(prompt)
    random, questions, expected = {"seed": str(seed)}, [], []
    for i in range(n):
        how = random | {"sampling": KNOBS | sampling} | ({"forced": 7} if i == n // 2 else {})
        served = explain.next_token(llama, nodes, {"ids": ids, **how})
        del served["node"]
        expected.append(served)
        as_state = {("state" if name == "rng_state" else name): how[name] for name in how}
        questions.append(("next", {"ids": ids, "how": as_state}))
        random = {"rng_state": served["rng_after"]}
        ids = [*ids, served["token"]]
    order = [*range(n), 1, 0]
    answers = ask(html, *(questions[i] for i in order))
    assert [as_served(answer) for answer in answers] == [expected[i] for i in order]


def test_struct_offsets_are_those_that_the_compiler_checks() -> None:
    text = (Path(wasm.__file__).parent / "layout.js").read_text(encoding="utf-8")
    structs = json.loads(text.partition("const LAYOUT =")[2].strip().rstrip(";"))
    listed = {
        (struct, name, fields["size"] if name == "size" else fields[name][0])
        for struct, fields in structs.items()
        for name in fields
    }
    source = (ROOT / "csrc" / "system" / "wasm.c").read_text(encoding="utf-8")
    checked = {(a, b, int(n)) for a, b, n in re.findall(r"\bAT\((\w+), ([\w.]+), (\d+)\);", source)}
    checked |= {(a, "size", int(n)) for a, n in re.findall(r"\bSIZE\((\w+), (\d+)\);", source)}
    assert listed == checked


def test_one_script_and_nothing_from_elsewhere(story: Path) -> None:
    html = story.read_text(encoding="utf-8")
    assert story.stat().st_size <= 4_500_000
    (policy,) = re.findall(r'<meta http-equiv="content-security-policy" content="([^"]*)">', html)
    executed = re.findall(r'<script type="module">([\s\S]*?)</script>', html)
    styles = re.findall(r"<style>([\s\S]*?)</style>", html)
    for texts, name in ((executed, "script-src"), (styles, "style-src")):
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe-inline" not in policy
    rest = re.sub(r"<script[\s\S]*?</script>|<style>[\s\S]*?</style>", "", html)
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|\ssrc=|https?:", rest)
    for script in (wasm.worker(), wasm.page_engine()):
        assert not re.search(r"\bfetch\b|https?://|innerHTML|\beval\(|import\(", script)


def test_about(story: Path, storyteller: Llama) -> None:
    served = explain.about(storyteller)
    (answer,) = ask(story, ("about", {}))
    assert answer.pop("device") != served.pop("device")
    del served["isa"]
    assert answer == served


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 1e-39},
    {"temperature": 0.7, "top_p": 1.0},
    {"top_p": 1.0, "min_p": 0.1},
    {"top_p": 1e-6},
    {"top_k": 5},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 3.0, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_why_a_token_was_chosen(story: Path, storyteller: Llama, sampling: dict[str, Any]) -> None:
    same_story(storyteller, story, seed=2**64 - 3, n=12, **sampling)


@pytest.mark.parametrize(
    ("shape", "dtype", "kv_dtype"),
    [
        (Shape(), "float32", "float16"),
        (Shape(vocab_size=301, tied=False), "int4", "float32"),
        (Shape(group_size=16), "auto", "float32"),
    ],
    ids=["float32 with float16 keys", "int4", "int8 of a file"],
)
def test_other_models(shape: Shape, dtype: Any, kv_dtype: Any, tmp_path: Path) -> None:
    """Those whose rows are summed in other ways, or computed with other numbers."""
    truth = TinyLlama.random(shape)
    path = tmp_path / "model.bin"
    path.write_bytes(truth.v2() if dtype == "auto" else truth.v0())
    path.with_name("tokenizer.bin").write_bytes(tokenizer_file(shape.vocab_size))
    html = tmp_path / "page.html"
    with Llama(path, dtype=dtype, kv_dtype=kv_dtype, context=20, speculative=False) as llama:
        html.write_bytes(page_file.page_file(llama))
        assert ask(html, ("about", {}))[0]["seq_len"] == 20
        same_story(llama, html, seed=0, n=6, prompt="a b", top_p=0.95)
        same_story(llama, html, seed=5, n=4, prompt="a b", top_p=1.0)


def begins_alike(llama: Llama, html: Path) -> None:
    nodes, texts = Nodes(), [text for text in TEXTS if llama.tokenizer.encode_prompt(text)]
    served = [explain.tokens(llama, nodes, {"text": text})["tokens"] for text in texts]
    assert len(texts) >= len(TEXTS) - 1
    assert ask(html, *(("begin", {"from": text}) for text in texts)) == served


def test_how_a_story_begins(story: Path, storyteller: Llama) -> None:
    begins_alike(storyteller, story)


@pytest.mark.parametrize(
    "keys",
    [
        [],
        *([Key("pyllama2c.tokenizer.prepend_scheme", STRING, scheme)] for scheme in SCHEMES),
        [
            Key("pyllama2c.tokenizer.prepend_scheme", STRING, "first"),
            Key("pyllama2c.tokenizer.merges", STRING, ["a b", "ab c", "\u2581 a"]),
            Key("pyllama2c.tokenizer.split_spaces", BOOL, True),
            Key("pyllama2c.tokenizer.unk_surface", STRING, "?"),
        ],
    ],
    ids=lambda keys: str([key.value for key in keys]),
)
def test_tokenizers_of_gguf_files(keys: list[Key], tmp_path: Path) -> None:
    path, html = tmp_path / "model.gguf", tmp_path / "page.html"
    path.write_bytes(chat_model([*sentencepiece_keys(), *keys]).build())
    with Llama(path) as llama:
        html.write_bytes(page_file.page_file(llama))
        begins_alike(llama, html)
        same_story(llama, html, seed=3, n=4, prompt="a b")
        ids = [*range(0, 300, 7), 281, 282]
        served = explain.tokens(llama, Nodes(), {"ids": ids})["tokens"]
        assert ask(html, ("begin", {"from": ids})) == [served]


def test_attention(story: Path, storyteller: Llama) -> None:
    ids = storyteller.tokenizer.encode_prompt(PROMPT)
    positions = [len(ids) - 1, 0, 2]
    answers = ask(story, *(("attention", {"ids": ids, "position": at}) for at in positions))
    served = [
        explain.attention(storyteller, Nodes(), {"ids": ids, "position": at}) for at in positions
    ]
    assert answers == served


def test_among_others(story: Path, storyteller: Llama) -> None:
    """Story i has the seed after that of story i - 1, around 2^64 as well."""
    ids, sampling = storyteller.tokenizer.encode_prompt(PROMPT), KNOBS | {"repetition_penalty": 1.2}
    how = {"seed": "1", "sampling": sampling, "length": 20}
    (answer,) = ask(story, ("crowd", {"ids": ids, "how": how, "size": 4, "place": 2}))
    told: list[list[int]] = [[], [], [], []]
    for index, token in answer["told"]:
        told[index].append(token)
    expected = []
    for seed in (2**64 - 1, 0, 1, 2):
        alone = storyteller.generate(PROMPT, seed=seed, max_tokens=20, **sampling)
        alone.read()
        expected.append(alone.tokens)
    assert told == expected


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("begin", {"from": "\ud800"}, "cannot be encoded as UTF-8"),
    ("begin", {"from": []}, "ids is empty"),
    ("begin", {"from": [1] * 513}, "513 tokens; the model's context is 512"),
    ("begin", {"from": [1, 2048]}, "token 2048 is outside the vocabulary of 2048"),
    (
        "next",
        {"ids": [1], "how": {"seed": str(2**64), "sampling": KNOBS}},
        "seed is 18446744073709551616",
    ),
    ("attention", {"ids": [1, 5], "position": 2}, "position is 2; it must be 0 to 1"),
    ("attention", {"ids": [1, 5], "position": -1}, "position is -1"),
    ("next", {"ids": [1], "how": {"state": "0", "sampling": KNOBS}}, "rng_state is 0"),
    ("next", {"ids": [1], "how": {"seed": "1", "sampling": KNOBS | {"top_p": 2}}}, "top_p is 2"),
]


def test_wrong_questions(story: Path) -> None:
    good = ("next", {"ids": [1], "how": {"seed": "1", "sampling": KNOBS}})
    *answers, after = ask(story, *((name, given) for name, given, _ in WRONG), good)
    for answer, (_, _, message) in zip(answers, WRONG, strict=True):
        assert message in answer["error"]
    assert "token" in after


def test_what_a_page_cannot_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    strip = Key("pyllama2c.tokenizer.lstrip", INT32, [283])
    scheme = Key("pyllama2c.tokenizer.prepend_scheme", STRING, "first")
    for keys, message in (
        (byte_level_keys(), "model.gguf: a page has no byte-level tokenizer"),
        ([*sentencepiece_keys(), scheme, strip], "token '~user~' absorbs the white space"),
    ):
        path.write_bytes(chat_model(keys).build())
        with Llama(path) as llama, pytest.raises(UnsupportedError, match=message):
            page_file.page_file(llama)
    uneven = TinyLlama.random(Shape(hidden_dim=20, group_size=8)).v2()
    path.with_name("model.bin").write_bytes(uneven)
    in_memory = TinyLlama.random(Shape()).v0()
    with (
        Llama.from_buffer(in_memory) as llama,
        pytest.raises(UnsupportedError, match="this one is from memory"),
    ):
        page_file.page_file(llama)
    with (
        pytest.warns(UserWarning, match="does not divide"),
        Llama(path.with_name("model.bin")) as llama,
        pytest.raises(UnsupportedError, match=r"model.bin is computed as runq.c does"),
    ):
        page_file.page_file(llama)
    monkeypatch.setattr(page_file, "MAX_MODEL_BYTES", 1000)
    with Llama(path) as llama, pytest.raises(UnsupportedError, match="a page holds 1,000 at most"):
        page_file.page_file(llama)


def test_names_and_pieces_that_html_would_take_for_its_own(tmp_path: Path) -> None:
    """Nor does a file's name have to be Unicode."""
    signs = ("</script><script>alert(1)</script>", "<!--", '"', "'", "\u2028", "&lt;", "`${0}\\")
    keys = sentencepiece_keys()
    (tokens,) = (key for key in keys if key.name.endswith(".tokens"))
    (kinds,) = (key for key in keys if key.name.endswith(".token_type"))
    tokens.value[-len(signs) :] = signs
    kinds.value[-len(signs) :] = [
        NORMAL,
        USER_DEFINED,
        CONTROL,
        NORMAL,
        NORMAL,
        USER_DEFINED,
        NORMAL,
    ]
    html, path = tmp_path / "page.html", tmp_path / os.fsdecode(b"<!--\xff<\xc3\xa9.gguf")
    path.write_bytes(chat_model(keys).build())
    with Llama(path) as llama:
        html.write_bytes(page_file.page_file(llama))
        assert html.read_text(encoding="utf-8").count("<script") == 7
        assert ask(html, ("about", {}))[0]["name"] == "<!--\ufffd<\u00e9.gguf"
        begins_alike(llama, html)
        ids = [*range(len(tokens.value) - len(signs), len(tokens.value))]
        served = explain.tokens(llama, Nodes(), {"ids": ids})["tokens"]
        assert ask(html, ("begin", {"from": ids})) == [served]
        text = "".join(signs)
        served = explain.tokens(llama, Nodes(), {"text": text})["tokens"]
        assert ask(html, ("begin", {"from": text})) == [served]


def test_the_command(story: Path, tmp_path: Path) -> None:
    target = tmp_path / "here.html"

    def page(*words: object) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "pyllama2c", "page", *map(str, words))

    done = page(target)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert target.read_bytes() == story.read_bytes()
    assert page(target).returncode == 0  # once more, over the first
    bad, cut = tmp_path / "bad.gguf", tmp_path / "cut.gguf"
    bad.write_bytes(chat_model(byte_level_keys()).build())
    cut.write_bytes(chat_model(sentencepiece_keys()).build()[:-100])
    (tmp_path / "folder.html").mkdir()
    for words, message in (
        ((target, bad), "bad.gguf: a page has no byte-level tokenizer"),
        ((target, cut), "cut.gguf"),
        ((tmp_path / "folder.html",), "folder.html: is a folder"),
        ((tmp_path / "none" / "here.html",), "here.html: No such file"),
        ((cut,), "cut.gguf does not end with .html; first comes the page to write"),
        ((tmp_path / "new.gguf",), "new.gguf does not end with .html"),
    ):
        done = page(*words)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert target.read_bytes() == story.read_bytes()
    assert len(cut.read_bytes()) == len(chat_model(sentencepiece_keys()).build()) - 100
