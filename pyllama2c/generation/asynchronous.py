"""`async for` over what computes as it is iterated: no step runs on the event loop's thread."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from typing_extensions import Self

_T = TypeVar("_T", covariant=True)
_R = TypeVar("_R")
_END: Any = object()


class AsyncSteps(ABC, Iterator[_T], AsyncIterator[_T]):
    """An iterator for asyncio as well. Its steps run one at a time in a thread of its own, so that
    neither the loop nor what else uses the loop's threads waits for them.

    A task that is cancelled within a step cancels the iterator, and ends when that step has: what
    the iterator then knows is settled.
    """

    _thread: tuple[int, ThreadPoolExecutor] | None = None
    """and the process that has it: a forked child has no thread of its parent's"""

    @abstractmethod
    def cancel(self) -> None:
        """Ends the step that is being computed, and the iterator; from any thread."""

    @abstractmethod
    def close(self) -> None:
        """Ends it and gives its memory back."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        item: _T = await self._in_thread(partial(next, self, _END))
        if item is _END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """`close`, for `contextlib.aclosing`: within one token, also while a task takes a step."""
        self.cancel()
        await self._in_thread(self.close)

    async def _in_thread(self, call: Callable[[], _R]) -> _R:
        import asyncio  # here: a story on the command line need not wait for these
        from concurrent.futures import ThreadPoolExecutor

        if self._thread is None or self._thread[0] != os.getpid():
            self._thread = os.getpid(), ThreadPoolExecutor(1, "pyllama2c")
        context, calls = copy_context(), [call]
        # Popped, so that the thread holds nothing of the iterator when the loop hears of the end.
        job = self._thread[1].submit(lambda: context.run(calls.pop()))
        del call
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            self.cancel()
            if not job.cancelled():
                step = asyncio.wrap_future(job)
                step.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                await asyncio.wait([step])
            raise
