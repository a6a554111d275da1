"""The plugin of `llm`: its Python API in this process, its commands in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from environment import DATA
from tokenizer_keys import chat_model, sentencepiece_keys

from pyllama2c import Llama

llm = pytest.importorskip("llm", reason="the plugin needs llm (pip install 'pyllama2c[llm]')")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Sue", "Tim"]}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """llm's folder, with an alias of a model that has a chat template."""
    from pyllama2c.integrations.llm import _opened

    folder = tmp_path_factory.mktemp("llm")
    chat = folder / "chat model.gguf"
    chat.write_bytes(chat_model(sentencepiece_keys()).build())
    (folder / "aliases.json").write_text(json.dumps({"chatty": f"pyllama2c/{chat}", "x": "gpt"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_USER_PATH", str(folder))
        yield folder
    _opened.cache_clear()


@pytest.fixture(scope="module")
def storyteller() -> Iterator[Llama]:
    with Llama() as llama:
        yield llama


@pytest.fixture
def model(folder: Path) -> Any:
    return llm.get_model("pyllama2c")


def answer(kind: str, name: str, *prompt: str, **options: Any) -> tuple[str, Any, Any]:
    """Text, usage and JSON of a response, by one of the ways to ask for it."""
    stream = kind.endswith("streamed")
    if not kind.startswith("async"):
        response = llm.get_model(name).prompt(*prompt, stream=stream, **options)
        pieces = list(response)
        assert stream == (len(pieces) > 1)
        return "".join(pieces), response.usage(), response.json()

    async def ask() -> tuple[str, Any, Any]:
        response = llm.get_async_model(name).prompt(*prompt, stream=stream, **options)
        pieces = [piece async for piece in response]
        assert stream == (len(pieces) > 1)
        return "".join(pieces), await response.usage(), await response.json()

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["whole", "streamed", "async", "async streamed"])
def test_generates_story(kind: str, folder: Path, storyteller: Llama) -> None:
    for options in (
        {"max_tokens": 20, "seed": 7},
        {"max_tokens": 20, "temperature": 0, "repetition_penalty": 1.2, "stop": " day"},
        {"max_tokens": 20, "seed": 2**64 - 1, "top_k": 9, "top_p": 0.8, "min_p": 0.01},
        {"max_tokens": 20, "seed": 3, "presence_penalty": 1, "frequency_penalty": 0.5},
        {"max_tokens": 20, "seed": 3, "logit_bias": {290: -5.0}},
    ):
        story = storyteller.generate("Once upon a time", **options)  # type: ignore[arg-type]
        text, usage, told = answer(kind, "pyllama2c", "Once upon a time", **options)
        assert text == story.read()
        assert (usage.input, usage.output) == (len(story.prompt_tokens), len(story.tokens))
        assert told["finish_reason"] == story.finish_reason
        assert told["seed"] == options.get("seed", told["seed"])


def test_the_seed_that_was_drawn_is_told(model: Any, storyteller: Llama) -> None:
    response = model.prompt("The lion", max_tokens=8)
    text = response.text()
    seed = response.json()["seed"]
    assert text == storyteller.generate("The lion", max_tokens=8, seed=seed).read()


@pytest.mark.parametrize("kind", ["streamed", "async streamed"])
def test_answers_that_match(kind: str, folder: Path) -> None:
    pytest.importorskip("llguidance")
    options = {"max_tokens": 40, "seed": 5}
    text, _, told = answer(kind, "pyllama2c", "Who?", schema=SCHEMA, **options)
    assert json.loads(text)["name"] in ("Sue", "Tim") and told["finish_reason"] == "stop"
    text, _, _ = answer(kind, "pyllama2c", "Who?", regex="yes|no|never", **options)
    assert text in ("yes", "no", "never")
    text, _, _ = answer(kind, "pyllama2c", "Who?", grammar='start: "a" /[0-9]{4}/', **options)
    assert text[0] == "a" and text[1:].isdecimal()


def test_a_conversation_without_a_template_is_one_text(model: Any, storyteller: Llama) -> None:
    talk = model.conversation()
    first = talk.prompt("Once upon a time", max_tokens=12, seed=1).text()
    second = talk.prompt("Then", max_tokens=12, seed=2)
    so_far = f"Once upon a time{first}\nThen"
    assert second.text() == storyteller.generate(so_far, max_tokens=12, seed=2).read()
    assert second.usage().details["cached_tokens"] > 10
    third = talk.prompt("", max_tokens=12, seed=3).text()  # goes on
    whole = so_far + second.text()
    assert third == storyteller.generate(whole, max_tokens=12, seed=3).read()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_conversation_by_the_template(kind: str, folder: Path) -> None:
    pytest.importorskip("jinja2", reason="chat templates need the jinja2 package")
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0}

    def ask() -> list[str]:
        talk = llm.get_model("chatty").conversation()
        first = talk.prompt("hello", system="be kind", **options).text()
        return [first, talk.prompt("again", **options).text()]

    async def ask_async() -> list[str]:
        talk = llm.get_async_model("chatty").conversation()
        first = await talk.prompt("hello", system="be kind", **options).text()
        return [first, await talk.prompt("again", **options).text()]

    answers = ask() if kind == "sync" else asyncio.run(ask_async())
    with Llama(folder / "chat model.gguf") as llama:
        messages = [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "hello"},
        ]
        assert answers[0] == llama.chat(messages, **options).read()
        messages += [
            {"role": "assistant", "content": answers[0]},
            {"role": "user", "content": "again"},
        ]
        assert answers[1] == llama.chat(messages, **options).read()
        text = llm.get_model("chatty").prompt("hello", chat=False, **options).text()
        assert text == llama.generate("hello", **options).read()


