"""Known models against a server on loopback: good, wrong, cut, missing, and two at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from environment import DATA
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import CheckpointWarning, DownloadError, Llama, UnknownModelError
from pyllama2c.files import hub

CHECKPOINT = TinyLlama.random(Shape()).v0()
TOKENIZER = tokenizer_file()


class Handler(BaseHTTPRequestHandler):
    requests: list[str]
    failures: int
    """requests that get no answer"""
    gone: threading.Event
    """the test is over"""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if Handler.failures:
            Handler.failures -= 1
            self.close_connection = True
            return
        if self.path == "/silent.bin":
            Handler.gone.wait(600)
            self.close_connection = True
            return
        if self.path == "/error.bin":
            self.send_error(503)
            return
        contents = {"/model.bin": CHECKPOINT, "/tokenizer.bin": TOKENIZER}
        contents["/login.bin"] = b"<!DOCTYPE html><title>Sign in</title>"
        contents |= {"/wrong.bin": CHECKPOINT[:-1] + b"?", "/cut.bin": CHECKPOINT}
        if self.path not in contents:
            self.send_error(404)
            return
        data = contents[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.path == "/cut.bin" else data)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Handler.requests, Handler.failures, Handler.gone = [], 0, threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        Handler.gone.set()
        running.shutdown()
        thread.join()


def entry(server: ThreadingHTTPServer, path: str, data: bytes) -> dict[str, object]:
    url = f"http://127.0.0.1:{server.server_port}/{path}"
    return {"url": url, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture
def registry(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> hub.Registry:
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "RETRIES", 0)
    table = {
        "files": {
            "tiny.bin": entry(server, "model.bin", CHECKPOINT),
            "tok.bin": entry(server, "tokenizer.bin", TOKENIZER),
            "wrong.bin": entry(server, "wrong.bin", CHECKPOINT),
            "cut.bin": entry(server, "cut.bin", CHECKPOINT),
            "missing.bin": entry(server, "missing.bin", CHECKPOINT),
        },
        "models": {"tiny": {"checkpoint": "tiny.bin", "tokenizer": "tok.bin"}},
    }
    path = tmp_path / "registry.json"
    path.write_text(json.dumps(table))
    return hub.Registry(path)


def test_download_once_then_from_the_cache(registry: hub.Registry) -> None:
    path = registry.fetch("tiny.bin")
    assert path.read_bytes() == CHECKPOINT
    assert path == hub.cache_folder() / "tiny.bin"
    assert registry.fetch("tiny.bin") == path
    assert Handler.requests == ["/model.bin"]


def test_a_damaged_cached_file_is_fetched_again(registry: hub.Registry) -> None:
    path = registry.fetch("tiny.bin")
    path.write_bytes(CHECKPOINT[:100])  # another size is noticed at every use
    assert registry.fetch("tiny.bin").read_bytes() == CHECKPOINT
    path.write_bytes(b"\0" * len(CHECKPOINT))  # the same size, by `download`
    assert registry.fetch("tiny.bin", recheck=True).read_bytes() == CHECKPOINT


@pytest.mark.parametrize("name", ["wrong.bin", "cut.bin", "missing.bin"])
def test_bad_downloads_leave_nothing_behind(registry: hub.Registry, name: str) -> None:
    with pytest.raises(DownloadError) as caught:
        registry.fetch(name)
    message = str(caught.value)
    file = registry.files[name]
    assert "\n" not in message
    for part in (file.url, file.sha256, str(hub.cache_folder() / name), f"{file.size:,} bytes"):
        assert part in message
    assert isinstance(caught.value, OSError)
    assert [p.name for p in hub.cache_folder().iterdir() if p.suffix == ".bin"] == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/x", r"no connection to 127\.0\.0\.1 \(is there a network\?\)"),
        ("{server}/missing.bin", r"127\.0\.0\.1 answered 404 Not Found"),
        ("{server}/error.bin", r"127\.0\.0\.1 answered 503 Service Unavailable"),
        (
            "{server}/wrong.bin",
            r"what 127\.0\.0\.1 sent is a llama2\.c checkpoint with another SHA",
        ),
        ("{server}/login.bin", r"what 127\.0\.0\.1 sent is a web page"),
        ("{server}/cut.bin", r"the connection to 127\.0\.0\.1 broke off"),
        ("{server}/silent.bin", r"127\.0\.0\.1 did not answer within 0\.2 seconds"),
        ("{secure}/model.bin", r"no secure connection to 127\.0\.0\.1"),
    ],
)
def test_the_reason_in_words(
    registry: hub.Registry,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    reason: str,
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.2 if "silent" in url else 30)
    address = f"127.0.0.1:{server.server_port}"
    url = url.format(server=f"http://{address}", secure=f"https://{address}")
    registry.files["tiny.bin"] = registry.files["tiny.bin"]._replace(url=url)
    with pytest.raises(
        DownloadError, match=f"cannot download tiny.bin: {reason}.*by hand"
    ) as caught:
        registry.fetch("tiny.bin")
    for noise in ("Connection", "HTTP", "urllib3", "Errno", "object at 0x", "tmp", ".part"):
        assert noise not in str(caught.value).split(" Fetch ")[0]


def test_a_connection_that_comes_back(
    registry: hub.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RETRIES", 2)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    Handler.failures = 2
    assert registry.fetch("tiny.bin").read_bytes() == CHECKPOINT
    assert Handler.requests == ["/model.bin"] * 3
    with pytest.raises(DownloadError):
        registry.fetch("missing.bin")
    assert Handler.requests[3:] == ["/missing.bin"]  # asking again would change nothing


def test_a_proxy_that_is_not_there(registry: hub.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    file = registry.files["tiny.bin"]._replace(url="http://name.invalid/x")
    registry.files["tiny.bin"] = file
    with pytest.raises(DownloadError, match=r"no connection to name\.invalid through the proxy"):
        registry.fetch("tiny.bin")


def test_a_cache_that_cannot_be_written(
    registry: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"/file/cache: Not a directory.*PYLLAMA2C_CACHE names"):
        registry.fetch("tiny.bin")
    assert (tmp_path / "file").read_text() == "in the way"
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path))
    (tmp_path / "tiny.bin").mkdir()
    with pytest.raises(DownloadError, match=r"tiny\.bin: is a folder"):
        registry.fetch("tiny.bin")


def test_others_may_read_what_was_downloaded(registry: hub.Registry) -> None:
    old = os.umask(0o022)
    try:
        assert registry.fetch("tiny.bin").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


def test_two_processes_at_once(registry: hub.Registry, tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from pyllama2c.files import hub
        path = hub.Registry(Path(sys.argv[1])).fetch("tiny.bin")
        sys.stdout.buffer.write(path.read_bytes())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "registry.json")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=DATA) for _ in range(4)]
    assert [process.communicate(timeout=600)[0] for process in running] == [CHECKPOINT] * 4
    assert [process.returncode for process in running] == [0] * 4
    assert [p.name for p in hub.cache_folder().iterdir()] == ["tiny.bin"]


def test_models_by_name(registry: hub.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "Registry", lambda: registry)
    with Llama("tiny") as llama:
        assert llama.path == str(hub.cache_folder() / "tiny.bin")
        assert Handler.requests == ["/model.bin"]  # the tokenizer only when it is needed
        assert len(llama.generate("ab", seed=1, max_tokens=3).tokens) == 0
        assert Handler.requests == ["/model.bin", "/tokenizer.bin"]
    with pytest.raises(UnknownModelError, match=r"'huge' is neither .* known: tiny"):
        Llama("huge")
    with pytest.raises(UnknownModelError, match="known: tiny"):
        hub.download_model("huge")
    assert [p.name for p in hub.download_model("tiny")] == ["tiny.bin", "tok.bin"]


def test_a_local_file_comes_first(
    registry: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "Registry", lambda: registry)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.bin").write_bytes(CHECKPOINT)
    (tmp_path / "models" / "tok.bin").write_bytes(TOKENIZER)
    with pytest.warns(
        CheckpointWarning, match=r"checkpoint of tiny: using /.*/tiny.bin"
    ) as of_model:
        llama = Llama("tiny")
    assert llama.path == "models/tiny.bin"
    with pytest.warns(
        CheckpointWarning, match=r"tokenizer of tiny: using /.*/tok.bin"
    ) as of_pieces:
        assert llama.tokenizer.vocab_size == 300
    llama.close()
    assert {of_model[0].filename, of_pieces[0].filename} == {__file__}
    assert Handler.requests == []


def test_the_shipped_registry() -> None:
    registry = hub.Registry()
    assert list(registry.models) == ["stories260K", "stories15M", "stories42M", "stories110M"]
    for parts in registry.models.values():
        assert {parts["checkpoint"], parts["tokenizer"]} <= set(registry.files)
    for file in registry.files.values():
        # A commit: what a branch has may change, and would then be refused.
        assert re.search(r"/(resolve|raw)/[0-9a-f]{40}/", file.url)
        assert file.url.startswith("https://") and len(file.sha256) == 64 and file.size > 0


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path))
    assert hub.cache_folder() == tmp_path
    monkeypatch.delenv("PYLLAMA2C_CACHE")
    assert hub.cache_folder().name == "pyllama2c"
