"""Prompts for conversations, by the chat template in the model's file or in Llama 2's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyllama2c.chat.llama2 import Message, check_dialog, check_messages, dialog_tokens, render
from pyllama2c.chat.template import ChatTemplate

if TYPE_CHECKING:
    from pyllama2c.generation.story import Generation
    from pyllama2c.model import Llama


def chat_tokens(llama: Llama, messages: Sequence[Message]) -> list[int]:
    """The prompt that asks for the next answer to `messages`."""
    check_messages(messages)
    if llama.chat_template is None:
        check_dialog(messages)
        return dialog_tokens(llama.tokenizer, messages)
    return _with_bos(llama, _template(llama).parts(messages))


def _template(llama: Llama) -> ChatTemplate:
    assert llama.chat_template is not None
    return ChatTemplate(llama.chat_template, llama.tokenizer, llama.path)


def _with_bos(llama: Llama, parts: Sequence[str | int]) -> list[int]:
    """Templates write BOS or leave it to the tokenizer; either way there is one."""
    tokenizer = llama.tokenizer
    tokens = tokenizer.encode_parts(parts)
    if tokenizer.add_bos and tokens[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *tokens]
    return tokens


class Conversation:
    """A conversation that grows turn by turn. Earlier tokens never change, the model's included, so
    their cache stays valid and only new tokens are computed."""

    def __init__(
        self, llama: Llama, system: str = "", turns: Sequence[Message] = (), start: int = 0
    ):
        """`turns`: messages by user and assistant in turn, as they were said elsewhere; those
        before `start`, an even number, are not in the prompts."""
        self._llama, self.system, self.start = llama, system, start
        self.turns: list[Message] = list(turns)
        self._parts: list[str | int] = []  # what the template has produced so far
        self.tokens: list[int] = []
        self._asked = self.turns, self._parts, self.tokens

    @property
    def messages(self) -> list[Message]:
        """All of them, the system prompt first."""
        return [*self._first(), *self.turns]

    def _first(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, user: str) -> list[int]:
        """The prompt that asks for the answer to `user`. Nothing changes until `take`: another
        message may be asked instead."""
        asked: Message = {"role": "user", "content": user}
        parts, prompt = self._prompt(asked)
        self._asked = [*self.turns, asked], parts, prompt
        return list(prompt)

    def _prompt(self, asked: Message) -> tuple[list[str | int], list[int]]:
        tokenizer = self._llama.tokenizer
        messages = [*self._first(), *self.turns[self.start :], asked]
        if self._llama.chat_template is None:
            if len(self.turns) > self.start and not self.tokens:
                return [], dialog_tokens(tokenizer, messages)
            text = render(asked["content"], "" if self.tokens else self.system)
            return [], self.tokens + tokenizer.encode(text, bos=True)
        parts = _template(self._llama).parts(messages)
        new = _added(parts, self._parts)
        if new is None:  # the template rendered earlier messages differently, or none before
            return parts, _with_bos(self._llama, parts)
        return parts, self.tokens + tokenizer.encode_parts(new, inside=True)

    def take(self, answer: Generation) -> None:
        """Adds the last message asked and its answer to the conversation."""
        turns, parts, prompt = self._asked
        text = answer.read()
        self.turns = [*turns, {"role": "assistant", "content": text}]
        self.tokens = [*prompt, *answer.tokens]
        if self._llama.chat_template is None:
            self.tokens.append(self._llama.tokenizer.eos_id)
        else:
            self._parts = [*parts, text] if text else parts


def _added(parts: list[str | int], before: list[str | int]) -> list[str | int] | None:
    """What `parts` adds to `before`, with adjacent texts joined; None if it begins otherwise."""
    whole, start = _joined(parts), _joined(before)
    if not start:
        return None
    n = len(start)
    if whole[: n - 1] != start[: n - 1] or len(whole) < n:
        return None
    last, same = start[-1], whole[n - 1]
    if isinstance(last, str) and isinstance(same, str) and same.startswith(last):
        rest = same[len(last) :]
        return [rest, *whole[n:]] if rest else whole[n:]
    return whole[n:] if last == same else None


def _joined(parts: list[str | int]) -> list[str | int]:
    joined: list[str | int] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(last, str) and isinstance(part, str):
            joined[-1] = last + part
        else:
            joined.append(part)
    return joined
