"""One story while it is told: an iterator of text, and what is known about it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c._ffi import ffi
from pyllama2c.errors import CancelledError
from pyllama2c.session import MAX_ROWS, Session
from pyllama2c.tokenizer import BOS, EOS, Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    LogitsProcessor = Callable[[list[int], NDArray[np.float32]], NDArray[np.float32] | None]


class GenerationStats(NamedTuple):
    """Times are seconds on a monotonic clock, spent generating (not in the caller's loop)."""

    prompt_tokens: int
    """tokens of the prompt, BOS included"""
    tokens: int
    """sampled tokens, the stop token excluded"""
    time_to_first_token: float
    prefill_tokens_per_second: float
    """prompt tokens over the time until the first token"""
    decode_seconds: float
    """from the first token on"""
    tokens_per_second: float
    """forward passes after the first token, over decode_seconds: what run.c reports"""


class StopFinder:
    """Holds back text that may be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]):
        self._stop = stop
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The part of the text so far that is certainly before any stop string."""
        held = self._held + text
        ends = [at for at in (held.find(s) for s in self._stop) if at >= 0]
        if ends:
            self.found, self._held = True, ""
            return held[: min(ends)]
        keep = max(
            (n for s in self._stop for n in range(1, min(len(s), len(held) + 1)) if held.endswith(s[:n])),
            default=0,
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back, at the end of the story."""
        held, self._held = self._held, ""
        return held


class Generation(Iterator[str]):
    """A story, told while it is iterated; nothing is computed before the first step.

    Yields pieces of text that never split a character. The prompt is not part of them:
    `prompt + story.read()` is the whole. Made by `Llama.generate`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        lease: Callable[[], Session],
        release: Callable[[Session], None],
        prompt_tokens: list[int],
        sampler: Any,
        seed: int,
        max_tokens: int,
        stop: Sequence[str],
        logits_processor: LogitsProcessor | None,
    ):
        self.seed = seed
        self.prompt_tokens = prompt_tokens
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self._tokenizer, self._sampler, self._max_tokens = tokenizer, sampler, max_tokens
        self._lease, self._release = lease, release
        self._stop, self._logits_processor = stop, logits_processor
        self._text: list[str] = []
        self._cancelled = False
        self._session: Session | None = None
        self._first_token_seconds = self._decode_seconds = 0.0
        self._decode_passes = 0
        self._steps = self._run()

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        text = next(self._steps)
        self._text.append(text)
        return text

    def read(self) -> str:
        """Runs to the end and returns the whole text, what was already yielded included."""
        for _ in self:
            pass
        return "".join(self._text)

    def cancel(self) -> None:
        """Ends the story within one token, from any thread; `finish_reason` is "cancelled"."""
        self._cancelled = True
        session = self._session
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Ends the story here and gives its memory back. Further iteration yields nothing."""
        self._steps.close()
        if self.finish_reason is None:
            self.finish_reason = "cancelled"

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def rng_state(self) -> int:
        """State of the xorshift64* generator after the tokens so far."""
        return int(self._sampler.rng_state)

    @property
    def stats(self) -> GenerationStats:
        """Figures of the story so far."""
        first, decode, n = self._first_token_seconds, self._decode_seconds, len(self.prompt_tokens)
        return GenerationStats(
            prompt_tokens=n,
            tokens=len(self.tokens),
            time_to_first_token=first,
            prefill_tokens_per_second=n / first if first > 0 else 0.0,
            decode_seconds=decode,
            tokens_per_second=self._decode_passes / decode if decode > 0 else 0.0,
        )

    def _run(self) -> Iterator[str]:
        if self._max_tokens == 0:
            self.finish_reason = "length"
            return
        started = perf_counter()
        session = self._session = self._lease()
        try:
            yield from self._tell(session, started)
        finally:
            if self.finish_reason is None:
                self.finish_reason = "cancelled"
            self._session = None
            self._release(session)

    def _tell(self, session: Session, resumed: float) -> Iterator[str]:
        """Feeds the prompt, then samples and feeds token by token; `resumed` is when it began."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        finder = StopFinder(self._stop)
        piece, sampler, tokens = self._tokenizer.piece, self._sampler, self.tokens
        position = len(self.prompt_tokens)
        # The sampler reads the ids of prompt and story from here, for the repetition penalty.
        history = ffi.new("int32_t[]", position + self._max_tokens)
        history[0:position] = self.prompt_tokens

        if not self._prefill(session):
            return
        after_bos = self.prompt_tokens[-1] == BOS
        while True:
            token = self._sample(session, history, position)
            now = perf_counter()
            if self._first_token_seconds == 0.0:
                self._first_token_seconds = now - resumed
            else:
                self._decode_seconds += now - resumed
            resumed = now
            if token in (BOS, EOS):
                self.finish_reason = "stop"
                break
            tokens.append(token)
            history[position] = token
            data = piece(token)
            if after_bos:  # as SentencePiece: the space that encoding put before the text
                data = data.removeprefix(b" ")
                after_bos = False
            text = decoder.decode(data)
            if self._stop:
                text = finder.feed(text)
            if finder.found:
                self.finish_reason = "stop"
            elif len(tokens) == self._max_tokens:
                self.finish_reason = "length"
            if self.finish_reason is not None:
                if text:
                    yield text
                break
            if text:
                self._decode_seconds += perf_counter() - resumed
                yield text
                resumed = perf_counter()
            if self._cancelled or not self._feed(session, (token,), position):
                return
            self._decode_passes += 1
            position += 1
        if not finder.found:
            rest = finder.feed(decoder.decode(b"", True)) if self._stop else decoder.decode(b"", True)
            rest += finder.rest()
            if rest:
                yield rest

    def _prefill(self, session: Session) -> bool:
        for start in range(0, len(self.prompt_tokens), MAX_ROWS):
            if self._cancelled:
                return False
            if not self._feed(session, self.prompt_tokens[start : start + MAX_ROWS], start):
                return False
        return True

    def _feed(self, session: Session, tokens: Sequence[int], position: int) -> bool:
        """False when `cancel` stopped it half-way."""
        try:
            session.feed(tokens, position)
        except CancelledError:
            return False
        return True

    def _sample(self, session: Session, history: Any, n_history: int) -> int:
        if self._logits_processor is not None:
            logits = session.logits(1, self._tokenizer.vocab_size)[0]
            changed = self._logits_processor(self.prompt_tokens + self.tokens, logits)
            if changed is not None:
                logits[:] = changed
        return session.sample(self._sampler, history, n_history)
