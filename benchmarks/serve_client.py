"""The client of serve.py: bare sockets in another process, which take little from the server."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import re
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

Body = dict[str, Any]


class Load(NamedTuple):
    """Requests that were asked at once, and answered."""

    seconds: float
    tokens: int


def encoded(body: Body, *, close: bool) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"connection: {'close' if close else 'keep-alive'}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _n_tokens(answer: bytes) -> int:
    """Of a whole answer, or events with text in a stream."""
    if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
        raise RuntimeError(answer[:500].decode("utf-8", "replace"))
    counted = re.search(rb'"completion_tokens": ?(\d+)', answer)
    if counted and b"data: " not in answer:
        return int(counted[1])
    return len(re.findall(rb'data: {.*"text": ?"[^"]', answer))


def _is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return len(body) == int(length[1]) if length else answer.endswith(b"\r\n0\r\n\r\n")


def load(port: int, bodies: Sequence[Body]) -> Load:
    """Asks all at once, each over a connection of its own that is open already."""
    connections = [_connect(port) for _ in bodies]
    requests = [encoded(body, close=True) for body in bodies]
    answers: dict[socket.socket, list[bytes]] = {connection: [] for connection in connections}
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        started = time.perf_counter()
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
        while selector.get_map():
            for key, _ in selector.select():
                connection = key.fileobj  # type: ignore[assignment]
                part = connection.recv(1 << 16)
                answers[connection].append(part)
                if not part:
                    selector.unregister(connection)
                    connection.close()
        seconds = time.perf_counter() - started
    return Load(seconds, sum(_n_tokens(b"".join(parts)) for parts in answers.values()))


def _answer(connection: socket.socket, request: bytes) -> bytes:
    """Empty where the server has closed the connection."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        connection.sendall(request)
        while not _is_whole(answer) and (part := connection.recv(1 << 16)):
            answer += part
    return answer


def alone(port: int, bodies: Sequence[Body]) -> list[float]:
    """Asks one after the other over one connection; the seconds of each."""
    out = []
    connection = _connect(port)
    for body in bodies:
        request = encoded(body, close=False)
        started = time.perf_counter()
        answer = _answer(connection, request)
        if not answer:  # as llama.cpp's server does after a stream
            connection.close()
            connection = _connect(port)
            answer = _answer(connection, request)
        out.append(time.perf_counter() - started)
        if not (_n_tokens(answer) and _is_whole(answer)):
            raise RuntimeError(answer.decode("utf-8", "replace"))
    connection.close()
    return out


def arrive(port: int, bodies: Sequence[Body], every: float) -> Load:
    """Asks one after the other, `every` so many seconds, whether others are answered or not."""
    started = time.perf_counter()
    connections = []
    for i, body in enumerate(bodies):
        time.sleep(max(0.0, started + i * every - time.perf_counter()))
        connections.append(_connect(port))
        connections[-1].sendall(encoded(body, close=True))
    tokens = 0
    for connection in connections:
        with connection, connection.makefile("rb") as answer:
            tokens += _n_tokens(answer.read())
    return Load(time.perf_counter() - started, tokens)


_CALLS = {call.__name__: call for call in (load, alone, arrive)}


class Client:
    """These functions, in the other process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, self._results = context.SimpleQueue(), context.SimpleQueue()
        arguments = (self._calls, self._results)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()

    def begin(self, name: str, *arguments: Any) -> None:
        self._calls.put((name, arguments))

    def result(self) -> Any:
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def call(self, name: str, *arguments: Any) -> Any:
        self.begin(name, *arguments)
        return self.result()

    def close(self) -> None:
        self._calls.put(None)
        self._process.join()


def _work(calls: Any, results: Any) -> None:
    while (call := calls.get()) is not None:
        name, arguments = call
        try:
            results.put(_CALLS[name](*arguments))
        except Exception as error:
            results.put(error)
