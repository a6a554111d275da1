"""One story while it is told: an iterator of text, and what is known about it."""

from __future__ import annotations

import codecs
import threading
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c._ffi import ffi
from pyllama2c.errors import BusyError, CancelledError
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
            (
                n
                for s in self._stop
                for n in range(1, min(len(s), len(held) + 1))
                if held.endswith(s[:n])
            ),
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
        self._logits_processor = logits_processor
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._finder = StopFinder(stop)
        self._text: list[str] = []
        # Prompt and story, for the repetition penalty. The length is the next position, too.
        self._history = ffi.new("int32_t[]", len(prompt_tokens) + max_tokens)
        self._history[0 : len(prompt_tokens)] = prompt_tokens
        self._position = len(prompt_tokens)
        self._session: Session | None = None
        self._cancelled = False
        self._turn = threading.Lock()
        self._first_token_seconds = self._decode_seconds = 0.0
        self._decode_passes = 0

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        if not self._turn.acquire(blocking=False):
            raise BusyError("this story is being told in another thread")
        try:
            text = ""
            while not text and self.finish_reason is None:
                text = self._step()
        except BaseException:  # Ctrl-C, too: the session goes back, the story ends here
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
        return "".join(self._text)

    def cancel(self) -> None:
        """Ends the story within one token, from any thread; `finish_reason` is "cancelled"."""
        self._cancelled = True
        session = self._session
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Ends the story here and gives its memory back. Further iteration yields nothing.

        While a step runs (in another thread, or around a logits processor that calls this), the
        story ends with that step instead: waiting for it here could be waiting for oneself.
        """
        self.cancel()
        if self._turn.acquire(blocking=False):
            self._end("cancelled")
            self._turn.release()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_session"):  # else the constructor failed
            self._end("cancelled")

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

    def _end(self, reason: str) -> None:
        """Settles how the story ended, once, and returns the session."""
        if self.finish_reason is None:
            self.finish_reason = reason
        session, self._session = self._session, None
        if session is not None:
            self._release(session)

    def _step(self) -> str:
        """One token further: feed, sample, decode. Text may be held back, and is then empty."""
        if self._max_tokens == 0:
            self._end("length")
            return ""
        started = perf_counter()
        first = self._session is None
        if not (self._prefill() if first else self._feed_last()):
            self._end("cancelled")
            return self._rest()
        token = self._sample()
        if token in (BOS, EOS):
            text = ""
            self._end("stop")
        else:
            self.tokens.append(token)
            self._history[self._position] = token
            self._position += 1
            text = self._finder.feed(self._decoder.decode(self._piece(token, first)))
            if self._finder.found:
                self._end("stop")
            elif len(self.tokens) == self._max_tokens:
                self._end("length")
        if self.finish_reason is not None:
            text += self._rest()
        if first:
            self._first_token_seconds = perf_counter() - started
        else:
            self._decode_passes += 1
            self._decode_seconds += perf_counter() - started
        return text

    def _piece(self, token: int, first: bool) -> bytes:
        piece = self._tokenizer.piece(token)
        if first and self.prompt_tokens[-1] == BOS:
            return piece.removeprefix(b" ")  # as SentencePiece: encoding put it before the text
        return piece

    def _rest(self) -> str:
        """What decoder and finder still hold when the story ends."""
        if self._finder.found:
            return ""
        return self._finder.feed(self._decoder.decode(b"", True)) + self._finder.rest()

    def _prefill(self) -> bool:
        self._session = self._lease()
        for start in range(0, len(self.prompt_tokens), MAX_ROWS):
            chunk = self.prompt_tokens[start : start + MAX_ROWS]
            is_last = start + len(chunk) == len(self.prompt_tokens)
            if not self._feed(chunk, start, want_logits=int(is_last)):
                return False
        return True

    def _feed_last(self) -> bool:
        return self._feed(self.tokens[-1:], self._position - 1)

    def _feed(self, tokens: Sequence[int], position: int, want_logits: int = 1) -> bool:
        """False when `cancel` came before it or half-way."""
        assert self._session is not None
        if self._cancelled:
            return False
        try:
            self._session.feed(tokens, position, want_logits)
        except CancelledError:
            return False
        return True

    def _sample(self) -> int:
        assert self._session is not None
        if self._logits_processor is not None:
            logits = self._session.logits(1, self._tokenizer.vocab_size)[0]
            changed = self._logits_processor(self.prompt_tokens + self.tokens, logits)
            if changed is not None:
                logits[:] = changed
        return self._session.sample(self._sampler, self._history, self._position)
