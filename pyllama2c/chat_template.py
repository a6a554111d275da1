"""Chat templates: the Jinja text in a model's file that makes a prompt of a conversation."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyllama2c.errors import ChatTemplateError, UnsupportedError
from pyllama2c.tokenizer import BaseTokenizer

_MAX_TEMPLATE = 1 << 18
_MAX_TEXT = 1 << 24
"""characters"""
_SECONDS = 5
"""of the processor"""
_PATIENCE = 60
"""seconds by the clock, for machines that are busy with something else"""
_MEGABYTES = 512

_MARKS = range(0xFDD0, 0xFDF0)
"""noncharacters, which Unicode sets aside for use within a program"""


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
        mark = _unused(messages)
        names = {
            "messages": self._marked(list(messages), mark),
            "add_generation_prompt": True,
            "bos_token": self._tokenizer.special_text(self._tokenizer.bos_id),
            "eos_token": self._tokenizer.special_text(self._tokenizer.eos_id),
        }
        parts = self._tokenizer.split(self._render(names))
        return [part.replace(mark, "") if isinstance(part, str) else part for part in parts]

    def _marked(self, value: Any, mark: str) -> Any:
        """Messages in which a mark stands inside whatever would read as a control token."""
        if isinstance(value, str):
            for text in self._tokenizer.special_tokens:
                while text in value:  # again where occurrences overlap
                    value = value.replace(text, text[0] + mark + text[1:])
            return value
        if isinstance(value, Mapping):
            return {key: self._marked(each, mark) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(each, mark) for each in value]
        return value

    def _render(self, names: dict[str, Any]) -> str:
        if not sys.executable:
            raise UnsupportedError("chat templates need a Python interpreter to run them apart")
        request = {
            "path": [path for path in sys.path if path],
            "template": self._source,
            "names": names,
            "seconds": _SECONDS,
            "megabytes": _MEGABYTES,
            "characters": _MAX_TEXT,
        }
        worker = Path(__file__).with_name("template_worker.py")
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(worker)],
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise self._error(f"it takes more than {_PATIENCE} seconds") from None
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise self._error(f"it takes more than {_SECONDS} seconds of the processor")
        if done.returncode != 0:  # such as memory that ran out while it was being freed
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise self._error(f"its process ended with {done.returncode} {' '.join(reason):.200}")
        answer = json.loads(done.stdout)
        if "missing" in answer:
            raise UnsupportedError(
                f"{self._path}: its chat template needs the package jinja2: pip install "
                f"'pyllama2c[gguf]' ({answer['missing']})"
            )
        if "error" in answer:
            raise self._error(answer["error"])
        text: str = answer["text"]
        return text

    def _error(self, reason: str) -> ChatTemplateError:
        return ChatTemplateError(f"{self._path}: tokenizer.chat_template: {reason}")


def _unused(messages: Sequence[Mapping[str, Any]]) -> str:
    """A character that no message has."""
    try:
        used = json.dumps(list(messages), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"messages must be dicts of text, numbers and lists: {error}") from None
    mark = next((chr(code) for code in _MARKS if chr(code) not in used), None)
    if mark is None:
        raise ValueError("the messages hold every one of the noncharacters U+FDD0 to U+FDEF")
    return mark
