"""The stories of a batch as they end: what `Llama.generate_batch` returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING
from weakref import ref

from pyllama2c.errors import BusyError, CancelledError
from pyllama2c.generation.asynchronous import AsyncSteps
from pyllama2c.generation.batch import Batch
from pyllama2c.generation.batch_loop import in_prompt_order, run_batch
from pyllama2c.generation.batch_story import Completion
from pyllama2c.handle import ClosableHandle

if TYPE_CHECKING:
    from pyllama2c.generation.request import Request


class _Current:
    """The batch in progress, to be cancelled from elsewhere."""

    cancelled = False
    _batch: ref[Batch] | None = None

    def open(self, new_batch: Callable[[int, int], Batch], n_sequences: int, context: int) -> Batch:
        batch = new_batch(n_sequences, context)
        self._batch = ref(batch)
        if self.cancelled:
            raise CancelledError
        return batch

    def cancel(self) -> None:
        self.cancelled = True
        batch = None if self._batch is None else self._batch()
        if batch is not None:
            batch.cancel()


class Completions(ClosableHandle, AsyncSteps[Completion]):
    """An iterator of Completions, also with `async for`. Made by `Llama.generate_batch`; nothing
    is computed before the first step.

    BusyError while another thread takes a step. A batch that is left half-way gives its memory back
    when it is closed or garbage-collected.
    """

    def __init__(
        self,
        new_batch: Callable[[int, int], Batch],
        requests: Iterator[tuple[int, int, Request | Exception]],
        max_batch: int,
        in_order: int | None,
    ):
        """`in_order`: stories a prompt, where they are to come in the order of the prompts."""
        self._current = _Current()
        self._turn = threading.Lock()
        stories = run_batch(partial(self._current.open, new_batch), requests, max_batch)
        self._stories = stories if in_order is None else in_prompt_order(stories, in_order)

    def __next__(self) -> Completion:
        if not self._turn.acquire(blocking=False):
            raise BusyError("another thread is generating this batch")
        try:
            if self._current.cancelled:
                raise CancelledError
            return next(self._stories)
        except CancelledError:
            self._end()
            raise StopIteration from None
        except BaseException:  # the end, too: memory is given back in this thread
            self._end()
            raise
        finally:
            self._turn.release()

    def cancel(self) -> None:
        """Ends the batch within one token, from any thread: no more Completions come."""
        self._current.cancel()

    def close(self) -> None:
        """Ends the batch and gives its memory back; while a step runs, with that step."""
        self.cancel()
        if self._turn.acquire(blocking=False):
            self._end()
            self._turn.release()

    def _end(self) -> None:
        self._stories = iter(())
