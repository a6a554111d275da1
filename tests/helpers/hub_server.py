"""A server on loopback that speaks as much of the Hugging Face hub's API as its clients need."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
LARGE = (".gguf", ".bin", ".safetensors", ".pth", ".model")
"""what repositories keep by Git LFS"""


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        """A new commit, which the revision becomes."""
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name] = files
        self.revisions[revision] = name
        return name


class Hub:
    """Its repositories, the requests that were made, and what goes wrong."""

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.cuts = 0
        """downloads that break off in the middle"""
        self.garbled = 0
        """downloads with a wrong byte"""
        self.sizes: dict[str, int] = {}
        """that the listing has, by the file's name"""
        self.status: dict[str, int] = {}
        """answers to requests whose path has that in it"""
        self.stopped = threading.Event()
        """downloads wait in the middle, if it is clear"""
        self.waiting = threading.Event()
        """one does"""
        self.stopped.set()

    def repo(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        self.repos[name] = Repo(**options)
        self.repos[name].commit(files)
        return self.repos[name]

    def downloads(self) -> list[str]:
        """The names of the files whose content was asked for."""
        found = (re.match(r"GET /[^ ]+/resolve/[^/]+/([^ ]+)", each) for each in self.requests)
        return [match[1] for match in found if match]


def _listed(name: str, data: bytes, size: int) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"rfilename": name, "size": size, "blobId": blob}
    if name.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": size, "pointerSize": 134}
    return entry


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = urlsplit(self.path)
            wanted = self.headers.get("Range")
            hub.requests.append(f"{self.command} {path.path}" + (f" {wanted}" if wanted else ""))
            for part, status in hub.status.items():
                if part in path.path:
                    return self._refuse(status)
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path.path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path.path)
            match = listing or file
            if match is None:
                return self._refuse(404)
            repo = hub.repos.get(match[1])
            token = self.headers.get("Authorization")
            if token not in (None, f"Bearer {TOKEN}"):
                message = "Invalid credentials in Authorization header"
                return self._refuse(401, **{"X-Error-Message": message})
            if repo is None or (repo.private and token is None):
                if token is None:
                    return self._refuse(401)
                return self._refuse(404, **{"X-Error-Code": "RepoNotFound"})
            revision = unquote(match[2])
            commit = repo.revisions.get(revision, revision)
            if commit not in repo.commits:
                return self._refuse(404, **{"X-Error-Code": "RevisionNotFound"})
            files = repo.commits[commit]
            if listing:
                siblings = [
                    _listed(name, data, hub.sizes.get(name, len(data)))
                    for name, data in files.items()
                ]
                answer = {"id": match[1], "sha": commit, "siblings": siblings}
                return self._send(json.dumps(answer).encode(), {})
            if repo.gated:
                return self._refuse(403, **{"X-Error-Code": "GatedRepo"})
            name = unquote(match[3])
            if name not in files:
                return self._refuse(404, **{"X-Error-Code": "EntryNotFound"})
            entry = _listed(name, files[name], len(files[name]))
            etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
            self._send(files[name], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

        def _send(self, data: bytes, headers: dict[str, str]) -> None:
            start = 0
            if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(wanted[1])
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            for header, value in headers.items():
                self.send_header(header, value)
            rest = data[start:]
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if headers and hub.garbled:
                hub.garbled -= 1
                rest = bytes([rest[0] ^ 1]) + rest[1:]
            if headers and hub.cuts:
                hub.cuts -= 1
                self.wfile.write(rest[: len(rest) // 2])
                self.close_connection = True
                return
            if headers and not hub.stopped.is_set():
                self.wfile.write(rest[: len(rest) // 2])
                self.wfile.flush()
                hub.waiting.set()
                hub.stopped.wait(600)
                rest = rest[len(rest) // 2 :]
            try:
                self.wfile.write(rest)
            except OSError:  # the client has gone
                self.close_connection = True

        def _refuse(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield hub
        hub.stopped.set()
        server.shutdown()
        thread.join()
