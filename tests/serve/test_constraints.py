"""json_schema, regex and grammar over HTTP; they are held in C, so that receipts repeat them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from http_server import Running, serving

from pyllama2c import Llama
from pyllama2c.generation import constraint
from pyllama2c.serve.receipts import verify
from pyllama2c.serve.service import Limits

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Sue", "Tim"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_a_chat_answers_in_json(server: Running, storyteller: Llama) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "child", "schema": SCHEMA}}
    body = {"messages": [{"role": "user", "content": "Who?"}], "response_format": form}
    for choice in server.ok("/v1/chat/completions", **body, n=4, seed=1, receipt=True)["choices"]:
        assert choice["finish_reason"] == "stop"
        value = json.loads(choice["message"]["content"])
        assert value["name"] in ("Sue", "Tim") and value["age"] <= 9
        assert verify(storyteller, choice["receipt"])["identical"]


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"regex": "(yes|no), [a-z]{3}"}, "(yes|no), [a-z]{3}"),
        ({"grammar": 'start: "a" /[0-9]+/ "b"'}, "a[0-9]+b"),
        ({"grammar": 'root ::= "a"{3,3} digit+ "b"\ndigit ::= [0-9]'}, "aaa[0-9]+b"),
        ({"json_schema": {"enum": ["x", "y"]}}, '"[xy]"'),
    ],
)
def test_completions_match(
    server: Running, storyteller: Llama, options: dict[str, Any], pattern: str
) -> None:
    body = {"prompt": "Once", "seed": 5, "max_tokens": 60, "receipt": True, **options}
    (choice,) = server.ok("/v1/completions", **body)["choices"]
    if choice["finish_reason"] == "stop":
        assert re.fullmatch(pattern, choice["text"])
    assert verify(storyteller, choice["receipt"])["identical"]
    chunks = server.events("/v1/completions", **body)
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == choice["text"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"regex": "("},
        {"regex": ""},
        {"grammar": "start: nothing"},
        {"grammar": "root ::= this is (not valid GBNF"},
        {"json_schema": {"type": 5}},
        {"json_schema": "{"},
        {"regex": "a", "grammar": 'start: "a"'},
    ],
)
def test_what_is_wrong_is_named(server: Running, wrong: dict[str, Any]) -> None:
    answer = server.post("/v1/completions", prompt="x", max_tokens=3, **wrong)
    if answer.status_code != 200:
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] in wrong
    server.ok("/v1/completions", prompt="x", max_tokens=2)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The expression "slow" is compiled until the test ends."""
    go_on, compile_ = threading.Event(), constraint._Vocabulary.compile

    def compile_slowly(self: Any, argument: str, text: str, strips: bool) -> Any:
        if text == "slow":
            go_on.wait()
        return compile_(self, argument, text, strips)

    monkeypatch.setattr(constraint._Vocabulary, "compile", compile_slowly)
    yield
    go_on.set()


def test_others_do_not_wait_for_a_slow_one(slow: None) -> None:
    """Neither the loop nor its threads, which are fewer."""
    with Llama() as llama, serving(llama) as server:
        kept = {"prompt": ["x", [5]], "regex": "abc"}
        server.ok("/v1/completions", **kept)
        body = b'{"prompt":"x","regex":"slow"}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n"
        request = head % len(body) + b"content-type: application/json\r\n\r\n" + body
        for _ in range(40):
            server.raw(request)
        with httpx.Client(base_url=server.url, timeout=600) as http:
            assert http.post("/tokenize", json={"content": "x"}).status_code == 200
            answer = http.post("/v1/completions", json=kept)
            assert [choice["text"] for choice in answer.json()["choices"]] == ["abc", "abc"]


def test_one_that_takes_too_long(slow: None) -> None:
    with Llama() as llama, serving(llama, limits=Limits(wait=0.1)) as server:
        answer = server.post("/v1/completions", prompt="x", regex="slow")
        assert answer.status_code == 503, answer.text
        assert "not compiled within 0.1 seconds" in answer.json()["error"]["message"]


def test_a_limit_in_the_middle_of_a_story(server: Running) -> None:
    """What the client sent is wrong, not the server."""
    body = {"prompt": "x", "grammar": 'start: "a" start'}
    answer = server.post("/v1/completions", **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "grammar"
