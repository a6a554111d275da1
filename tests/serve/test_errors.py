"""Requests that are wrong, or hostile: 4xx in the API's shape, or cut off; never a traceback."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from http_server import Running, serving

from pyllama2c import Llama
from pyllama2c.serve.service import Limits

JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
    assert not caplog.records, caplog.text


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["message"]
    return error


MANY = dict.fromkeys(map(str, range(301)), 1)
WRONG_FIELDS = {
    "temperature": [-1, True, "1", [], {}],
    "top_p": [-0.1, 1.1, "x", True],
    "n": [0, -1, 17, 1.5, True, "2", 10**30],
    "max_tokens": [-1, 1.5, True, "10", 10**40],
    "seed": [-2, 2**64, 1.5, True, "x", "1e3", "9" * 500, "-1 "],
    "stop": [5, [5], [""], "", ["x" * 257], ["x"] * 17, {"a": 1}],
    "echo": [1, "true"],
    "logprobs": [21, -1, True, "5"],
    "stream": [1, "yes"],
    "stream_options": [5, {"include_usage": 1}, {"x": 1}, {"include_usage": True}],
    "logit_bias": [5, [], {"x": 1}, {"-1": 1}, {"99999999": 1}, {"5": 101}, {"5": True}, MANY],
    "presence_penalty": [2.1, -2.1, True, "1"],
    "frequency_penalty": [2.1, -2.1, True],
    "top_k": [-2, 2**31, True, 1.5],
    "min_p": [-1, 2, True],
    "repetition_penalty": [0, -1, True],
    "stop_token_ids": [[-1], [True], 5, ["x"], [2048], [2**31], [2**70]],
    "best_of": [2, True, "1"],
    "suffix": ["x", 5],
    "model": [5, []],
    "prompt": [None, 5, [], [[]], [1, "x"], [1, [2]], [-1], [2048], [2**70], {}, True, ["a"] * 65],
    "no_such_field": [1, None],
    "tools": [[]],
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_wrong_field_is_named(server: Running, field: str) -> None:
    for value in WRONG_FIELDS[field]:
        error = refused(server.post("/v1/completions", **{"prompt": "x", field: value}))
        assert error["param"] is not None and error["param"].startswith(field), (value, error)
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_predict", 2**64), ("repeat_penalty", 1e300), ("logit_bias", [[5, 1e300]]), ("seed", -2)],
)
def test_llama_cpps_fields_have_llama_cpps_names(server: Running, field: str, value: Any) -> None:
    error = refused(server.post("/completion", **{"prompt": "x", field: value}))
    assert error["param"] == field and error["message"].startswith(field)


CHAT = {
    "tools": [[{"type": "function"}], 5],
    "tool_choice": ["required", {"type": "function"}],
    "functions": [[{}]],
    "modalities": [["text", "audio"]],
    "audio": [{}],
    "prediction": [{}],
    "web_search_options": [{}],
    "top_logprobs": [5, 21],
    "logprobs": [5],
    "response_format": [{"type": "xml"}, {"type": "json_schema"}],
    "max_completion_tokens": [-1],
}


@pytest.mark.parametrize("field", CHAT)
def test_a_field_that_is_not_supported_is_refused(server: Running, field: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    for value in CHAT[field]:
        answer = server.post("/v1/chat/completions", **{"messages": messages, field: value})
        error = refused(answer)
        assert str(error["param"]).startswith(field), error


BODIES = [
    b"",
    b"x",
    b"null",
    b"[]",
    b"5",
    b'"x"',
    b"{",
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "temperature": -Infinity}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "x", "max_tokens": 1e1}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "x"} {"prompt": "x"}',
    b"\xef\xbb\xbf{}",
    b'{"prompt": ' + b"[" * 100_000,
    b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b'{"metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    b"\0" * 100,
    "prompt=x".encode("utf-16"),
]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/completion", "/tokenize", "/api/verify"]
)
def test_bodies_that_are_no_request(server: Running, path: str) -> None:
    for body in BODIES:
        refused(server.http.post(path, content=body, headers=JSON))


@pytest.mark.parametrize("stream", [False, True])
def test_biases_beyond_float32(server: Running, stream: bool) -> None:
    """What the client asked for; the model's own numbers are fine."""
    bias = {"logit_bias": [[437, 3.4e38]], "repeat_penalty": 1e-3, "stream": stream}
    answer = server.post("/completion", prompt=[1, 437], n_predict=3, **bias)
    assert refused(answer)["code"] == "non_finite_logits"


def test_a_prompt_that_is_too_long(server: Running) -> None:
    error = refused(server.post("/v1/completions", prompt=[5] * 513))
    assert error["code"] == "context_length_exceeded"
    assert (error["n_prompt_tokens"], error["n_ctx"], error["param"]) == (513, 512, "prompt")
    error = refused(
        server.post("/v1/chat/completions", messages=[{"role": "user", "content": "cat " * 999}])
    )
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    assert server.ok("/v1/completions", prompt=[5] * 512)["choices"][0]["finish_reason"] == "length"


