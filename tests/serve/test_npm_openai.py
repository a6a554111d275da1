"""The npm package `openai`: its own client, types and stream reader, in Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from http_server import Running

from pyllama2c import Llama

SCRIPT = Path(__file__).with_name("openai_client.cjs")


@pytest.fixture(scope="module")
def told(server: Running) -> Any:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node (Node.js) to run the npm package openai")
    found = subprocess.run([node, "-e", "require.resolve('openai')"], capture_output=True)
    if found.returncode != 0:
        pytest.skip("node finds no package openai: npm install openai, and NODE_PATH names it")
    done = subprocess.run([node, SCRIPT, server.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_completions(told: Any, storyteller: Llama) -> None:
    story = storyteller.generate("Once", seed=7, max_tokens=20, top_p=1.0, logprobs=2)
    (choice,) = told["completion"]["choices"]
    assert choice["text"] == story.read() == "".join(told["pieces"])
    assert choice["finish_reason"] == "length" and len(told["pieces"]) > 5
    assert told["completion"]["usage"]["completion_tokens"] == 20
    assert choice["logprobs"]["token_logprobs"] == [each.logprob for each in story.logprobs]
    assert told["models"] == ["storyteller"]


def test_chats(told: Any, storyteller: Llama) -> None:
    messages = [{"role": "user", "content": "A cat"}]
    options: Any = {"max_tokens": 20, "top_p": 1.0}
    expected = [storyteller.chat(messages, seed=seed, **options).read() for seed in (7, 8)]
    choices = told["chat"]["choices"]
    assert [choice["message"]["content"] for choice in choices] == expected
    (streamed,) = told["streamed"]["choices"]
    assert streamed["message"]["content"] == expected[0]
    assert streamed["finish_reason"] == "length"
    assert told["streamed"]["usage"]["completion_tokens"] == 20


def test_an_answer_by_a_schema_is_parsed(told: Any) -> None:
    pytest.importorskip("llguidance")
    assert json.loads(told["parsed"]["choices"][0]["message"]["content"]) in ("yes", "no")


def test_errors_are_of_the_packages_classes(told: Any) -> None:
    assert told["error"] == {
        "kind": "BadRequestError",
        "status": 400,
        "param": "top_p",
        "code": "invalid_value",
        "type": "invalid_request_error",
    }


def test_a_stream_that_is_left_is_cancelled(told: Any, server: Running) -> None:
    server.wait_until_idle()
