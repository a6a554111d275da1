"""Calls that may take long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


async def in_own_thread(call: Callable[[], _T]) -> _T:
    """Its result. Unlike `asyncio.to_thread` it takes none of the loop's few threads, and neither
    the loop's end nor the process's waits for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def settle(value: _T | None, error: Exception | None) -> None:
        if result.cancelled():
            return
        if error is None:
            result.set_result(value)  # type: ignore[arg-type]
        else:
            result.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = call()
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="pyllama2c-call", daemon=True).start()
    return await result
