"""Llama 2's chat format: a dialog as text and as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from pyllama2c.tokenizers.base import BaseTokenizer

Role = Literal["system", "user", "assistant"]

SPECIAL_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
"""the format's own tags: in a message, they could fake its end"""


class Message(TypedDict):
    """One message of a conversation."""

    role: Role
    content: str


Dialog = list[Message]
"""an optional system message, then user and assistant in turn; the last is a user message"""


def with_system(user: str, system: str) -> str:
    """A first user message that carries the system message."""
    return f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}"


def render(user: str, system: str = "") -> str:
    """One user turn as text; `system` goes into the first one."""
    return f"[INST] {with_system(user, system) if system else user} [/INST]"


def has_special_tags(dialog: Sequence[Message]) -> bool:
    return any(tag in message["content"] for tag in SPECIAL_TAGS for message in dialog)


def check_messages(messages: Sequence[Message]) -> None:
    """ValueError for what is not a conversation in any format."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is {messages!r:.80}; it must be a list of dicts")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {i} is not a dict with a role and a content")
    if not messages:
        raise ValueError("there are no messages; the last must be by 'user'")


def check_dialog(dialog: Sequence[Message]) -> None:
    """ValueError for what is not a dialog, naming the wrong message."""
    check_messages(dialog)
    for i, message in enumerate(dialog):
        if "content" not in message:
            raise ValueError(f"message {i} is not a dict with a role and a content")
        if not isinstance(message["content"], str):
            raise ValueError(f"message {i}: its content is not text")
    roles = [message["role"] for message in dialog]
    has_system = roles[:1] == ["system"]
    for i, role in enumerate(roles[has_system:]):
        if role != (expected := ("user", "assistant")[i % 2]):
            raise ValueError(
                f"message {i + has_system} is by {role!r}, not {expected!r}: a dialog is an "
                "optional 'system' message, then 'user' and 'assistant' in turn"
            )
    if roles[-1] != "user":
        raise ValueError(f"the last message must be by 'user'; it is by {roles[-1]!r}")


def dialog_tokens(tokenizer: BaseTokenizer, dialog: Sequence[Message]) -> list[int]:
    """The prompt that asks for the next answer to a checked dialog: each earlier turn stands
    between BOS and EOS, the last one after BOS."""
    texts = [message["content"] for message in dialog]
    if dialog[0]["role"] == "system":
        texts[:2] = [with_system(texts[1], texts[0])]
    tokens: list[int] = []
    for user, answer in zip(texts[:-1:2], texts[1::2], strict=True):
        turn = f"{render(user.strip())} {answer.strip()} "
        tokens += tokenizer.encode(turn, bos=True, eos=True)
    return tokens + tokenizer.encode(render(texts[-1].strip()), bos=True)
