"""The server's process: listening, signals, draining. uvicorn speaks HTTP; its own signal handling
waits for streams that are open without an end (uvicorn issue 451), so that this has its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pyllama2c import validate
from pyllama2c.serve.app import App
from pyllama2c.serve.errors import ApiError
from pyllama2c.serve.service import Service

_HEADER_SECONDS = 30.0
"""for a request's line and headers"""

_KEEP_ALIVE_SECONDS = 75
_SEND_BUFFER = 1 << 17
"""bytes of a connection's output that the kernel holds; Linux doubles it"""

_FLUSH_SECONDS = 1.0
"""for the last events to be read"""


class _Protocol(H11Protocol):
    """uvicorn's, with a limit on the time that headers take, errors in the API's shape, and the
    transport within the application's reach, which may have to abort it."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._cancel_timer()
        elif self._is_idle() and self._timer is None:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # which would hold a connection that was reset

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_headers(self) -> None:
        self._timer = self.loop.call_later(_HEADER_SECONDS, self._took_too_long)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _took_too_long(self) -> None:
        self._timer = None
        if self._is_idle():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # in the middle of an answer
            return
        body = ApiError(400, msg, code="invalid_http").encoded()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        start = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade that is offered need not be taken."""


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            transport: Any = connection.transport
            transport.abort()


class HttpServer:
    """Serves on a listening socket, until `stop`."""

    def __init__(
        self, service: Service, app: App, listener: socket.socket, drain_seconds: float = 30.0
    ):
        self._service, self._listener, self._drain_seconds = service, listener, drain_seconds
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._uvicorn = _Uvicorn(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining, self._ending = asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """From the loop's thread: the first call lets requests under way end, within the drain
        time; the second ends them."""
        (self._ending if self._draining.is_set() else self._draining).set()

    def stop_threadsafe(self) -> None:
        """The same from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self.stop)

    async def run(self, ready: Callable[[], None], signals: bool = True) -> None:
        """`ready` is called when requests are taken. With `signals`, SIGINT and SIGTERM are
        `stop`."""
        self._loop = loop = asyncio.get_running_loop()
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                if sys.platform == "win32":  # whose loops take no signals, but wake up for one
                    signal.signal(number, lambda *_: self.stop_threadsafe())
                else:
                    loop.add_signal_handler(number, self.stop)
        self._service.start(loop)
        serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._listener]))
        ready()  # the socket listens already
        try:
            await _first(serving, self._draining.wait())
            await self._drain()
            self._uvicorn.should_exit = True
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(serving), 2 * _FLUSH_SECONDS)
            self._uvicorn.abort_connections()
            await serving
        finally:
            await asyncio.to_thread(self._service.stop)

    async def _drain(self) -> None:
        """No new requests; those under way end by themselves, else with an error event."""
        self._service.draining = True
        await _first(self._idle(), self._ending.wait(), seconds=self._drain_seconds)
        self._service.end_all()
        await _first(self._idle(), seconds=_FLUSH_SECONDS)

    async def _idle(self) -> None:
        while self._service.jobs:
            await asyncio.sleep(0.02)


async def _first(*awaitables: Any, seconds: float | None = None) -> None:
    """Waits for one of them, or so long; the others are cancelled, tasks excepted."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task, given in zip(tasks, awaitables, strict=True):
        if task is not given:
            task.cancel()


class _Escaped(logging.Formatter):
    """What a client sent cannot control the terminal, nor fake a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Indented, so that none of its lines looks like one of the log."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {_escaped(line)}" for line in lines)


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode()


def log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Escaped("%(asctime)s %(levelname)s %(message)s"))
    for name in ("pyllama2c.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; OSError where the address is taken or not this machine's."""
    validate.integer("--port", port, 0, 65535)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle's algorithm on: 40 ms between headers and body.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform == "win32":  # where REUSEADDR shares an address that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
    # Of what a client does not read, the kernel would keep some megabytes more.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return listener


def run(server: HttpServer, ready: Callable[[], None]) -> None:
    """Serves until a signal. The engine's thread and the event loop share the interpreter: it
    changes hands sooner than by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        asyncio.run(server.run(ready))
    finally:
        sys.setswitchinterval(before)
