"""The engine thread: it alone runs the batch. Requests join and leave between its sweeps, and what
the stories tell goes to the event loop once a sweep."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from pyllama2c._ffi import lib
from pyllama2c.engine.memory import limits
from pyllama2c.errors import DeviceError, OutOfMemoryError
from pyllama2c.generation.batch import Batch
from pyllama2c.generation.batch_loop import without_computing
from pyllama2c.serve.job import Job, PromptScores, Scoring, Started, Story
from pyllama2c.serve.metrics import Metrics
from pyllama2c.serve.outbox import Outbox, Told
from pyllama2c.serve.prompt_scores import PromptScorer

if TYPE_CHECKING:
    from pyllama2c.model import Llama

_Message = tuple[str, Job] | None
_COUNTS = (
    ("prompt_tokens_total", "prompt_tokens"),
    ("prompt_tokens_cached_total", "cached_prompt_tokens"),
    ("tokens_predicted_total", "tokens"),
)


class EngineThread:
    """A batch of `slots` stories (None: 64, or as many as fit), opened for the whole context.

    `post` is called in this thread, once a sweep at most, with what the outbox lets go.
    """

    def __init__(
        self,
        llama: Llama,
        slots: int | None,
        metrics: Metrics,
        post: Callable[[list[Told]], None],
        join_seconds: float = 0.0,
    ):
        engine = llama._engine
        self._engine, self._metrics = engine, metrics
        self._outbox = Outbox(post, join_seconds)
        self._new_batch = partial(
            Batch, engine.model, engine.batch_pool(), engine.session_options, llama.tokenizer
        )
        self._batch: Batch | None = None
        self.slots = self._open(slots)
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._stories: dict[int, tuple[Job, Story]] = {}
        self._to_score: deque[Job] = deque()
        self._scorer: tuple[Job, Scoring, PromptScorer] | None = None
        self._sweeps = 0
        self._counted: dict[str, int] = {}
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="pyllama2c-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, job: Job) -> None:
        """Any thread: tells the stories of a job as there is room."""
        job.added_at_sweep = self._sweeps
        self._inbox.put(("add", job))

    def cancel(self, job: Job) -> None:
        """Any thread: ends them before the next sweep."""
        self._inbox.put(("cancel", job))

    def stop(self) -> None:
        """Ends the thread after the sweep under way."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def n_stories(self) -> int:
        """Stories under way."""
        return len(self._stories)

    @property
    def fault(self) -> Exception | None:
        """Why nothing can be computed, as far as the last attempt showed."""
        if self._thread.ident is not None and not self._thread.is_alive():
            return RuntimeError("its thread has ended")
        return self._fault

    # ---- Opening ----

    def _open(self, wanted: int | None) -> int:
        """Opens the batch, with fewer stories where nobody asked for a number."""
        slots = wanted or min(64, self._engine.max_batch)
        options = self._engine.session_options
        while True:
            try:
                if slots > 1 and not self._fits(slots, options.context, options.kv):
                    raise OutOfMemoryError(
                        f"no memory for {slots} stories of {options.context:,} positions at a "
                        "time; --slots, --context and --kv-dtype float16 need less"
                    )
                self._batch = self._new_batch(slots, options.context)
                return slots
            except OutOfMemoryError:
                if wanted is not None or slots == 1:
                    raise
                slots //= 2

    def _fits(self, slots: int, context: int, kv: int) -> bool:
        """Whether main memory has room for keys and values that are all used."""
        if self._engine.card is not None:
            return True  # opening takes the card's memory at once, and fails where it cannot
        threads = self._engine.threads
        needed = lib.l2c_session_bytes(self._engine.model, slots, context, kv, threads)
        return all(needed <= limit.free - limit.free // 16 for limit in limits())

    # ---- The loop ----

    def _run(self) -> None:
        while self._read_inbox():
            try:
                self._sweep()
            except Exception as error:
                self._fail(error)
            self._outbox.post()
        self._end_scorer()
        self._batch = None

    def _read_inbox(self) -> bool:
        """Takes all messages, and waits for one where there is nothing else to do; False: stop."""
        idle = not (self._stories or self._waiting or self._to_score or self._scorer)
        while True:
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if message is None:
                return False
            what, job = message
            if what == "add":
                (self._to_score if job.scorings else self._waiting).append(job)
                idle = False
            else:
                self._remove(job)

    def _remove(self, job: Job) -> None:
        for waiting in (self._waiting, self._to_score):
            with suppress(ValueError):
                waiting.remove(job)
        for story in job.stories:
            if self._stories.pop(story.number, None) is not None and self._batch is not None:
                self._batch.drop(story.number, 0)
        if self._scorer is not None and self._scorer[0] is job:
            self._end_scorer()

    def _sweep(self) -> None:
        self._admit()
        if self._stories:
            self._step()
        if self._scorer or self._to_score:
            self._score()

    def _admit(self) -> None:
        """Begins what waits: a story of each request in turn, lest a large one delay others."""
        while self._waiting:
            if self._batch is None:
                self._batch = self._new_batch(self.slots, self._engine.session_options.context)
            job = self._waiting[0]
            if self._batch.full:
                return
            self._waiting.popleft()
            self._tell_start(job)
            self._begin(self._batch, job, job.waiting.popleft())
            if job.waiting:
                self._waiting.append(job)

    def _begin(self, batch: Batch, job: Job, story: Story) -> None:
        request = story.request
        done = without_computing(story.number, 0, request)
        if done is not None:
            self._outbox.tell(job, story, done)
            return
        story.begun_at = perf_counter()
        self._stories[story.number] = job, story  # `_fail` tells those, of other errors
        try:
            batch.add(story.number, 0, request, job.streamed, watched=True)
        except ValueError as error:
            batch.drop(story.number, 0)  # which may have begun, as grammars fail after that
            del self._stories[story.number]
            self._outbox.tell(job, story, error)

    def _tell_start(self, job: Job) -> None:
        if not job.has_begun:
            job.has_begun = True
            self._outbox.tell(job, None, Started(self._sweeps - job.added_at_sweep))

    def _step(self) -> None:
        assert self._batch is not None
        completions = self._batch.step()
        self._sweeps += 1
        self._fault = None
        stories = self._stories
        for job in self._outbox.tell_pieces(self._batch.pieces, stories):
            self._metrics.first_token_sweeps.observe(self._sweeps - job.added_at_sweep)
        now = perf_counter()
        for read in self._batch.read:
            _, story = stories[read.prompt_index]
            story.read_at, story.n_cached = now, read.n_cached
        for completion in completions:
            job, story = stories.pop(completion.prompt_index)
            story.ended_at = now
            self._outbox.tell(job, story, completion)
        self._count(self._batch)

    def _score(self) -> None:
        """A sweep for a prompt that is to be scored: one at a time, of each request in turn. Its
        stories are told after that."""
        if self._scorer is None:
            job = self._to_score[0]
            self._tell_start(job)
            scoring = job.scorings[0]
            try:
                scorer = PromptScorer(self._engine, scoring.tokens, scoring.n_top)
            except Exception as error:
                self._scored(job, scoring, error)
                return
            self._scorer = job, scoring, scorer
        job, scoring, scorer = self._scorer
        try:
            if not scorer.step():
                return
            self._scored(job, scoring, PromptScores(scorer.logprobs))
        except Exception as error:
            self._scored(job, scoring, error)
        self._end_scorer()

    def _scored(self, job: Job, scoring: Scoring, result: PromptScores | Exception) -> None:
        if isinstance(result, DeviceError):
            self._fault = result
        elif not isinstance(result, Exception):
            self._fault = None
        self._outbox.tell(job, scoring, result)
        self._to_score.remove(job)
        job.scorings.popleft()
        (self._to_score if job.scorings else self._waiting).append(job)

    def _end_scorer(self) -> None:
        if self._scorer is not None:
            self._scorer[2].close()
            self._scorer = None

    def _count(self, batch: Batch) -> None:
        counts, counted = batch.counts, self._counted
        if counts.sweeps > counted.get("sweeps", 0):
            self._metrics.sweep_rows.observe(counts.rows - counted.get("rows", 0))
        for metric, name in _COUNTS:
            self._metrics.add(metric, getattr(counts, name) - counted.get(name, 0))
        names = ("sweeps", "rows", *(name for _, name in _COUNTS))
        self._counted = {name: getattr(counts, name) for name in names}

    def _fail(self, error: Exception) -> None:
        """The engine failed: so do the stories under way, and those that wait go on in a new batch;
        they fail as well where none can be opened."""
        failed = list(self._stories.values())
        if self._batch is None or isinstance(error, DeviceError):
            self._fault = error
        if self._batch is None:
            failed += [(job, story) for job in self._waiting for story in job.waiting]
            self._waiting.clear()
        self._stories, self._batch, self._counted = {}, None, {}
        for job, story in failed:
            self._outbox.tell(job, story, error)
