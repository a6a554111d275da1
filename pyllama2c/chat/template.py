"""Chat templates: the Jinja text in a model's file that makes a prompt of a conversation."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pyllama2c.chat.template_process import PROCESS, ProcessEndedError
from pyllama2c.errors import ChatTemplateError, ChatTemplateWarning, UnsupportedError
from pyllama2c.tokenizers.base import NONE, BaseTokenizer

_MAX_TEMPLATE = 1 << 18
_MAX_TEXT = 1 << 24
"""characters"""
_SECONDS = 5
"""of the processor"""
_PATIENCE = 60
"""seconds by the clock, for machines that are busy with something else"""
_MEGABYTES = 512

_MARKS = [chr(code) for code in range(0x2801, 0x2900)]
"""braille: has no case, is no space and is printed as it is, in lists as well"""


class ChatTemplate:
    """A template, and the tokenizer whose special tokens it writes.

    `source` is Jinja; `path` is the file that it is from, for messages.
    """

    def __init__(self, source: str, tokenizer: BaseTokenizer, path: str):
        if len(source) > _MAX_TEMPLATE:
            raise ChatTemplateError(
                f"{path}: tokenizer.chat_template has {len(source)} characters; at most "
                f"{_MAX_TEMPLATE} are read"
            )
        self._source, self._tokenizer, self._path = source, tokenizer, path

    def parts(self, messages: Sequence[Mapping[str, Any]]) -> list[str | int]:
        """The prompt that asks for the next answer: text, and ids of control tokens.

        Control tokens are those of the template alone. Where a message spells one, it stays text:
        nobody can end their turn and begin another's.

        ChatTemplateError for a template that is wrong, refuses the messages (raise_exception) or
        needs more time, memory or room than a prompt can be worth.
        """
        mark = _unused(messages, self._source)
        messages = [_with_reasoning(message) for message in messages]
        answer = self._say(messages, mark)
        if "error" in answer and "limit" not in answer:
            answer = self._without_system(messages, mark) or answer
        if "error" in answer:
            raise self._error(answer["error"])
        parts = self._tokenizer.split(answer["text"])
        return [part.replace(mark, "") if isinstance(part, str) else part for part in parts]

    def _without_system(
        self, messages: list[Mapping[str, Any]], mark: str
    ) -> dict[str, Any] | None:
        """What a template that refuses system messages, and nothing else, says if their text goes
        before the user's; else None."""
        others = [message for message in messages if message.get("role") != "system"]
        if len(others) == len(messages) or "text" not in self._say(others, mark):
            return None
        merged, n_dropped = _system_to_user(messages)
        what = "put before the next user message"
        if n_dropped:
            what = "left out, as no user message follows"
        warnings.warn(
            f"{self._path}: its chat template refuses system messages; the text was {what}",
            ChatTemplateWarning,
            stacklevel=5,
        )
        return self._say(merged, mark)

    def _say(self, messages: list[Mapping[str, Any]], mark: str) -> dict[str, Any]:
        """The worker's answer. Its text, without marks, is what the template makes of the messages
        as they are, whatever it looks for in them."""
        marked = self._marked(messages, mark)
        plain = self._render(messages, mark)
        if marked == messages or "text" not in plain:
            return plain
        answer = self._render(marked, mark)
        if answer.get("text", "").replace(mark, "") == plain["text"]:
            return answer
        found = [self._control_tokens(each.get("text", "")) for each in (answer, plain)]
        if "text" in answer and found[0] == found[1]:
            return plain  # in which no message's control token is left
        raise self._error(
            "a message spells a control token, and what the template makes of that cannot be told "
            "from its own"
        )

    def _control_tokens(self, text: str) -> list[int]:
        return [part for part in self._tokenizer.split(text) if isinstance(part, int)]

    def _names(self, messages: list[Mapping[str, Any]]) -> dict[str, Any]:
        """What transformers gives to templates. A token that is not there is not defined."""
        tokenizer = self._tokenizer
        ids = {
            "bos_token": tokenizer.bos_id,
            "eos_token": tokenizer.eos_id,
            "unk_token": tokenizer.unk_id,
            "pad_token": tokenizer.pad_id,
            "sep_token": tokenizer.sep_id,
            "cls_token": tokenizer.cls_id,
            "mask_token": tokenizer.mask_id,
        }
        there = {name: number for name, number in ids.items() if number != NONE}
        texts = {name: tokenizer.special_text(number) for name, number in there.items()}
        return {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **{name: text for name, text in texts.items() if text},
        }

    def _marked(self, value: Any, mark: str) -> Any:
        """Messages in which a mark stands inside whatever would read as a control token, and behind
        what could become one together with the text that a template puts there."""
        if isinstance(value, str):
            for text in self._tokenizer.special_tokens:
                while text in value:  # again where occurrences overlap
                    value = value.replace(text, text[0] + mark + text[1:])
            said = value.rstrip()  # as many templates say it
            return said + mark + value[len(said) :] if self._begins_one(said) else value
        if isinstance(value, Mapping):
            return {self._marked(key, mark): self._marked(v, mark) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(each, mark) for each in value]
        return value

    def _begins_one(self, value: str) -> bool:
        """Whether a text ends with the beginning of a control token."""
        tokens = [text for text in self._tokenizer.special_tokens if not text[0].isalnum()]
        starts, longest = {text[0] for text in tokens}, max(map(len, tokens), default=0)
        tail = value[-longest:]
        return any(
            character in starts and any(text.startswith(tail[i:]) for text in tokens)
            for i, character in enumerate(tail)
        )

    def _render(self, messages: list[Mapping[str, Any]], mark: str) -> dict[str, Any]:
        """The worker's answer: a `text` or an `error`, maybe with a `limit`."""
        if not sys.executable:
            raise UnsupportedError("chat templates need a Python interpreter to run them apart")
        request = {
            "template": self._source,
            "names": self._names(messages),
            "mark": mark,
            "seconds": _SECONDS,
            "characters": _MAX_TEXT,
        }
        try:
            answer = PROCESS.ask(request, _MEGABYTES, _PATIENCE)
        except ProcessEndedError as error:
            raise self._error(str(error)) from None
        if "missing" in answer:
            raise UnsupportedError(
                f"{self._path}: its chat template needs the package jinja2: pip install "
                f"'pyllama2c[gguf]' ({answer['missing']})"
            )
        return answer

    def _error(self, reason: str) -> ChatTemplateError:
        return ChatTemplateError(f"{self._path}: tokenizer.chat_template: {reason}")


_REASONING = ("reasoning_content", "thinking", "reasoning")


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an assistant thought under each name that templates know it by, as transformers does."""
    found = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def _system_to_user(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], int]:
    """Messages in which each system message's text and a newline stand before the user message
    that follows; and how many system messages none follows."""
    merged: list[Mapping[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        content = message.get("content")
        if message.get("role") == "system":
            waiting.append(_text(content) + "\n")
        elif message.get("role") == "user" and waiting:
            text, waiting = "".join(waiting), []
            if isinstance(content, list):
                whole: Any = [{"type": "text", "text": text}, *content]
            else:
                whole = text + _text(content)
            merged.append({**message, "content": whole})
        else:
            merged.append(message)
    return merged, len(waiting)


def _text(content: Any) -> str:
    """What a message says: a text, or the texts among its parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _unused(messages: Sequence[Mapping[str, Any]], source: str) -> str:
    """A character that neither a message nor the template has."""
    try:
        used = json.dumps(list(messages), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"messages must be dicts of text, numbers and lists: {error}") from None
    mark = next((mark for mark in _MARKS if mark not in used and mark not in source), None)
    if mark is None:
        raise ValueError("the messages hold every one of the characters U+2801 to U+28FF")
    return mark