def test_paths_methods_and_types(server: Running) -> None:
    http = server.http
    refused(http.get("/nothing"), 404)
    refused(http.get("/v1/models/other"), 404)
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"):
        error = http.request(method, "/v1/completions")
        refused(error, 405)
        assert error.headers["allow"] == "POST"
    refused(http.post("/health", json={}), 405)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        body = '{"prompt": "x"}'
        answer = http.post("/v1/completions", content=body, headers={"content-type": kind})
        refused(answer, 415)
    headers = JSON | {"content-encoding": "gzip"}
    refused(http.post("/v1/completions", content=b"x", headers=headers), 415)


def test_bodies_that_are_too_large(server: Running) -> None:
    large = b'{"prompt": "' + b"x" * (1 << 20) + b'"}'
    refused(httpx.post(f"{server.url}/v1/completions", content=large, headers=JSON), 413)

    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 50_000

    # The server stops reading in the middle.
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):
        answer = httpx.post(f"{server.url}/v1/completions", content=chunks(), headers=JSON)
        refused(answer, 413)


def test_any_model_name_but_with_strict_model(server: Running, storyteller: Llama) -> None:
    assert server.ok("/v1/completions", prompt="x", model="gpt-5")["model"] == "storyteller"
    with serving(storyteller, slots=2, strict_model=True) as strict:
        for path in ("/v1/completions", "/v1/chat/completions"):
            field = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
            name = "prompt" if path == "/v1/completions" else "messages"
            body = {"model": "gpt-5", name: field[name]}
            assert refused(strict.post(path, **body), 404)["code"] == "model_not_found"
        strict.ok("/v1/completions", prompt="x", model="storyteller")


# ---- Raw bytes ----


def answer_to(server: Running, data: bytes, half_close: bool = False) -> bytes:
    """All that comes back; empty where the connection was cut off."""
    with server.raw(data) as connection:
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)


def request(body: bytes, *headers: str, path: str = "/v1/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def is_refused(answer: bytes) -> bool:
    """4xx with the error's shape, or nothing; once, or for each of several requests."""
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        status, length = int(head.split()[1]), int(re.findall(rb"content-length: (\d+)", head)[0])
        if not (400 <= status < 500 and "message" in json.loads(rest[:length])["error"]):
            return False
        answer = rest[length:]
    return True


NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET\r\n\r\n",
    b"\0\0\0\0\r\n\r\n",
    b"GET /x HTTP/9.9\r\nhost: localhost\r\n\r\n",
    b"GET /x HTTP/1.1\r\n\r\n",  # no host
    b"GET /x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /x HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /x HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    b"GET /x HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n"
    b"content-length: 6\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
    b"content-type: application/json\r\n\r\nzz\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nhost: evil.example\r\n\r\n",
]


def test_what_is_not_http(server: Running) -> None:
    for data in NOT_HTTP:
        # Half-closed, so that an answer that waits for more comes to an end.
        assert is_refused(answer_to(server, data, half_close=True)), data[:80]


def test_three_hundred_hostile_requests(server: Running) -> None:
    """Wrong values of every kind for every field, alone and two at a time; bodies cut off in the
    middle; in raw bytes, as no client would send them."""
    rng = random.Random(1)
    values = [None, True, -1, 0, 1.5, 2**63, 10**400, "", "x", "\0", [], [[]], {}, {"": None}]
    names = [*WRONG_FIELDS, "messages", "max_completion_tokens", "top_logprobs", "response_format"]
    paths = ["/v1/completions", "/v1/chat/completions", "/completion", "/tokenize", "/detokenize"]
    cases = itertools.product(names, values)
    for i, (name, value) in enumerate(itertools.islice(cases, 300)):
        body: dict[str, Any] = {"prompt": "x", "max_tokens": 1, name: value}
        body[rng.choice(names)] = rng.choice(values)
        data = json.dumps(body).encode()
        whole = request(data, path=paths[i % len(paths)])
        if i % 7 == 0:
            whole = whole[: rng.randrange(len(whole))]
        answer = answer_to(server, whole, half_close=i % 7 == 0 or i % 11 == 0)
        fine = answer.startswith(b"HTTP/1.1 200 ") and i % 7
        assert fine or is_refused(answer), (body, answer)
    server.ok("/v1/completions", prompt="x", max_tokens=1)
    server.wait_until_idle()


def test_slow_bodies_are_cut_off(storyteller: Llama) -> None:
    with serving(storyteller, slots=2, limits=Limits(wait=0.2)) as server:
        data = request(b'{"prompt": "x"}')
        assert answer_to(server, data[:-3]) == b""
        server.ok("/v1/completions", prompt="x", max_tokens=1)


def test_slow_headers_are_cut_off(storyteller: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllama2c.serve.run._HEADER_SECONDS", 0.2)
    with serving(storyteller, slots=2) as server:
        assert answer_to(server, b"POST /v1/comp") == b""
        server.ok("/v1/completions", prompt="x", max_tokens=1)  # and a second slow one after it
        whole = request(b'{"prompt": "x", "max_tokens": 1}').replace(b"connection: close\r\n", b"")
        with server.raw(whole) as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(b"POST /v1/comp")
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(65536):
                    pass
