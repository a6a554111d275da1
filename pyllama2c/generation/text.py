"""From tokens to text: whole characters, and stop strings found across tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from pyllama2c.tokenizers.base import BaseTokenizer


class StopFinder:
    """Looks for stop strings, and holds back text that may be the beginning of one."""

    def __init__(self, stop: Sequence[str]):
        self._stop = stop
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The text, with what was held back, that is certainly before any stop string."""
        if not self._stop:
            return text
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


def strips_space(tokenizer: BaseTokenizer, prompt_tokens: Sequence[int]) -> bool:
    """Whether a story begins a text, before which encoding puts a space, as SentencePiece does."""
    return tokenizer.adds_space and prompt_tokens[-1] == tokenizer.bos_id


class StoryText:
    """The text of a story whose tokens arrive one by one.

    It has whole characters only. A character that the story ends within is in its tokens, not in
    its text; one that the prompt ends within is all in the story's text. So stories of which each
    continues the tokens of the last have texts that join without a gap.
    """

    def __init__(
        self,
        tokenizer: BaseTokenizer,
        prompt_tokens: Sequence[int],
        stop: Sequence[str],
        begins_anew: bool = False,
    ):
        """`begins_anew`: half a character at the end of the prompt is not the story's."""
        self._tokenizer, self._text_of = tokenizer, tokenizer.text_of
        self._strip_space = strips_space(tokenizer, prompt_tokens)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        if not begins_anew:
            self._decoder.decode(_last_bytes(tokenizer, prompt_tokens))  # keeps half a character
        self._in_character = bool(self._decoder.getstate()[0])
        self._finder = StopFinder(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; the text ends before it."""
        return self._finder.found

    def feed(self, token: int) -> str:
        """The text that is certain with this token; half a character, half a stop is held back."""
        if self._strip_space or self._in_character:
            return self.feed_all((token,))
        text = self._text_of(token)
        return self.feed_all((token,)) if text is None else self._finder.feed(text)

    def feed_all(self, tokens: Sequence[int]) -> str:
        """The same for several tokens."""
        pieces = list(map(self._tokenizer.piece, tokens))
        if self._strip_space and pieces:
            pieces[0], self._strip_space = self._tokenizer.opening(tokens[0]), False
        text = self._decoder.decode(b"".join(pieces))
        self._in_character = bool(self._decoder.getstate()[0])
        return self._finder.feed(text)

    def rest(self) -> str:
        """What is still held back when the story ends, half a character excepted."""
        return "" if self.stopped else self._finder.rest()


def _last_bytes(tokenizer: BaseTokenizer, tokens: Sequence[int]) -> bytes:
    """The last bytes of a text, as many as half a character can have, back to a control token."""
    data = b""
    for token in reversed(tokens):
        piece = tokenizer.piece(token) if 0 <= token < tokenizer.vocab_size else b""
        data = piece + data
        if len(data) >= 3 or not piece:
            break
    return data[-3:]