def test_llama_2s_format_where_it_is_asked_for(model: Any, storyteller: Llama) -> None:
    got = model.prompt("hello", system="be kind", chat=True, max_tokens=6, temperature=0).text()
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert got == storyteller.chat(messages, max_tokens=6, temperature=0.0).read()


def test_the_model_is_opened_as_asked_and_once(folder: Path) -> None:
    from pyllama2c.integrations.llm import _opened

    options = {"dtype": "int8", "context": 8, "chat": False, "temperature": 0}
    texts = {llm.get_model("chatty").prompt("hello", **options).text() for _ in range(2)}
    before = _opened.cache_info().misses
    texts.add(answer("async", "chatty", "hello", **options)[0])
    assert _opened.cache_info().misses == before
    with Llama(folder / "chat model.gguf", dtype="int8", context=8) as llama:
        assert texts == {llama.generate("hello", temperature=0.0).read()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"max_tokens": "many"},
        {"repetition_penalty": 0},
        {"seed": 2**64},
        {"logit_bias": "{"},
        {"logit_bias": {"x": 1}},
        {"dtype": "int7"},
        {"context": 0},
        {"best_of": 3},
    ],
    ids=str,
)
def test_wrong_options_are_named(model: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        model.prompt("x", **wrong)


def test_what_cannot_be_answered(model: Any, folder: Path) -> None:
    for prompt, options, message in (
        ("x", {"system": "be kind"}, "pyllama2c has no chat template, so that it takes no system"),
        ("x " * 600, {}, "the prompt has .* tokens; the model's context is"),
        ("x", {"regex": "a", "schema": SCHEMA}, "json_schema and regex|one of"),
        ("x", {"logit_bias": {10**6: 1.0}}, "a key of logit_bias is 1000000"),
    ):
        with pytest.raises(ValueError, match=message):
            model.prompt(prompt, **options).text()
    parts = [llm.parts.ToolResultPart(name="clock", output="noon")]
    with pytest.raises(ValueError, match="a message by 'tool' has a tool_result; text alone"):
        model.prompt(messages=[llm.parts.Message(role="tool", parts=parts)]).text()
    (folder / "aliases.json").write_text('{"lost": "pyllama2c/~/no/such.bin"}')
    with pytest.raises(ValueError, match="No such file"):
        llm.get_model("lost").prompt("x").text()


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *words],
        cwd=DATA,  # not the source folder, whose pyllama2c may not be built
        env={**os.environ, "LLM_USER_PATH": str(folder), "LLM_LOAD_PLUGINS": "pyllama2c"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    path = tmp_path / "model.gguf"
    path.write_bytes(chat_model(sentencepiece_keys(), template=None).build())
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    llm.set_alias("tiny", f"pyllama2c/{path}")  # what `llm aliases set` calls
    few = ("-o", "max_tokens", "9", "-o", "seed", "4")
    status, first, usage = run(tmp_path, "-m", "tiny", "hello", "-u", *few)
    assert status == 0 and "9 output" in usage
    # The model of the conversation, not the default one.
    schema = json.dumps(SCHEMA)
    status, second, _ = run(tmp_path, "-c", "Who?", "--async", "--schema", schema, *few[3:])
    assert status == 0 and json.loads(second)["name"] in ("Sue", "Tim")
    with Llama(path) as llama:
        expected = llama.generate("hello", max_tokens=9, seed=4).read()
        assert first == expected + "\n"
        story = llama.generate(f"hello{expected}\nWho?", seed=4, json_schema=SCHEMA)
        assert second == story.read() + "\n"
    status, _, said = run(tmp_path, "-m", "storyteller", "x", "-o", "top_p", "2")
    assert status == 1 and "top_p" in said and "Traceback" not in said
