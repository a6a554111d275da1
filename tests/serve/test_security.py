"""Who may ask: hosts, origins, keys, binds."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import httpx
import pytest
from environment import run_python
from http_server import Running, served_by_command, serving

from pyllama2c import Llama
from pyllama2c.serve.run import _Escaped

BODY = {"prompt": "x", "max_tokens": 1}


def status(server: Running, path: str = "/v1/completions", **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if path == "/v1/completions":
        return server.http.post(path, json=BODY, headers=names).status_code
    return server.http.get(path, headers=names).status_code


def test_hosts(server: Running) -> None:
    """DNS rebinding (llama.cpp PR 25655, gpt4all PR 3587): a foreign name that points here."""
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8080", "a.localhost", "10.0.0.7"):
        assert status(server, Host=host) == 200, host
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.io"):
        for path in ("/v1/completions", "/health", "/v1/models", "/"):
            answer = status(server, path, Host=host)
            assert answer == 403, (host, path)


def test_origins(server: Running) -> None:
    assert status(server, Origin=server.url) == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"):
        assert status(server, Origin=origin) == 403
    preflight = {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    answer = server.http.options("/v1/completions", headers=preflight)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_cors_only_where_asked_for(storyteller: Llama) -> None:
    page = "http://page.example"
    with serving(storyteller, slots=2, origins=[page], key="k") as server:
        preflight = {
            "Origin": page,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,authorization",
        }
        answer = server.http.options("/v1/completions", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page
        headers = {"Origin": page, "Authorization": "Bearer k"}
        answer = server.http.post("/v1/completions", json=BODY, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page
        answer = server.http.post("/v1/completions", json=BODY, headers={"Origin": page})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == page
        assert status(server, Origin="http://evil.example", Authorization="Bearer k") == 403


def test_keys(storyteller: Llama) -> None:
    with serving(storyteller, slots=2, key="schlüssel") as server:
        assert status(server) == 401
        for wrong in ("Bearer", "Bearer x", "Basic schl", "schl", "Bearer schluessel"):
            assert status(server, Authorization=wrong) == 401
        raw = {"Authorization": b"Bearer " + "schlüssel".encode()}
        assert httpx.post(f"{server.url}/v1/completions", json=BODY, headers=raw).status_code == 200
        raw = {"X-Api-Key": "schlüssel".encode()}
        assert httpx.post(f"{server.url}/v1/completions", json=BODY, headers=raw).status_code == 200
        for path in ("/health", "/v1/models", "/models", "/v1/health"):
            assert status(server, path) == 200
        for path in ("/metrics", "/slots", "/props", "/openapi.json", "/api/verify", "/nothing"):
            answer = server.http.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"


def test_a_key_is_any_bytes(tmp_path: Path) -> None:
    """Also where the last of them, as Latin-1, would be white space: the two bytes of an à."""
    for key in ("voilà".encode(), b"\xff\xfe"):
        (tmp_path / "key").write_bytes(key + b"\n")
        for words, environment in (
            (("--api-key-file", tmp_path / "key"), {}),
            ((), {"PYLLAMA2C_API_KEY": os.fsdecode(key)}),
        ):
            with served_by_command("--slots", "2", *words, **environment) as (_, url, _lines):
                for headers in ({"X-Api-Key": key}, {"Authorization": b"Bearer " + key}):
                    assert httpx.get(f"{url}/metrics", headers=headers).status_code == 200
                assert httpx.get(f"{url}/metrics").status_code == 401


def test_no_line_of_the_log_can_be_faked() -> None:
    """Neither by what is logged nor by an exception's text."""
    try:
        raise ValueError("\x1b[31m\n2026-01-01 ERROR faked")
    except ValueError:
        text = "\x1b[2J\r\n2026-01-01 ERROR faked"
        record = logging.LogRecord("x", logging.ERROR, "x", 1, text, (), sys.exc_info())
    lines = _Escaped("at %(levelname)s %(message)s").format(record).splitlines()
    assert lines[0].startswith("at ERROR ") and all(line.startswith("  ") for line in lines[1:])
    assert "\\x1b[31m" in lines[-2] and all(map(str.isprintable, lines))


def test_only_json_is_taken(server: Running) -> None:
    """What a page elsewhere can send without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = server.http.post(
            "/v1/completions", content='{"prompt": "x"}', headers={"content-type": kind}
        )
        assert answer.status_code == 415


def test_a_public_server_needs_a_key() -> None:
    done = run_python("-m", "pyllama2c", "serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 1 and "--insecure" in done.stderr and done.stderr.count("\n") == 1
    with served_by_command("--host", "0.0.0.0", PYLLAMA2C_API_KEY="k") as (_, url, _lines):
        local = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.post(f"{local}/v1/completions", json=BODY).status_code == 401
        headers = {"authorization": "Bearer k"}
        answer = httpx.post(f"{local}/v1/completions", json=BODY, headers=headers)
        assert answer.status_code == 200


@pytest.mark.parametrize("command", ["serve", "verify"])
def test_a_package_that_is_missing_is_named(command: str) -> None:
    code = (
        "import sys; sys.modules['msgspec'] = None; from pyllama2c.cli.main import main; "
        f"sys.exit(main(['{command}', '/dev/null']))"
    )
    done = run_python("-c", code)
    assert done.returncode == 1 and "pip install 'pyllama2c[serve]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--slots", "0"), "--slots"),
        (("--slots", "1000"), "1 to 256"),
        (("--join-ms", "nan"), "--join-ms"),
        (("--wait-timeout", "-1"), "--wait-timeout"),
        (("--port", "70000"), "port"),
        (("--host", "203.0.113.77", "--insecure"), "assign"),
        (("--api-key-file", "/nonexistent"), "/nonexistent"),
        (("--api-key-file", "/dev/null"), "/dev/null is empty"),
        (("/nonexistent.bin",), "/nonexistent.bin"),
    ],
)
def test_flags_that_are_wrong(words: tuple[str, ...], message: str) -> None:
    done = run_python("-m", "pyllama2c", "serve", *words)
    assert done.returncode in (1, 2)
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
