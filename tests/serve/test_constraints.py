"""json_schema, regex and grammar over HTTP; they are held in C, so that receipts repeat them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from http_server import Running

from pyllama2c import Llama
from pyllama2c.serve.receipts import verify

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
        assert any(name in answer.json()["error"]["message"] for name in wrong)
    server.ok("/v1/completions", prompt="x", max_tokens=2)
