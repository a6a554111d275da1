"""One story: an iterator of text, with its tokens and figures."""

from __future__ import annotations

import threading
from collections import deque
from time import perf_counter
from typing import Literal, NoReturn

from pyllama2c import dialects, validate
from pyllama2c._ffi import ffi
from pyllama2c.dialects import SuggestsNames
from pyllama2c.engine.draft import Draft, DraftLength
from pyllama2c.engine.session import MAX_DRAFT, Session, Sessions
from pyllama2c.errors import BusyError, CancelledError
from pyllama2c.generation.asynchronous import AsyncSteps
from pyllama2c.generation.logprobs import LogprobReader, TokenLogprob
from pyllama2c.generation.request import Request, process_logits
from pyllama2c.generation.stats import GenerationStats
from pyllama2c.generation.text import StoryText
from pyllama2c.handle import ClosableHandle
from pyllama2c.tokenizers.base import BaseTokenizer


class Generation(SuggestsNames, ClosableHandle, AsyncSteps[str]):
    """A story, generated as it is iterated, also with `async for`; nothing is computed before the
    first step.

    Yields pieces of text that never split a character. The prompt is not part of them:
    `prompt + story.read()` is the whole. Made by `Llama.generate`.

    `tokens` are the sampled ones so far, the stop token excluded; `finish_reason` is None until the
    story ends, then "stop", "length" or "cancelled". NonFiniteLogitsError, from any step, for
    logits that hold NaN or infinity; BusyError while another thread takes a step. A story that is
    left half-way gives its session back when it is closed (`with`, or `contextlib.aclosing`) or
    garbage-collected.
    """

    _answers = dialects.STORY

    def __init__(
        self, request: Request, tokenizer: BaseTokenizer, sessions: Sessions, draft: Draft | None
    ):
        self.seed = request.seed
        self.prompt_tokens = request.prompt_tokens
        self.tokens: list[int] = []
        self.finish_reason: Literal["stop", "length", "cancelled"] | None = None
        self.logprobs: list[TokenLogprob] = []
        """of each of `tokens`, where `logprobs` was asked for"""
        self._vocab_size = tokenizer.vocab_size
        self._reader: LogprobReader | None = None
        if request.logprobs is not None:
            self._reader = LogprobReader(request.logprobs, self._vocab_size, MAX_DRAFT + 1)
        self._max_tokens, self._sampler = request.max_tokens, request.sampler
        self._logits_processor = request.logits_processor
        self._ends = request.ends(tokenizer)
        self._end_list = ffi.new("int32_t[]", list(self._ends))
        self._decoder = StoryText(
            tokenizer, request.prompt_tokens, request.stop, request.grammar is not None
        )
        self._text: list[str] = []
        self._sessions = sessions
        # Held while the session is taken or returned, so that `cancel` never stops another story.
        # A signal handler may cancel or end the story while this thread holds it.
        self._holding = threading.RLock()
        self._session: Session | None = None
        self._guide = None if request.grammar is None else request.grammar.guide()
        # A processor and a grammar are asked before each choice, of which drafts make several.
        self._asks = self._guide is not None or request.logits_processor is not None
        self._draft = None if self._asks else draft
        self._draft_session: Session | None = None
        self._draft_length = DraftLength()
        # Prompt and story, for the penalties and the draft.
        self._history = ffi.new("int32_t[]", len(request.prompt_tokens) + request.max_tokens)
        self._history[0 : len(request.prompt_tokens)] = request.prompt_tokens
        # Sampled, not yet yielded: tokens, the random generator's state after each, logprobs.
        self._ready: deque[tuple[int, int, TokenLogprob | None]] = deque()
        self._rng_state = int(request.sampler.rng_state)
        self._cancelled = False
        self._turn = threading.Lock()
        self._cached_tokens = 0
        self._first_token_seconds = self._decode_seconds = 0.0
        self._decode_passes = 0

    def __getitem__(self, key: object) -> NoReturn:
        raise TypeError("a Generation has no items; use text, tokens or logprobs")

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        if not self._turn.acquire(blocking=False):
            raise BusyError("another thread is generating this story")
        try:
            text = ""
            while not text and self.finish_reason is None:
                text = self._step()
        except BaseException:  # Ctrl-C, too: the story ends and returns its session
            self._end("cancelled")
            raise
        finally:
            self._turn.release()
        if not text:
            raise StopIteration
        self._text.append(text)
        return text

    def read(self) -> str:
        """Runs to the end and returns the whole text, what was already yielded included."""
        for _ in self:
            pass
        return self.text

    async def aread(self) -> str:
        """`read`, in another thread; a task that is cancelled meanwhile cancels the story."""
        return await self._in_thread(self.read)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    def cancel(self) -> None:
        """Ends the story within one token, from any thread; `finish_reason` is "cancelled"."""
        self._cancelled = True
        with self._holding:
            if self._session is not None:
                self._session.cancel()

    def close(self) -> None:
        """Ends the story here and gives its memory back. Further iteration yields nothing.

        While a step runs, the story ends with that step instead: a logits processor may call this
        within the step, so to wait here would be a deadlock.
        """
        self.cancel()
        if self._turn.acquire(blocking=False):
            self._end("cancelled")
            self._turn.release()

    @property
    def rng_state(self) -> int:
        """State of the xorshift64* generator after the tokens so far."""
        return self._rng_state

    @property
    def stats(self) -> GenerationStats:
        """Figures of the story so far."""
        first, decode, n = self._first_token_seconds, self._decode_seconds, len(self.prompt_tokens)
        return GenerationStats(
            prompt_tokens=n,
            cached_tokens=self._cached_tokens,
            tokens=len(self.tokens),
            time_to_first_token=first,
            prefill_tokens_per_second=n / first if first > 0 else 0.0,
            decode_seconds=decode,
            tokens_per_second=self._decode_passes / decode if decode > 0 else 0.0,
            drafted_tokens=self._draft_length.drafted,
            accepted_tokens=self._draft_length.accepted,
        )

    def __repr__(self) -> str:
        state = self.finish_reason or "not finished"
        return f"<Generation of {len(self.tokens)} tokens, {state}: {validate.shown(self.text)}>"

    def _ipython_display_(self) -> None:
        """What a notebook shows: plain text, as it is generated."""
        print(self.text, end="", flush=True)
        for piece in self:
            print(piece, end="", flush=True)
        print()

    def _end(self, reason: Literal["stop", "length", "cancelled"]) -> None:
        """Settles how the story ended, once, and returns the sessions."""
        if self.finish_reason is None:
            self.finish_reason = reason
        with self._holding:
            session, self._session = self._session, None
        if session is not None:
            self._sessions.give_back(session)
        session, self._draft_session = self._draft_session, None
        if session is not None and self._draft is not None:
            self._draft.give_back(session)

    def _step(self) -> str:
        """The next token, computed if none is ready; its text, empty where that is held back."""
        if self._max_tokens == 0:
            self._end("length")
            return ""
        started = perf_counter()
        first = self._session is None
        try:
            if self._cancelled or not (self._ready or self._compute()):
                raise CancelledError
        except CancelledError:
            self._end("cancelled")
            return self._decoder.rest()
        token, self._rng_state, logprob = self._ready.popleft()
        text = ""
        if token in self._ends:
            self._end("stop")
        else:
            self._history[len(self.prompt_tokens) + len(self.tokens)] = token
            if logprob is not None:
                self.logprobs.append(logprob)
            self.tokens.append(token)
            text = self._decoder.feed(token)
            matched = self._guide is not None and self._guide.take(token)
            if matched or self._decoder.stopped:
                self._end("stop")
            elif len(self.tokens) == self._max_tokens:
                self._end("length")
        if self.finish_reason is not None:
            text += self._decoder.rest()
        if first:
            self._first_token_seconds = perf_counter() - started
        else:
            self._decode_passes += 1
            self._decode_seconds += perf_counter() - started
        return text

    def _compute(self) -> bool:
        """Makes one token ready or, with a draft, several; False when cancelled meanwhile."""
        if self._session is None:
            return self._prefill()
        session, n = self._session, len(self.prompt_tokens) + len(self.tokens)
        room = self._max_tokens - len(self.tokens) - 1
        if self._draft is not None and room > 0 and self._draft_session is None:
            self._draft_session = self._draft.lease(self.prompt_tokens, self)
            if self._draft_session is None:
                self._draft = None
        plain = not self._asks and self._reader is None
        if self._draft_session is None and session.max_steps > 1 and plain:
            steps = min(session.max_steps, room + 1)
            new = session.decode(self._sampler, self._history, n, steps, self._end_list)
            self._ready.extend((token, state, None) for token, state in new)
            return True
        if self._draft_session is None or room < 1:
            session.feed(self.tokens[-1:], n - 1)
            self._sample(session)
            return True
        n_draft = self._draft_length.next(room)
        reader = self._reader
        options = None if reader is None else reader.options
        new = session.speculate(
            self._draft_session, self._sampler, self._history, n, n_draft, self._end_list, options
        )
        self._draft_length.report(n_draft, len(new) - 1)
        for i, (token, state) in enumerate(new):
            self._ready.append((token, state, None if reader is None else reader.read(token, i)))
        return True

    def _prefill(self) -> bool:
        prompt = self.prompt_tokens
        session = self._sessions.lease(prompt, self)
        with self._holding:
            self._session = session
        # The last token is computed even if it is cached: its logits choose the first new one.
        self._cached_tokens = start = min(session.cached(prompt), len(prompt) - 1)
        for at in range(start, len(prompt), session.max_rows):
            if self._cancelled:
                return False
            chunk = prompt[at : at + session.max_rows]
            session.feed(chunk, at, want_logits=int(at + len(chunk) == len(prompt)))
        self._sample(session)
        return True

    def _sample(self, session: Session) -> None:
        if self._logits_processor is not None:
            logits = session.logits(1, self._vocab_size)[0]
            own = logits.copy()  # which the processor may keep; the row is the session's
            if self._reader is not None:
                self._reader.keep(logits)
            process_logits(self._logits_processor, self.prompt_tokens + self.tokens, own)
            logits[:] = own
        n = len(self.prompt_tokens) + len(self.tokens)
        reader = self._reader
        options = None if reader is None else reader.options
        if self._guide is not None:
            options = options or ffi.new("l2c_draw_options[]", 1)
            options[0].mask = self._guide.mask()
        token = session.sample(self._sampler, self._history, n, options)
        logprob = None if reader is None else reader.read(token)
        self._ready.append((token, int(self._sampler.rng_state), logprob))
