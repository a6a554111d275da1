"""A model being served: requests go to the engine thread, and what it tells to their answers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from pyllama2c.errors import in_words
from pyllama2c.generation.batch_story import Completion
from pyllama2c.serve.engine import EngineThread
from pyllama2c.serve.errors import ApiError, busy, draining
from pyllama2c.serve.job import Job, Started
from pyllama2c.serve.metrics import Metrics
from pyllama2c.serve.outbox import Told
from pyllama2c.serve.own_thread import in_own_thread
from pyllama2c.serve.receipts import identify
from pyllama2c.serve.token_texts import TokenNames

if TYPE_CHECKING:
    from pyllama2c.model import Llama

_T = TypeVar("_T")
_AT_ONCE = 2
"""calls of `in_turn`: each holds a session, with keys and values of a whole context"""


@dataclass(frozen=True)
class Limits:
    """What one client may ask for, and how long it may take. Times are seconds."""

    body_bytes: int = 1 << 20
    prompts: int = 64
    n: int = 16
    queued: int = 256
    """requests that wait for a slot"""
    stop_strings: int = 16
    stop_characters: int = 256
    logit_bias: int = 300
    wait: float = 60.0
    """for a slot, and for a request's body"""
    request: float = 600.0
    join_seconds: float = 0.0
    """events of a client that come within so long of each other are sent at once; 0: each at
    once, with those that are there by then"""


class Service:
    """`model_name`: as clients see it (default: the file's, without its ending)."""

    def __init__(
        self,
        llama: Llama,
        *,
        slots: int | None = None,
        limits: Limits | None = None,
        model_name: str | None = None,
    ):
        self.llama, self.limits = llama, limits or Limits()
        self.tokenizer = llama.tokenizer
        self.model_name = model_name or Path(llama.path).stem
        self.created = int(time.time())
        self.names = TokenNames(self.tokenizer)
        self.identity = identify(llama, self.model_name)
        self.fingerprint = f"fp_{self.identity.weights}"
        self.metrics = Metrics()
        self._told: deque[list[Told]] = deque()
        self._is_due = False
        self.engine = EngineThread(llama, slots, self.metrics, self._post, self.limits.join_seconds)
        self.jobs: set[Job] = set()
        self.draining = False
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.engine.start()

    def stop(self) -> None:
        """Ends the engine thread; blocks for a sweep at most."""
        self.engine.stop()

    @property
    def created_now(self) -> int:
        """Seconds since 1970, of an answer."""
        return int(time.time())

    # ---- Requests ----

    @property
    def processing(self) -> int:
        return sum(job.started_at is not None for job in self.jobs)

    @property
    def deferred(self) -> int:
        return len(self.jobs) - self.processing

    def check_open(self) -> None:
        """ApiError while no request is taken."""
        if self.draining:
            raise draining()

    def check_health(self) -> None:
        """ApiError (503) while no request is taken, or none can be computed."""
        self.check_open()
        fault = self.engine.fault
        if fault is not None:
            why = f"the engine cannot compute: {in_words(fault)}"
            raise ApiError(503, why, code="engine_error", headers={"x-should-retry": "false"})

    def submit(self, job: Job) -> None:
        """Queues it; ApiError where too many wait. `release` must follow."""
        self.check_open()
        if len(self.jobs) >= self.limits.queued and self.deferred >= self.limits.queued:
            self.metrics.add("requests_rejected_total")
            raise busy(f"{self.limits.queued} requests are waiting already", 1)
        self.jobs.add(job)
        loop = asyncio.get_running_loop()
        job.timers = [
            loop.call_later(self.limits.wait, self._waited, job),
            loop.call_later(self.limits.request, self._ran_out, job),
        ]
        self.engine.add(job)

    def release(self, job: Job) -> None:
        """Its answer is over, in whichever way."""
        self.jobs.discard(job)
        for timer in job.timers:
            timer.cancel()
        if not job.finished:
            self.engine.cancel(job)
            if job.error is None:
                self.metrics.add("requests_cancelled_total")
        job.close()
        self.metrics.e2e_seconds.observe(perf_counter() - job.submitted_at)

    async def in_turn(self, call: Callable[[], _T]) -> _T:
        """What a call outside the batch comes to: two at a time, each in a thread of its own.
        ApiError where it waits or takes too long."""
        self.check_open()
        try:
            await asyncio.wait_for(self._turns.acquire(), self.limits.wait)
        except asyncio.TimeoutError:
            self.metrics.add("requests_rejected_total")
            raise busy(f"no turn came within {self.limits.wait:g} seconds", 10) from None
        running = asyncio.ensure_future(in_own_thread(call))
        running.add_done_callback(self._end_turn)  # not before the thread ends
        try:
            return await asyncio.wait_for(asyncio.shield(running), self.limits.request)
        except asyncio.TimeoutError:
            raise self._too_long() from None

    def _end_turn(self, running: asyncio.Future[Any]) -> None:
        self._turns.release()
        if not running.cancelled():
            running.exception()  # which nobody may be waiting for any more

    def _waited(self, job: Job) -> None:
        if job.started_at is None:
            self.metrics.add("requests_rejected_total")
            job.fail(busy(f"no slot was free within {self.limits.wait:g} seconds", 10))

    def _ran_out(self, job: Job) -> None:
        if job.over:  # but its client has not read all of it
            job.cut_off()
            return
        job.fail(self._too_long())

    def _too_long(self) -> ApiError:
        headers = {"x-should-retry": "false"}
        why = f"the request took more than {self.limits.request:g} seconds"
        return ApiError(503, why, code="request_timeout", headers=headers)

    def end_all(self) -> None:
        """Ends every request with an error."""
        for job in list(self.jobs):
            job.fail(draining())

    # ---- What the engine tells ----

    def _post(self, told: list[Told]) -> None:
        """In the engine's thread."""
        assert self._loop is not None
        self._told.append(told)
        if not self._is_due:  # else the loop is behind, and will take several sweeps at once
            self._is_due = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_due = False
        jobs: set[Job] = set()
        while self._told:
            self._take(self._told.popleft(), jobs)
        for job in jobs:
            job.send()

    def _take(self, told: list[Told], jobs: set[Job]) -> None:
        metrics, now = self.metrics, perf_counter()
        for job, story, event in told:
            jobs.add(job)
            if type(event) is list:
                if not story.first_token_at:  # type: ignore[union-attr]
                    story.first_token_at = now  # type: ignore[union-attr]
                    metrics.time_to_first_token_seconds.observe(now - job.submitted_at)
                job.take_pieces(story, event)  # type: ignore[arg-type]
                continue
            if type(event) is Started:
                job.started_at = now
                metrics.queue_seconds.observe(now - job.submitted_at)
                continue
            if type(event) is Completion and job.streamed and len(event.tokens) > 1:
                seconds = now - story.first_token_at  # type: ignore[union-attr]
                metrics.time_per_output_token_seconds.observe(seconds / (len(event.tokens) - 1))
            job.take(story, event)
