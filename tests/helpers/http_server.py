"""A real server on loopback, in a thread of this process or in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from pyllama2c import Llama
from pyllama2c.serve.app import App
from pyllama2c.serve.run import HttpServer, listen
from pyllama2c.serve.security import Guard
from pyllama2c.serve.service import Limits, Service


class Running:
    """A server, and a client of it."""

    def __init__(self, service: Service, server: HttpServer, port: int):
        self.service, self.server, self.port = service, server, port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=None)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def ok(self, path: str, **body: Any) -> Any:
        answer = self.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream, decoded; [DONE] as its text."""
        with self.http.stream("POST", path, json=body | {"stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            return list(decoded(answer.iter_lines()))

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(n.split()[-1]) for n in lines if n.startswith(f"pyllama2c:{name} "))

    def wait_until_idle(self) -> None:
        """All stories have ended, or been dropped, also for the engine."""
        wait(lambda: self.metric("requests_processing") == 0 == self.metric("requests_deferred"))
        wait(lambda: self.service.engine.n_stories == 0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The engine stands still between two sweeps, from the next one on that has something to
        tell."""
        outbox, gate = self.service.engine._outbox, threading.Event()
        post = outbox._post

        def post_and_wait(told: Any) -> None:
            post(told)
            gate.wait()

        outbox._post = post_and_wait  # type: ignore[method-assign]
        try:
            yield
        finally:
            outbox._post = post  # type: ignore[method-assign]
            gate.set()

    def raw(self, data: bytes) -> socket.socket:
        """A connection that has sent `data`."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=None)
        connection.sendall(data)
        return connection


def decoded(lines: Iterator[str]) -> Iterator[Any]:
    for line in lines:
        if line.startswith("data: "):
            text = line.removeprefix("data: ")
            yield text if text == "[DONE]" else json.loads(text)


def wait(condition: Any) -> None:
    """The clock only bounds a wait for what has to come."""
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


@contextlib.contextmanager
def serving(
    llama: Llama,
    *,
    slots: int | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    key: str | None = None,
    strict_model: bool = False,
    drain_seconds: float = 30,
) -> Iterator[Running]:
    """A server in a thread. What it logs is for the test to look at (caplog)."""
    service = Service(llama, slots=slots, limits=limits)
    app = App(service, Guard(hosts, origins, key), strict_model=strict_model)
    listener = listen("127.0.0.1", 0)
    ready, failed = threading.Event(), []

    async def run() -> None:
        nonlocal server
        server = HttpServer(service, app, listener, drain_seconds)
        await server.run(ready.set, signals=False)

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
            ready.set()

    server: Any = None
    running_thread = threading.Thread(target=thread)
    running_thread.start()
    ready.wait()
    running = Running(service, server, listener.getsockname()[1]) if not failed else None
    try:
        if running is not None:
            yield running
    finally:
        if running is not None:
            running.http.close()
            server.stop_threadsafe()
            server.stop_threadsafe()
        running_thread.join()
        listener.close()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def served_by_command(
    *words: str | Path, **environment: str
) -> Iterator[tuple[Any, str, list[str]]]:
    """`pyllama2c serve` in a process: the process, its URL, and the lines of its standard error."""
    command = [sys.executable, "-m", "pyllama2c", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        while not lines or "http://" not in lines[-1]:
            line = process.stderr.readline()
            assert line, lines
            lines.append(line)
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
        reader.start()
        yield process, lines[-1].split()[-1], lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        process.stderr.close()
        assert process.stdout is not None
        process.stdout.close()
