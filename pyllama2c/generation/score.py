"""How probable texts are to a model, many in one forward call."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c import validate
from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.engine.session import SessionOptions, common_prefix, new_session, rows_of
from pyllama2c.errors import NonFiniteLogitsError
from pyllama2c.generation.sampling import new_sampler

if TYPE_CHECKING:
    from pyllama2c.engine.engine import Engine

_SEQUENCES = 16
"""texts in progress at once: with four rows of each a call is full; more take memory for caches"""


@dataclass(frozen=True, slots=True)
class Score:
    """How probable a text is. Log-probabilities are natural."""

    tokens: list[int]
    logprobs: list[float | None]
    """entry i is log p(token i | tokens before it); None for the first, and before `starts`"""
    total: float
    """sum of the logprobs"""
    perplexity: float
    """exp(-total / number of logprobs); NaN when there is none"""
    bits_per_byte: float
    """-total / ln 2 / bytes of UTF-8 text; NaN for an empty text, or ids without a tokenizer"""
    greedy: bool
    """whether every token that has a logprob is the likeliest one, as temperature 0 picks it"""


def perplexity(nll: float, n_tokens: int) -> float:
    """Of the negative log-likelihood of `n_tokens` in nats; infinite beyond what a float holds, NaN
    for no tokens."""
    try:
        return math.exp(nll / n_tokens) if n_tokens else math.nan
    except OverflowError:
        return math.inf


def make_score(
    tokens: list[int], logprobs: list[float | None], greedy: bool, n_bytes: int
) -> Score:
    """Sums up; `n_bytes` is the length of the text that the scored tokens stand for."""
    scored = [p for p in logprobs if p is not None]
    total = math.fsum(scored)
    return Score(
        tokens=tokens,
        logprobs=logprobs,
        total=total,
        perplexity=perplexity(-total, len(scored)),
        bits_per_byte=-total / math.log(2) / n_bytes if scored and n_bytes else math.nan,
        greedy=greedy,
    )


class _Text(NamedTuple):
    """Tokens of which those from `start` (1 or more) on are scored: a text, or a window of one."""

    number: int
    """of the text"""
    begin: int
    """where in the text the tokens are"""
    tokens: list[int]
    start: int


def _chains(texts: Sequence[_Text]) -> Iterator[deque[_Text]]:
    """Texts that begin alike, as the answers to one question do, one after the other: each then
    finds what it shares with the one before in the cache of their sequence."""
    chain: deque[_Text] = deque()
    for text in sorted(texts, key=lambda text: text.tokens):
        if chain and 2 * common_prefix(chain[-1].tokens, text.tokens) < len(text.tokens):
            yield chain
            chain = deque()
        chain.append(text)
    if chain:
        yield chain


_Result = tuple[_Text, list[float | None], bool]
"""a text, its logprobs, whether they are all of likeliest tokens"""


class _Reader:
    """A chain of texts on its way through one of the session's sequences."""

    def __init__(self, chain: deque[_Text], sequence: int):
        self._chain, self.sequence = chain, sequence
        self._begin(0)

    def _begin(self, cached: int) -> None:
        self._text = text = self._chain.popleft()
        self._fed = min(cached, text.start - 1)  # the row before the first scored token is needed
        self._logprobs: list[float | None] = [None] * text.start
        self._greedy = True

    def put(self, rows: Any, n_rows: int, max_rows: int) -> tuple[int, list[int]]:
        """Adds what fits of the text after `n_rows` rows: how many, and the tokens to score."""
        tokens, start = self._text.tokens, self._text.start
        begin, end = self._fed, min(len(tokens) - 1, self._fed + max_rows - n_rows)
        for position in range(begin, end):
            row = rows[n_rows + position - begin]
            row.sequence, row.position, row.token = self.sequence, position, tokens[position]
            row.want_logits = position >= start - 1
        self._fed = end
        return end - begin, tokens[max(begin + 1, start) : end + 1]

    def take(self, scored: list[int], logprobs: list[float], likeliest: list[int]) -> bool:
        """The results of those rows; whether the text is finished."""
        self._logprobs += logprobs
        self._greedy &= scored == likeliest
        return self._fed == len(self._text.tokens) - 1

    def result(self) -> _Result:
        return self._text, self._logprobs, self._greedy

    def next_text(self) -> bool:
        """Begins the next text of the chain, if there is one."""
        if self._chain:
            self._begin(common_prefix(self._text.tokens[:-1], self._chain[0].tokens))
            return True
        return False


