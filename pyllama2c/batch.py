"""Many stories at once: continuous batching, where a finished story's row is refilled at once.

A row's logits do not depend on the other rows of a call, so a story is the same bits alone or here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.errors import NonFiniteLogitsError
from pyllama2c.request import Request
from pyllama2c.session import MAX_ROWS, PREFILL_ROWS, Computing, new_session
from pyllama2c.text import StoryText
from pyllama2c.tokenizer import BaseTokenizer


class Completion(NamedTuple):
    """One story of a batch, told to its end."""

    number: int
    """which one: story j of prompt i has number i * n + j"""
    prompt_tokens: list[int]
    tokens: list[int]
    """sampled tokens, the stop token excluded"""
    text: str
    seed: int
    finish_reason: str
    """"stop", "length", or "error\""""
    error: Exception | None
    """why this one story failed; the others do not mind"""


class _Slot:
    """A story on its way, in one of the session's sequences."""

    def __init__(self, number: int, request: Request, sequence: int, tokenizer: BaseTokenizer):
        self.number, self.request, self.sequence = number, request, sequence
        prompt = request.prompt_tokens
        self.history = ffi.new("int32_t[]", len(prompt) + request.max_tokens)
        self.history[0 : len(prompt)] = prompt
        self.n = len(prompt)  # tokens so far
        self.fed = 0  # of those, in the cache
        self.story = StoryText(tokenizer, prompt, request.stop)
        self.ends = request.ends(tokenizer)
        self.text = ""

    def tokens(self) -> list[int]:
        return list(self.history[len(self.request.prompt_tokens) : self.n])

    def take(self, token: int) -> str | None:
        """A sampled token; the finish reason when it is the last one."""
        if token in self.ends:
            return "stop"
        self.history[self.n] = token
        self.n += 1
        if self.request.stop:  # otherwise text can wait for the end
            self.text += self.story.feed(token)
            if self.story.stopped:
                return "stop"
        full = self.n - len(self.request.prompt_tokens) == self.request.max_tokens
        return "length" if full else None

    def finish(self, reason: str, error: Exception | None = None) -> Completion:
        request, tokens = self.request, self.tokens()
        if not request.stop:
            self.text = "".join(map(self.story.feed, tokens))
        return Completion(
            number=self.number,
            prompt_tokens=request.prompt_tokens,
            tokens=tokens,
            text=self.text + self.story.rest(),
            seed=request.seed,
            finish_reason=reason,
            error=error,
        )


class _Batch:
    """A C session of several sequences, and what is told in them."""

    def __init__(
        self,
        model: Any,
        pool: Any,
        computing: Computing,
        n_sequences: int,
        n_ctx: int,
        tokenizer: BaseTokenizer,
    ):
        self._handle = new_session(model, pool, computing, n_sequences, n_ctx)
        self._parents = (model, pool)
        self._error = new_error()
        self._rows = ffi.new("l2c_row[]", MAX_ROWS)
        self._draws = ffi.new("l2c_draw[]", MAX_ROWS)
        self._tokenizer = tokenizer
        self._vocab_size = tokenizer.vocab_size
        self._free = list(range(n_sequences))
        self.slots: list[_Slot] = []

    @property
    def full(self) -> bool:
        return not self._free

    def add(self, number: int, request: Request) -> None:
        self.slots.append(_Slot(number, request, self._free.pop(), self._tokenizer))

    def step(self) -> Iterator[Completion]:
        """One sweep: the next token of every story that is under way, and of prompts what fits."""
        rows, n_rows, drawn = self._rows, 0, []
        prefill = PREFILL_ROWS
        for slot in self.slots:
            waiting = slot.n - slot.fed
            count = min(waiting, MAX_ROWS - n_rows, prefill if waiting > 1 else 1)
            for position in range(slot.fed, slot.fed + count):
                row = rows[n_rows]
                row.sequence, row.position = slot.sequence, position
                row.token = slot.history[position]
                row.want_logits = position == slot.n - 1
                n_rows += 1
            slot.fed += count
            if waiting > 1:
                prefill -= count
            if count and slot.fed == slot.n:
                drawn.append(slot)
        check(lib.l2c_session_forward(self._handle, rows, n_rows, self._error), self._error)
        yield from self._sample(drawn)

    def _sample(self, drawn: list[_Slot]) -> Iterator[Completion]:
        draws = self._draws
        for i, slot in enumerate(drawn):
            if slot.request.logits_processor is not None:
                self._process(i, slot)
            draw = draws[i]
            draw.row, draw.sampler = i, slot.request.sampler
            draw.history, draw.n_history = slot.history, slot.n
        status = lib.l2c_session_sample_many(self._handle, draws, len(drawn), self._error)
        check(status, self._error)
        for i, slot in enumerate(drawn):
            if draws[i].status != lib.L2C_OK:
                error = NonFiniteLogitsError("the logits hold NaN or infinity")
                yield self._end(slot, "error", error)
                continue
            reason = slot.take(draws[i].token)
            if reason is not None:
                yield self._end(slot, reason)

    def _process(self, row: int, slot: _Slot) -> None:
        import numpy as np

        data = lib.l2c_session_logits(self._handle, row)
        logits = np.frombuffer(ffi.buffer(data, 4 * self._vocab_size), np.float32)
        assert slot.request.logits_processor is not None
        changed = slot.request.logits_processor(list(slot.history[0 : slot.n]), logits)
        if changed is not None:
            logits[:] = changed

    def _end(self, slot: _Slot, reason: str, error: Exception | None = None) -> Completion:
        self.slots.remove(slot)
        self._free.append(slot.sequence)
        return slot.finish(reason, error)


def run_batch(
    model: Any,
    pool: Any,
    computing: Computing,
    tokenizer: BaseTokenizer,
    requests: Iterable[tuple[int, Request | Exception]],
    max_batch: int,
    n_ctx: int,
) -> Iterator[Completion]:
    """Stories in the order in which they end."""
    batch = _Batch(model, pool, computing, max_batch, n_ctx, tokenizer)
    waiting = iter(requests)
    more = True
    while more or batch.slots:
        while more and not batch.full:
            number, request = next(waiting, (-1, None))
            if request is None:
                more = False
            elif isinstance(request, Exception):
                yield Completion(number, [], [], "", 0, "error", request)
            elif request.max_tokens == 0:
                prompt, seed = request.prompt_tokens, request.seed
                yield Completion(number, prompt, [], "", seed, "length", None)
            else:
                batch.add(number, request)
        if batch.slots:
            yield from batch.step()
