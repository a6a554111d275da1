"""Many stories at once: continuous batching, where a finished story's row is refilled at once.

The loop itself is C's (batch.c, sweep.c): requests go in, and its events become Completions. A
row's logits do not depend on the other rows of a call, so a story is the same bits alone or here.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.engine.session import SessionOptions
from pyllama2c.errors import CancelledError, NonFiniteLogitsError
from pyllama2c.generation.logprobs import TokenLogprob, token_logprob
from pyllama2c.generation.request import Request, process_logits
from pyllama2c.generation.text import StoryText
from pyllama2c.tokenizers.base import BaseTokenizer

BatchReason = Literal["stop", "length", "error"]
"""why a story of a batch ended"""

_ROUND_UP = 64
"""positions: a batch that is reopened for a longer story has room for slightly longer ones, too"""


@dataclass(frozen=True, slots=True)
class Completion:
    """One story of a batch, finished."""

    prompt_index: int
    """which prompt it continues, counted from 0"""
    choice: int
    """which of the `n` stories of that prompt, counted from 0"""
    prompt_tokens: list[int]
    """ids of the prompt, BOS included; empty for a prompt that is wrong"""
    tokens: list[int]
    """ids of the sampled tokens, the stop token excluded"""
    text: str
    """what the sampled tokens spell; the prompt is not part of it"""
    seed: int
    finish_reason: BatchReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    """of each of `tokens`, where `logprobs` was asked for"""
    error: Exception | None = None
    """why this story failed; the others are not affected"""


class _Story:
    """A story in progress. Only stop strings need its text before it ends."""

    def __init__(self, prompt_index: int, choice: int, request: Request, tokenizer: BaseTokenizer):
        self.prompt_index, self.choice, self.request = prompt_index, choice, request
        self._decoder = StoryText(tokenizer, request.prompt_tokens, request.stop)
        self._text = ""
        self._logprobs: list[TokenLogprob] | None = None if request.logprobs is None else []

    def hear(self, event: Any) -> bool:
        """Takes a token; whether a stop string is complete with it."""
        chosen = event.chosen
        if self._logprobs is not None:
            told = token_logprob(chosen.token, chosen.logprob, event.top, event.n_top)
            self._logprobs.append(told)
        return bool(self.request.stop) and self._stops(chosen.token)

    def _stops(self, token: int) -> bool:
        self._text += self._decoder.feed(token)
        return self._decoder.stopped

    def finish(
        self, tokens: list[int], reason: BatchReason, error: Exception | None = None
    ) -> Completion:
        if not self.request.stop:  # otherwise it was decoded token by token
            self._text = self._decoder.feed_all(tokens)
        return Completion(
            prompt_index=self.prompt_index,
            choice=self.choice,
            prompt_tokens=self.request.prompt_tokens,
            tokens=tokens,
            text=self._text + self._decoder.rest(),
            seed=self.request.seed,
            finish_reason=reason,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            error=error,
        )


class Batch:
    """An l2c_batch, and the stories in it."""

    def __init__(
        self,
        model: Any,
        pool: Any,
        options: SessionOptions,
        tokenizer: BaseTokenizer,
        n_sequences: int,
        context: int,
    ):
        isa, kv = options.isa, options.kv
        self._n_sequences = n_sequences
        self._context = min(options.context, context)
        out, self._error = ffi.new("l2c_batch **"), new_error()
        status = lib.l2c_batch_create(
            model, pool, n_sequences, self._context, kv, isa, out, self._error
        )
        check(status, self._error)
        self._handle = ffi.gc(out[0], lib.l2c_batch_free)
        self._parents = (model, pool)  # they must outlive the handle
        self._tokenizer = tokenizer
        self._events, self._n_events = ffi.new("l2c_event **"), ffi.new("size_t *")
        self._stories: dict[int, _Story] = {}
        self._cancelled = False

    def __len__(self) -> int:
        """Stories in progress."""
        return len(self._stories)

    @property
    def full(self) -> bool:
        return len(self._stories) == self._n_sequences

    def has_room(self, request: Request) -> bool:
        """Whether a story fits the context of this batch."""
        return request.context <= self._context

    def add(self, prompt_index: int, choice: int, request: Request) -> None:
        vocab_size = self._tokenizer.vocab_size
        prompt = ffi.new("int32_t[]", request.prompt_tokens)
        ends = [t for t in request.ends(self._tokenizer) if 0 <= t < vocab_size]
        end_tokens = ffi.new("int32_t[]", ends)
        events = lib.L2C_TELL_TOKENS if request.stop else 0
        if request.logits_processor is not None:
            events |= lib.L2C_TELL_CHOICES
        if request.logprobs is not None:
            events |= lib.L2C_TELL_LOGPROBS
        c_request = ffi.new(
            "l2c_request *",
            {
                "prompt": prompt,
                "n_prompt": len(prompt),
                "ends": end_tokens,
                "n_ends": len(ends),
                "sampler": request.sampler,
                "max_tokens": request.max_tokens,
                "tell": events,
                "n_top": request.logprobs or 0,
            },
        )
        story = ffi.new("int64_t *")
        check(lib.l2c_batch_add(self._handle, c_request, story, self._error), self._error)
        self._stories[story[0]] = _Story(prompt_index, choice, request, self._tokenizer)

    def cancel(self) -> None:
        """From any thread: the step in progress, else the next, raises CancelledError."""
        self._cancelled = True  # a step that is about to begin would forget C's flag
        lib.l2c_batch_cancel(self._handle)

    def step(self) -> list[Completion]:
        """One sweep: the next token of every story in progress, and what fits of the prompts."""
        if self._cancelled:
            raise CancelledError
        out, n, error = self._events, self._n_events, self._error
        status = lib.l2c_batch_step(self._handle, out, n, error)
        check(status, error)
        ended = (self._on_event(out[0][i]) for i in range(n[0]))
        return [completion for completion in ended if completion is not None]

    def _on_event(self, event: Any) -> Completion | None:
        """The story, where the event ends it."""
        story = self._stories.get(event.story)
        if story is None:  # an event from before it was dropped
            return None
        if event.kind == lib.L2C_EVENT_TOKEN:
            if story.hear(event):
                return self._end(event, "stop", drop=True)
        elif event.kind == lib.L2C_EVENT_CHOOSE:
            try:
                self._process(story, event)
            except Exception as error:
                return self._end(event, "error", error, drop=True)
        elif event.reason == lib.L2C_END_NONFINITE:
            why = "the logits hold NaN or infinity (or forbid every token)"
            return self._end(event, "error", NonFiniteLogitsError(why))
        else:
            return self._end(event, "stop" if event.reason == lib.L2C_END_STOP else "length")
        return None

    def _process(self, story: _Story, event: Any) -> None:
        import numpy as np

        request, vocab_size = story.request, self._tokenizer.vocab_size
        assert request.logits_processor is not None
        row = ffi.buffer(lib.l2c_batch_row(self._handle, event.story), 4 * vocab_size)
        logits = np.frombuffer(row, np.float32).copy()  # which the processor may keep
        tokens = request.prompt_tokens + ffi.unpack(event.tokens, event.n_tokens)
        process_logits(request.logits_processor, tokens, logits)
        row[:] = logits.tobytes()

    def _end(
        self, event: Any, reason: BatchReason, error: Exception | None = None, drop: bool = False
    ) -> Completion:
        if drop:
            lib.l2c_batch_drop(self._handle, event.story)
        tokens = ffi.unpack(event.tokens, event.n_tokens)
        return self._stories.pop(event.story).finish(tokens, reason, error)


def _without_computing(i: int, j: int, request: Request | Exception) -> Completion | None:
    """The Completion of a wrong prompt, or of a story of no tokens."""
    if isinstance(request, Exception):
        return Completion(i, j, [], [], "", 0, "error", error=request)
    if request.max_tokens == 0:
        logprobs = None if request.logprobs is None else ()
        return Completion(i, j, request.prompt_tokens, [], "", request.seed, "length", logprobs)
    return None


def run_batch(
    new_batch: Callable[[int, int], Batch],
    requests: Iterator[tuple[int, int, Request | Exception]],
    max_batch: int,
) -> Iterator[Completion]:
    """Stories in the order in which they end. `new_batch` takes n_sequences and a context: what the
    first stories need. Where one needs a longer context, those before it are finished first, and a
    larger batch goes on."""
    waiting: deque[tuple[int, int, Request]] = deque()  # taken from `requests`, but not added

    def fill(n: int) -> Iterator[Completion]:
        """Takes requests until n wait; yields those that need no computing."""
        while len(waiting) < n:
            i, j, request = next(requests, (-1, -1, None))
            if request is None:
                return
            completion = _without_computing(i, j, request)
            if completion is not None:
                yield completion
            elif isinstance(request, Request):
                waiting.append((i, j, request))

    for round_up in itertools.chain([1], itertools.repeat(_ROUND_UP)):
        yield from fill(max_batch)
        if not waiting:
            return
        longest = max(request.context for _, _, request in waiting)
        batch = new_batch(len(waiting), -(-longest // round_up) * round_up)
        while True:
            while not batch.full:
                yield from fill(1)
                if not waiting or not batch.has_room(waiting[0][-1]):
                    break
                batch.add(*waiting.popleft())
            if not len(batch):
                break
            yield from batch.step()
        del batch  # freed before the next one is allocated


def in_prompt_order(stories: Iterable[Completion], n: int) -> Iterator[Completion]:
    """The same, the `n` of each prompt side by side: one that overtakes others is held back."""
    held: dict[int, Completion] = {}
    number = 0
    for story in stories:
        held[story.prompt_index * n + story.choice] = story
        while number in held:
            yield held.pop(number)
            number += 1
