"""Messages to prompts, off the event loop: templates run in the kept worker process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

from pyllama2c.chat.conversation import chat_tokens
from pyllama2c.errors import Llama2cError
from pyllama2c.serve.decoding import wrong
from pyllama2c.serve.schema import Message

if TYPE_CHECKING:
    from pyllama2c.serve.service import Service


async def chat_prompt(service: Service, messages: Sequence[Message]) -> list[int]:
    """Token ids; a last message of the assistant is a beginning to go on from."""
    try:
        return await asyncio.to_thread(_tokens, service, messages)
    except (Llama2cError, ValueError) as error:
        raise wrong("messages", str(error)) from None


def _tokens(service: Service, messages: Sequence[Message]) -> list[int]:
    begun = ""
    if len(messages) > 1 and messages[-1].role == "assistant":
        *messages, last = messages
        begun = _text(last, "\n\n")
        if messages[-1].role == "assistant":
            raise ValueError(
                "the last two messages are by 'assistant'; only one can be gone on from"
            )
    listed = [_plain(message) for message in messages]
    tokens = chat_tokens(service.llama, listed)  # type: ignore[arg-type]
    return tokens + service.tokenizer.encode_parts([begun], inside=True) if begun else tokens


def _plain(message: Message) -> dict[str, Any]:
    """As templates and Llama 2's format take it."""
    out: dict[str, Any] = {"role": message.role, "content": _text(message, "\n")}
    if message.role == "developer":  # OpenAI's new name of it
        out["role"] = "system"
    for name in ("name", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            out[name] = value
    return out


def _text(message: Message, between: str) -> str:
    """Its parts joined, as llama.cpp does: empty ones at the beginning do not count."""
    content = message.content or ""
    if isinstance(content, str):
        return content
    return between.join(dropwhile(lambda text: not text, (part.text for part in content)))


def prompt_text(service: Service, tokens: Sequence[int]) -> str:
    """A prompt as text, control tokens as templates spell them."""
    tokenizer = service.tokenizer
    parts: list[str] = []
    run: list[int] = []

    def flush() -> None:
        # Between control tokens, as `decode` takes away the space that encoding put there.
        parts.append(tokenizer.decode(run))
        run.clear()

    for token in tokens:
        if tokenizer.piece(token):
            run.append(token)
        else:
            flush()
            parts.append(service.names.name(token))
    flush()
    return "".join(parts)
