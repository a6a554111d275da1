"""Chat templates rendered, and the process that does it."""

from __future__ import annotations

from typing import Any

from gguf_tokenizers import TOKENIZERS

from pyllama2c.chat.template import ChatTemplate
from pyllama2c.chat.template_process import PROCESS

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def parts(source: str, messages: Any = HELLO, kind: str = "gpt2") -> list[str | int]:
    return ChatTemplate(source, TOKENIZERS[kind], "x.gguf").parts(messages)


SAY = "{{ messages[0].content }}"


def said(text: str) -> list[str | int]:
    return parts(SAY, [{"role": "user", "content": text}])


def worker() -> int:
    assert PROCESS._process is not None
    return PROCESS._process.pid
