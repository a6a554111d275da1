"""Tokens as texts beside their log-probabilities: joined, they are the text of the story."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c.generation.logprobs import TokenLogprob
from pyllama2c.generation.text import StoryText, strips_space
from pyllama2c.tokenizers.base import NONE, BaseTokenizer

if TYPE_CHECKING:
    from pyllama2c.serve.job import Story


class TokenNames:
    """What a token is called where it stands alone, as among the likeliest."""

    def __init__(self, tokenizer: BaseTokenizer):
        self._tokenizer = tokenizer
        self._names: dict[tuple[int, bool], str] = {}
        self._fallback = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
        self._by_text = {text: token for token, text in self._fallback.items() if token != NONE}

    def name(self, token: int, opens: bool = False) -> str:
        """`opens`: it is the first of a text, whose space is not part of it."""
        known = self._names.get((token, opens))
        if known is None:
            known = self._names[token, opens] = self._name(self.piece(token, opens), token)
        return known

    def _name(self, piece: bytes, token: int) -> str:
        if not piece:
            known = self._tokenizer.special_text(token)
            return known or self._fallback.get(token, f"<token {token}>")
        try:
            return piece.decode()
        except UnicodeDecodeError:  # part of a character, as OpenAI writes it
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def encode(self, text: str, bos: bool) -> list[int]:
        """Ids of a text in which control tokens stand by their names. BOS comes only once."""
        tokenizer = self._tokenizer
        if tokenizer.special_tokens:
            parts = tokenizer.split(text)
        else:  # llama2.c's vocabularies have no names of their own
            each = re.split("(</?s>)", text)
            parts = [self._by_text.get(part, part) for part in each if part]
        ids = tokenizer.encode_parts(parts)
        first = [tokenizer.bos_id]
        return [*first, *ids] if bos and tokenizer.bos_id != NONE and ids[:1] != first else ids

    def piece(self, token: int, opens: bool = False) -> bytes:
        return self._tokenizer.opening(token) if opens else self._tokenizer.piece(token)


class Entry(NamedTuple):
    token: int
    text: str
    """whole characters that are complete with this token"""
    start: int
    """where in the text, in characters"""
    opens: bool
    scored: TokenLogprob | None


class TokenTexts:
    """The texts of tokens that follow others, token by token."""

    def __init__(self, tokenizer: BaseTokenizer, before: Sequence[int], start: int = 0):
        self._decoder = StoryText(tokenizer, before, ())
        self._opens = strips_space(tokenizer, before)
        self.end = start

    def feed(self, token: int, scored: TokenLogprob | None) -> Entry:
        opens, self._opens = self._opens, False
        entry = Entry(token, self._decoder.feed(token), self.end, opens, scored)
        self.end += len(entry.text)
        return entry


def prompt_entries(
    tokenizer: BaseTokenizer, tokens: Sequence[int], scores: Sequence[TokenLogprob | None]
) -> list[Entry]:
    """Those of a whole prompt; control tokens have no text."""
    first = tokens[0]
    opens = tokenizer.adds_space
    text = (tokenizer.opening(first) if opens else tokenizer.piece(first)).decode("utf-8", "ignore")
    texts = TokenTexts(tokenizer, tokens[:1], len(text))
    rest = zip(tokens[1:], scores[1:], strict=True)
    return [Entry(first, text, 0, opens, scores[0]), *(texts.feed(*each) for each in rest)]


def cut(entries: Sequence[Entry], end: int, whole: bool) -> list[Entry]:
    """The entries of a text of `end` characters; `whole`: it was not cut by a stop string."""
    if whole:
        return list(entries)
    kept = (each for each in entries if each.start < end)
    return [each._replace(text=each.text[: end - each.start]) for each in kept]


def stop_string(story: Story, tokenizer: BaseTokenizer) -> str | None:
    """The stop string that ended a finished story; None where it ended otherwise."""
    request = story.request
    if not request.stop or story.completion is None:
        return None
    text = StoryText(tokenizer, request.prompt_tokens, ()).feed_all(story.completion.tokens)
    found = [(text.find(string), string) for string in request.stop if string in text]
    return min(found)[1] if found else None


def ended_by_token(story: Story, tokenizer: BaseTokenizer) -> bool:
    """Whether an end token ended a finished story, which is not among its tokens."""
    done, grammar = story.completion, story.request.grammar
    if done is None or done.finish_reason != "stop" or stop_string(story, tokenizer) is not None:
        return False
    guide = None if grammar is None else grammar.guide()
    # A grammar that is matched, and that nothing can continue, ends with its last token.
    return guide is None or not any(guide.take(token) for token in done.tokens)


def completion_logprobs(entries: Sequence[Entry], names: TokenNames) -> dict[str, Any]:
    """As /v1/completions has them."""
    return {
        "tokens": [each.text for each in entries],
        "token_logprobs": [each.scored and each.scored.logprob for each in entries],
        "top_logprobs": [_top(each, names) for each in entries],
        "text_offset": [each.start for each in entries],
    }


def _top(entry: Entry, names: TokenNames) -> dict[str, float] | None:
    """The likeliest, and the token itself. Of two with one text, the one that is likelier."""
    scored = entry.scored
    if scored is None:
        return None
    out = {entry.text or names.name(entry.token, entry.opens): scored.logprob}
    for token, logprob in scored.top:
        if token != scored.token:
            out.setdefault(names.name(token, entry.opens), logprob)
    return out


def chat_logprobs(entries: Sequence[Entry], names: TokenNames) -> dict[str, Any]:
    """As /v1/chat/completions has them."""

    def described(token: int, opens: bool, logprob: float) -> dict[str, Any]:
        name, piece = names.name(token, opens), names.piece(token, opens)
        return {"token": name, "logprob": logprob, "bytes": list(piece)}

    content = []
    for entry in entries:
        assert entry.scored is not None
        top = [described(token, entry.opens, p) for token, p in entry.scored.top]
        own = described(entry.token, entry.opens, entry.scored.logprob)
        content.append({**own, "top_logprobs": top})
    return {"content": content, "refusal": None}