class _Scorer:
    """A C session of several sequences, and its last call's logits."""

    def __init__(
        self, model: Any, pool: Any, options: SessionOptions, n_sequences: int, context: int
    ):
        self._handle = new_session(model, pool, options, n_sequences, context)
        self._parents, self._error = (model, pool), new_error()
        self.max_rows = rows_of(self._handle, options)
        self.rows = ffi.new("l2c_row[]", self.max_rows)
        self._draws = ffi.new("l2c_draw[]", self.max_rows)
        self._logprob = ffi.new("double *")
        self._sampler = new_sampler(
            temperature=0, top_p=0, top_k=0, min_p=0, repetition_penalty=1, seed=0
        )

    def forward(self, n_rows: int) -> None:
        check(lib.l2c_session_forward(self._handle, self.rows, n_rows, self._error), self._error)

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """log p of the token i under row i of the logits, in nats."""
        handle, out, err, values = self._handle, self._logprob, self._error, []
        for row, token in enumerate(tokens):
            check(lib.l2c_session_logprob(handle, row, token, out, err), err)
            values.append(float(out[0]))
        return values

    def likeliest(self, n: int) -> list[int]:
        """The likeliest token of each of `n` rows of logits, which it uses up."""
        draws = self._draws
        for row in range(n):
            draws[row].row, draws[row].sampler = row, self._sampler
        check(lib.l2c_session_sample_many(self._handle, draws, n, self._error), self._error)
        if any(draws[row].status for row in range(n)):
            raise NonFiniteLogitsError("the logits hold NaN or infinity")
        return [draws[row].token for row in range(n)]


def _run(
    model: Any, pool: Any, options: SessionOptions, texts: Sequence[_Text]
) -> Iterator[_Result]:
    """Results as texts end. Every call is full: rows of few long texts, or of many short ones. A
    sequence is begun only where rows are left, so that few of them ever use their memory."""
    waiting = deque(_chains(texts))
    free = list(range(min(_SEQUENCES, len(waiting))))
    scorer = _Scorer(model, pool, options, len(free), max(len(text.tokens) - 1 for text in texts))
    readers: list[_Reader] = []
    while waiting or readers:
        n_rows = 0
        scored: list[list[int]] = []  # of the first readers, as many as have rows
        while n_rows < scorer.max_rows:
            if len(scored) == len(readers):
                if not (waiting and free):
                    break
                readers.append(_Reader(waiting.popleft(), free.pop()))
            count, tokens = readers[len(scored)].put(scorer.rows, n_rows, scorer.max_rows)
            n_rows += count
            scored.append(tokens)
        scorer.forward(n_rows)
        logprobs = scorer.logprobs([token for tokens in scored for token in tokens])
        likeliest = scorer.likeliest(len(logprobs))
        at = 0
        for reader, tokens in zip(readers[:], scored, strict=False):
            end = at + len(tokens)
            if reader.take(tokens, logprobs[at:end], likeliest[at:end]):
                yield reader.result()
                if not reader.next_text():
                    readers.remove(reader)
                    free.append(reader.sequence)
            at = end


def score_texts(
    engine: Engine,
    texts: Sequence[list[int]],
    starts: Sequence[int] | None,
    count_bytes: Callable[[list[int]], int],
) -> list[Score]:
    """Llama.score_batch; `count_bytes` is the length in bytes of the text of tokens."""
    context = engine.config.seq_len
    work: list[_Text] = []
    for i, (tokens, start) in enumerate(zip(texts, _starts(texts, starts), strict=True)):
        work += _windows(i, tokens, start, context)
    logprobs: list[list[float | None]] = [[None] * len(tokens) for tokens in texts]
    greedy = [True] * len(texts)
    first = [len(tokens) for tokens in texts]  # index of the first token scored
    if work:
        pool = engine.batch_pool() if len(work) > 1 else engine.pool
        for window, values, likeliest in _run(engine.model, pool, engine.session_options, work):
            number, at = window.number, window.begin + window.start
            logprobs[number][at : window.begin + len(values)] = values[window.start :]
            greedy[number] &= likeliest
            first[number] = min(first[number], at)
    return [
        make_score(
            tokens,
            logprobs[i],
            greedy[i],
            count_bytes(tokens) - count_bytes(tokens[: first[i]]) if first[i] < len(tokens) else 0,
        )
        for i, tokens in enumerate(texts)
    ]


def _starts(texts: Sequence[list[int]], starts: Sequence[int] | None) -> Sequence[int]:
    """Checked, one for each text."""
    if starts is None:
        return [1] * len(texts)
    listed = list(validate.values("starts", starts, "a list of integers, one for each text"))
    if len(listed) != len(texts):
        raise ValueError(f"starts has {len(listed)} values for {len(texts)} texts")
    return [
        validate.integer(f"text {i}: start", start, 1, max(1, len(tokens)))
        for i, (tokens, start) in enumerate(zip(texts, listed, strict=True))
    ]


def _windows(number: int, tokens: list[int], start: int, context: int) -> Iterator[_Text]:
    """A text cut into what fits the context, and one token more, which is not fed: each token from
    `start` on is scored once; the first of a window after half a context or more, as far as the
    text has that."""
    before = (context + 1) // 2
    begin, first = max(0, min(start - before, len(tokens) - context - 1)), start
    if start <= context:  # the text's beginning is within reach
        begin = 0
    while first < len(tokens):
        end = min(len(tokens), begin + context + 1)
        yield _Text(number, begin, tokens[begin:end], first - begin)
        begin, first = end - before, end
