"""Many stories at once: continuous batching, where a finished story's row is refilled at once.

The loop itself is C's (batch.c, sweep.c): requests go in, and its events become Completions. A
row's logits do not depend on the other rows of a call, so a story is the same bits alone or here.
"""

from __future__ import annotations

import struct
from typing import Any

from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.engine.session import SessionOptions
from pyllama2c.errors import CancelledError, GrammarError, NonFiniteLogitsError
from pyllama2c.generation.batch_story import (
    BatchReason,
    BatchStory,
    Completion,
    Piece,
    PromptRead,
)
from pyllama2c.generation.request import Request, process_logits
from pyllama2c.tokenizers.base import BaseTokenizer

_TOKEN: int = lib.L2C_EVENT_TOKEN
_EVENT = struct.Struct(f"@qi4xi{ffi.sizeof('l2c_event') - 20}x")
"""of an l2c_event: the story, the kind, and the token that was chosen"""


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
        self._stories: dict[int, BatchStory] = {}
        self._cancelled = False
        self.pieces: list[Piece] = []
        """tokens of the last step, of stories that are `streamed`"""
        self.read: list[PromptRead] = []
        """prompts that the last step came to the end of, of stories that are `watched`"""

    def __len__(self) -> int:
        """Stories in progress."""
        return len(self._stories)

    @property
    def full(self) -> bool:
        return len(self._stories) == self._n_sequences

    def has_room(self, request: Request) -> bool:
        """Whether a story fits the context of this batch."""
        return request.context <= self._context

    def add(
        self,
        prompt_index: int,
        choice: int,
        request: Request,
        streamed: bool = False,
        watched: bool = False,
    ) -> None:
        """`streamed`: each of its tokens is told, in `pieces`; `watched`: that its prompt is read,
        in `read`."""
        vocab_size = self._tokenizer.vocab_size
        prompt = ffi.new("int32_t[]", request.prompt_tokens)
        ends = [t for t in request.ends(self._tokenizer) if 0 <= t < vocab_size]
        end_tokens = ffi.new("int32_t[]", ends)
        told = request.stop or request.grammar or streamed
        events = lib.L2C_TELL_TOKENS if told else 0
        if request.logits_processor is not None:
            events |= lib.L2C_TELL_CHOICES
        if request.logprobs is not None:
            events |= lib.L2C_TELL_LOGPROBS
        if watched:
            events |= lib.L2C_TELL_READ
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
        made = BatchStory(prompt_index, choice, request, self._tokenizer, streamed)
        self._stories[story[0]] = made
        self._mask(story[0])

    def drop(self, prompt_index: int, choice: int) -> None:
        """Ends a story before the next step, which tells nothing of it."""
        for story, told in self._stories.items():
            if (told.prompt_index, told.choice) == (prompt_index, choice):
                lib.l2c_batch_drop(self._handle, story)
                del self._stories[story]
                return

    @property
    def counts(self) -> Any:
        """What the batch did so far: l2c_batch_counts."""
        return lib.l2c_batch_count(self._handle)

    def cancel(self) -> None:
        """From any thread: the step in progress, else the next, raises CancelledError."""
        self._cancelled = True  # a step that is about to begin would forget C's flag
        lib.l2c_batch_cancel(self._handle)

    def step(self) -> list[Completion]:
        """One sweep: the next token of every story in progress, and what fits of the prompts. On a
        card it may be several (l2c_batch_step)."""
        if self._cancelled:
            raise CancelledError
        out, n, error = self._events, self._n_events, self._error
        self.read = []
        self.pieces = pieces = []
        status = lib.l2c_batch_step(self._handle, out, n, error)
        check(status, error)
        ended = []
        # Most events are tokens of plain stories. Reading each field through cffi takes longer than
        # all that is done with them.
        events = _EVENT.iter_unpack(ffi.buffer(out[0], n[0] * _EVENT.size))
        for i, (number, kind, token) in enumerate(events):
            story = self._stories.get(number)
            if story is None:  # an event from before it was dropped
                continue
            if story.is_plain and kind == _TOKEN:
                pieces.append(story.hear_plain(token))
            else:
                completion = self._on_event(story, out[0][i])
                if completion is not None:
                    ended.append(completion)
        return ended

    def _on_event(self, story: BatchStory, event: Any) -> Completion | None:
        """The story, where the event ends it."""
        if event.kind == _TOKEN:
            try:
                piece = story.hear(event)
                if story.streamed:
                    self.pieces.append(piece)
                if story.stopped:
                    return self._end(event, "stop", drop=True)
                self._mask(event.story)
            except GrammarError as error:
                return self._end(event, "error", error, drop=True)
        elif event.kind == lib.L2C_EVENT_READ:
            at = story.prompt_index, story.choice
            self.read.append(PromptRead(*at, event.n_cached))
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

    def _mask(self, number: int) -> None:
        """Allows what the story's grammar permits next; nothing for a story that has ended."""
        guide = self._stories[number].guide
        if guide is not None:
            lib.l2c_batch_mask(self._handle, number, guide.mask(), self._error)

    def _process(self, story: BatchStory, event: Any) -> None:
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
