"""A story of a batch: what is told of it as it goes on, and its Completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pyllama2c.generation.logprobs import TokenLogprob, token_logprob
from pyllama2c.generation.request import Request
from pyllama2c.generation.text import StoryText
from pyllama2c.tokenizers.base import BaseTokenizer

BatchReason = Literal["stop", "length", "error"]
"""why a story of a batch ended"""


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


class Piece(NamedTuple):
    """A token of a story in progress."""

    prompt_index: int
    choice: int
    token: int
    text: str
    """what is certain with this token: empty where half a character or a stop string may follow"""
    logprob: TokenLogprob | None = None


class PromptRead(NamedTuple):
    """A story's prompt is in the cache; its first token comes of the same step."""

    prompt_index: int
    choice: int
    n_cached: int
    """tokens of the prompt that were there already, or that another story read for both"""


class BatchStory:
    """A story in progress. Only stop strings and `streamed` pieces need its text before it ends."""

    def __init__(
        self,
        prompt_index: int,
        choice: int,
        request: Request,
        tokenizer: BaseTokenizer,
        streamed: bool,
    ):
        self.prompt_index, self.choice, self.request = prompt_index, choice, request
        self.streamed = streamed
        self._decoder = StoryText(
            tokenizer, request.prompt_tokens, request.stop, request.grammar is not None
        )
        self._text = ""
        self.guide = None if request.grammar is None else request.grammar.guide()
        self._logprobs: list[TokenLogprob] | None = None if request.logprobs is None else []
        self._decodes = streamed or bool(request.stop)
        self._matched = False
        self.is_plain = streamed and not (
            request.stop or request.logprobs is not None or request.grammar is not None
        )
        """whether a token is told, and nothing more comes of it"""

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete, or what the grammar wants."""
        return self._matched or self._decoder.stopped

    def hear_plain(self, token: int) -> Piece:
        """`hear` for a story that `is_plain`."""
        text = self._decoder.feed(token)
        self._text += text
        return Piece(self.prompt_index, self.choice, token, text)

    def hear(self, event: Any) -> Piece:
        """Takes a token."""
        chosen, logprob, text = event.chosen, None, ""
        token = chosen.token
        if self._logprobs is not None:
            logprob = token_logprob(token, chosen.logprob, event.top, event.n_top)
            self._logprobs.append(logprob)
        if self.guide is not None:
            self._matched = self.guide.take(token)
        if self._decodes:
            text = self._decoder.feed(token)
            self._text += text
        return Piece(self.prompt_index, self.choice, token, text, logprob)

    def finish(
        self, tokens: list[int], reason: BatchReason, error: Exception | None = None
    ) -> Completion:
        if not self._decodes:
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
