"""A job's answer over HTTP: whole, or as a stream of server-sent events.

Raw ASGI: a streamed token costs about half of what it does through Starlette's StreamingResponse.
Once a stream has begun, its events go past ASGI as well (`_Chunks`), which halves that again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyllama2c.serve.answers import event
from pyllama2c.serve.errors import ApiError
from pyllama2c.serve.security import header

if TYPE_CHECKING:
    from pyllama2c.serve.job import Job
    from pyllama2c.serve.service import Service

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_COMMENT_SECONDS = 15.0
"""without events, after which a comment shows proxies and clients that somebody is there"""

_COMMENT = b": waiting\n\n"
_EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


class DisconnectedError(Exception):
    """The client went away."""


async def send_start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def send_whole(
    send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    """A JSON answer."""
    about = {"content-type": "application/json", "content-length": str(len(body))}
    await send_start(send, status, about | dict(headers or {}))
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    await send_whole(send, error.status, error.encoded(), error.headers)


async def read_body(scope: Scope, receive: Receive, most: int, seconds: float) -> bytes:
    """The request's body; a client that takes longer than `seconds` is cut off. ApiError (413) for
    more than `most` bytes, DisconnectedError."""
    too_much = ApiError(
        413,
        f"the body has more than {most} bytes",
        code="body_too_large",
        headers={"connection": "close"},
    )
    length = header(scope, b"content-length")
    if length is not None and int(length) > most:
        raise too_much
    timer = asyncio.get_running_loop().call_later(seconds, scope["state"]["transport"].abort)
    parts: list[bytes] = []
    size, more = 0, True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > most:
                raise too_much
    finally:
        timer.cancel()
    return b"".join(parts)


async def send_job(service: Service, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
    """Submits a job and sends its answer. A client that goes away cancels it."""
    service.submit(job)
    job.abort = scope["state"]["transport"].abort
    watcher = asyncio.create_task(_close_when_gone(job, receive))
    try:
        await (_stream(job, scope, send) if job.streamed else _answer(job, send))
    finally:
        watcher.cancel()
        service.release(job)


async def _close_when_gone(job: Job, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.close()


async def _answer(job: Job, send: Send) -> None:
    while not job.over:
        await job.read()
    if job.finished:
        await send_whole(send, 200, job.format.body(job))
    elif job.error is not None:
        raise job.error


class _Chunks:
    """Writes chunks of an HTTP/1.1 answer as h11 does, which has begun it and will end it."""

    def __init__(self, transport: Any):
        self._transport = transport

    @property
    def unread(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size

    def write(self, events: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(events), events))


async def _stream(job: Job, scope: Scope, send: Send) -> None:
    """Status 200 is sent with the first event, so that what fails before it has a status of its
    own."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tick(n_before: int) -> None:
        nonlocal timer
        if job.n_events == n_before:
            job.tick()
        timer = loop.call_later(_COMMENT_SECONDS, tick, job.n_events)

    tick(-1)
    begun = over = False
    try:
        while not over:
            data = await job.read()
            over = job.over
            if not begun:
                if over and not data:
                    if job.error is not None:
                        raise job.error
                    return
                begun = True
                await send_start(send, 200, _EVENTS)
                data = job.format.first(job) + data
            if over and job.error is not None:
                data += event(job.error.body)
            elif not (data or over):
                data = _COMMENT
            await send({"type": "http.response.body", "body": data, "more_body": not over})
            # Not before all that came in the meantime has been sent: events keep their order.
            if not job.has_events and scope["http_version"] == "1.1":
                job.writer = _Chunks(scope["state"]["transport"])
    finally:
        timer.cancel()
