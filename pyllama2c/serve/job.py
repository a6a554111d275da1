"""A client's request: its stories on the engine's side, its answer on the event loop's."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from pyllama2c.generation.batch_story import Completion, Piece
from pyllama2c.generation.logprobs import TokenLogprob
from pyllama2c.generation.request import Request
from pyllama2c.serve.errors import ApiError, as_api_error

MAX_UNREAD = 1 << 20
"""bytes of events that a client may leave unread"""


class PromptScores(NamedTuple):
    """Of a prompt's own tokens; the first has none."""

    logprobs: list[TokenLogprob | None]


class Started(NamedTuple):
    """The engine has begun with a request."""

    sweeps: int
    """of which the request waited for so many"""


Event = Started | list[Piece] | Completion | PromptScores | Exception

_numbers = itertools.count()


@dataclass(eq=False)
class Story:
    """Choice `choice` of prompt `prompt`."""

    request: Request
    parameters: dict[str, Any]
    """all of generate's, but the seed"""
    prompt: int
    choice: int
    index: int
    """among all of the answer's choices"""
    number: int = field(default_factory=_numbers.__next__)
    completion: Completion | None = None
    sent: int = 0
    """characters of its text that were streamed"""
    n_told: int = 0
    """tokens that were streamed; counted where an answer says it"""
    is_told: bool = False
    """whether the engine has told a token of it"""
    first_token_at: float = 0.0
    # By the engine, on perf_counter's clock:
    begun_at: float = 0.0
    read_at: float = 0.0
    """when its prompt was read, and its first token drawn; 0 where nothing had to be computed"""
    ended_at: float = 0.0
    n_cached: int = 0
    """tokens of its prompt that needed no reading: they were in the cache"""


@dataclass
class Scoring:
    """A prompt whose tokens are to be scored: with `echo` and `logprobs`."""

    prompt: int
    tokens: list[int]
    n_top: int


class Writer(Protocol):
    """Takes events without waiting."""

    @property
    def unread(self) -> int:
        """bytes that the client has not taken yet"""

    def write(self, events: bytes) -> None: ...


class Format(Protocol):
    """How an endpoint answers. Events are whole server-sent ones."""

    def first(self, job: Job) -> bytes:
        """Events before all others."""

    def scored(self, job: Job, prompt: int) -> bytes:
        """Events of a prompt whose scores are there."""

    def chunks(self, story: Story, pieces: list[Piece]) -> bytes:
        """Events of new tokens, each of its own."""

    def last(self, job: Job, story: Story) -> bytes:
        """Events that end a story, with what of its text has not been streamed."""

    def end(self, job: Job) -> bytes:
        """Events after all others."""

    def body(self, job: Job) -> bytes:
        """The whole answer of a request that is not streamed."""


class Job:
    """Its methods are the event loop's; `waiting`, `scorings`, `added_at_sweep` and `has_begun`
    are the engine's."""

    def __init__(
        self,
        stories: Sequence[Story],
        answer_format: Format,
        streamed: bool,
        scorings: Sequence[Scoring] = (),
    ):
        self.stories, self.format, self.streamed = list(stories), answer_format, streamed
        self.waiting, self.scorings = deque(stories), deque(scorings)
        self.added_at_sweep, self.has_begun = 0, False
        self.prompt_logprobs: dict[int, list[TokenLogprob | None]] = {}
        self.submitted_at = perf_counter()
        self.started_at: float | None = None
        self.error: ApiError | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.over = False
        """whether nothing more will come of it: answered in full, failed or cancelled"""
        self.writer: Writer | None = None
        """where events go at once, once the answer has begun"""
        self.abort: Callable[[], None] | None = None
        """cuts off a client that does not read what it asked for"""
        self.n_events = 0
        """that there were to send"""
        self._left = len(self.stories) + len(self.scorings)
        """stories and scorings that have not ended"""
        self._events: list[bytes] = []
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """Whether the engine has told all there is."""
        return self._left == 0

    def take(self, story: Story | Scoring | None, event: Event) -> None:
        """What the engine has to tell, tokens excepted. `send` must follow."""
        if self.over:
            return
        if isinstance(event, Completion) and event.error is None:
            assert isinstance(story, Story)
            story.completion = event
            if self.streamed:
                self.put(self.format.last(self, story))
        elif isinstance(event, PromptScores):
            assert isinstance(story, Scoring)
            self.prompt_logprobs[story.prompt] = event.logprobs
            if self.streamed:
                self.put(self.format.scored(self, story.prompt))
        else:
            error = event.error if isinstance(event, Completion) else event
            assert isinstance(error, Exception)
            self.fail(as_api_error(error))
            return
        self._left -= 1
        if self._left == 0:
            if self.streamed:
                self.put(self.format.end(self))
            self.close()

    def take_pieces(self, story: Story, pieces: list[Piece]) -> None:
        """Tokens that the engine has to tell. `send` must follow."""
        if not self.over:
            self.put(self.format.chunks(story, pieces))

    def put(self, event: bytes) -> None:
        """Events to be sent."""
        if not event:
            return
        if self._unread > MAX_UNREAD:
            self.cut_off()
            return
        self.n_events += 1
        self._events.append(event)
        self._unread += len(event)

    def cut_off(self) -> None:
        """Ends it and its client's connection."""
        self.close()
        if self.abort is not None:
            self.abort()

    def fail(self, error: ApiError) -> None:
        """Ends it with an error, which the client is told by status or, after that, by an event."""
        if not self.over:
            self.error = error
            self.close()

    def close(self) -> None:
        """Nothing more will come."""
        self.over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def send(self) -> None:
        """Sends at once all that was put."""
        if not self._events:
            return  # an empty chunk would end the answer
        if self.writer is None or self.over:
            self._wake()
        elif self.writer.unread > MAX_UNREAD:
            self.cut_off()
        else:
            self.writer.write(self._taken())

    def _taken(self) -> bytes:
        events, self._events, self._unread = self._events, [], 0
        return events[0] if len(events) == 1 else b"".join(events)

    async def read(self) -> bytes:
        """The next events that no `writer` takes; empty where woken for none (`tick`), or over."""
        if not (self._events or self.over):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._taken()

    @property
    def has_events(self) -> bool:
        """Whether some wait to be read."""
        return bool(self._events)

    def tick(self) -> None:
        """Wakes the reader though there is nothing."""
        self._wake()
