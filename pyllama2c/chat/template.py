"""Chat templates: the Jinja text in a model's file that turns a conversation into a prompt."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pyllama2c.chat.template_process import PROCESS, ProcessEndedError
from pyllama2c.errors import ChatTemplateError, ChatTemplateWarning, UnsupportedError, warn
from pyllama2c.tokenizers.base import NONE, BaseTokenizer

_MAX_TEMPLATE = 1 << 18
_MAX_TEXT = 1 << 24
"""characters"""
_SECONDS = 5
"""of CPU time"""
_TIMEOUT = 60
"""seconds of wall-clock time; long, because the machine may be busy"""
_MEGABYTES = 512

_MARKS = [chr(code) for code in range(0x2801, 0x2900)]
"""braille: has no case, is not white space, and is never escaped, not even inside lists"""


class ChatTemplate:
    """A template, and the tokenizer whose special tokens it writes.

    `source` is Jinja; `path` is the file that it came from, for error messages.
    """

    def __init__(self, source: str, tokenizer: BaseTokenizer, path: str):
        if len(source) > _MAX_TEMPLATE:
            raise ChatTemplateError(
                f"{path}: tokenizer.chat_template has {len(source)} characters; the limit "
                f"is {_MAX_TEMPLATE}"
            )
        self._source, self._tokenizer, self._path = source, tokenizer, path

    def parts(self, messages: Sequence[Mapping[str, Any]]) -> list[str | int]:
        """The prompt that asks for the next answer: text, and ids of control tokens.

        Only the template's own control tokens become ids. One that a message spells stays text, so
        nobody can end their turn and begin another's.

        ChatTemplateError for a template that is wrong, refuses the messages (raise_exception) or
        exceeds the limits on time, memory and length.
        """
        mark = _unused(messages, self._source)
        messages = [_with_reasoning(message) for message in messages]
        answer = self._answer(messages, mark)
        if "error" in answer and "limit" not in answer:
            answer = self._without_system(messages, mark) or answer
        if "error" in answer:
            raise self._error(answer["error"])
        parts = self._tokenizer.split(answer["text"])
        return [part.replace(mark, "") if isinstance(part, str) else part for part in parts]

    def _without_system(
        self, messages: list[Mapping[str, Any]], mark: str
    ) -> dict[str, Any] | None:
        """For a template that refuses only system messages, the answer with their text put before
        the user's; else None."""
        others = [message for message in messages if message.get("role") != "system"]
        if len(others) == len(messages) or "text" not in self._answer(others, mark):
            return None
        merged, n_dropped = _system_to_user(messages)
        what = "put before the next user message"
        if n_dropped:
            what = "left out, as no user message follows"
        warn(
            f"{self._path}: its chat template refuses system messages; the text was {what}",
            ChatTemplateWarning,
        )
        return self._answer(merged, mark)

    def _answer(self, messages: list[Mapping[str, Any]], mark: str) -> dict[str, Any]:
        """The worker's answer. Without marks, its text is what the template makes of the unmarked
        messages, whatever it looks for in them."""
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
            "a message spells a control token, which cannot be told apart from the template's own"
        )

    def _control_tokens(self, text: str) -> list[int]:
        return [part for part in self._tokenizer.split(text) if isinstance(part, int)]

    def _variables(self, messages: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The variables that transformers gives templates. Missing tokens are undefined."""
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
        present = {name: number for name, number in ids.items() if number != NONE}
        texts = {name: tokenizer.special_text(number) for name, number in present.items()}
        return {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **{name: text for name, text in texts.items() if text},
        }

    def _marked(self, value: Any, mark: str) -> Any:
        """The messages with a mark inside all that reads as a control token, and after all that
        could become one together with the template's text."""
        if isinstance(value, str):
            for text in self._tokenizer.special_tokens:
                while text in value:  # occurrences may overlap
                    value = value.replace(text, text[0] + mark + text[1:])
            text = value.rstrip()  # as many templates do
            return text + mark + value[len(text) :] if self._begins_one(text) else value
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
        """The worker's answer: a `text` or an `error`, the latter perhaps with a `limit`."""
        if not sys.executable:
            raise UnsupportedError("sys.executable is not set; chat templates run in a new Python")
        request = {
            "template": self._source,
            "names": self._variables(messages),
            "mark": mark,
            "seconds": _SECONDS,
            "characters": _MAX_TEXT,
        }
        try:
            answer = PROCESS.ask(request, _MEGABYTES, _TIMEOUT)
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
    """The message with its reasoning under each name that templates use, as in transformers."""
    found = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def _system_to_user(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], int]:
    """The messages with the text of each system message, and a newline, put before the next user
    message; and how many system messages have no such message."""
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
    """The text of a message's content: a string, or a list of parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _unused(messages: Sequence[Mapping[str, Any]], source: str) -> str:
    """A character found in neither the messages nor the template."""
    try:
        used = json.dumps(list(messages), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"messages must be dicts of text, numbers and lists: {error}") from None
    mark = next((mark for mark in _MARKS if mark not in used and mark not in source), None)
    if mark is None:
        raise ValueError("the messages contain every character from U+2801 to U+28FF")
    return mark
