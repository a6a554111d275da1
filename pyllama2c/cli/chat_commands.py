"""What can be typed in a chat instead of a message: /clear, /system, /save, /load, /help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyllama2c.chat.conversation import Conversation
from pyllama2c.chat.llama2 import Message, check_dialog
from pyllama2c.cli.streams import harmless, say
from pyllama2c.cli.typed import history_path
from pyllama2c.files.recognize import JSON, expect
from pyllama2c.files.whole import whole_file

if TYPE_CHECKING:
    from pyllama2c.model import Llama

_MOST = 1 << 26
"""bytes of a saved conversation"""


def _clear(llama: Llama, talk: Conversation, _: str) -> Conversation:
    say("Conversation cleared; the system prompt stays.")
    return Conversation(llama, talk.system)


def _system(llama: Llama, talk: Conversation, text: str) -> Conversation:
    if not text:
        system = harmless(talk.system)
        say(f"The system prompt is: {system}" if system else "There is no system prompt.")
        return talk
    return Conversation(llama, "" if text == '""' else text, talk.turns)


def _save(_: Llama, talk: Conversation, name: str) -> Conversation:
    path = _path("/save", name)
    if path.is_file() and path.stat().st_size:
        try:
            _read(path)
        except ValueError as error:
            raise ValueError(f"{error}; it is left as it is") from None
    with whole_file(path) as file:
        file.write(json.dumps(talk.messages, ensure_ascii=False, indent=2).encode() + b"\n")
    say(f"{path}: {len(talk.messages)} messages")
    return talk


def _load(llama: Llama, _: Conversation, name: str) -> Conversation:
    path = _path("/load", name)
    messages = _read(path)
    has_system = bool(messages) and messages[0]["role"] == "system"
    say(f"{path}: {len(messages)} messages")
    return Conversation(
        llama, messages[0]["content"] if has_system else "", messages[int(has_system) :]
    )


def _help(_: Llama, talk: Conversation, __: str) -> Conversation:
    width = max(len(usage) for usage, *_ in COMMANDS.values())
    for usage, what, _run in COMMANDS.values():
        say(f"{usage:{width}}  {what}")
    say(
        "Any other line is a message; to begin one with a slash, put a space before it.\nCtrl-C "
        "stops an answer; at the prompt it ends the chat, like Ctrl-D.\nThe arrow keys recall "
        f"earlier lines, which are kept in {history_path()}."
    )
    return talk


class _Command(NamedTuple):
    usage: str
    what: str
    run: Callable[[Llama, Conversation, str], Conversation]


COMMANDS = {
    "/clear": _Command("/clear", "forget the conversation, keep the system prompt", _clear),
    "/system": _Command(
        "/system [TEXT]", 'show or change the system prompt; "" removes it', _system
    ),
    "/save": _Command("/save FILE", "write the conversation as JSON, a list of messages", _save),
    "/load": _Command("/load FILE", "continue a saved conversation", _load),
    "/help": _Command("/help", "show this", _help),
}


def run(llama: Llama, talk: Conversation, line: str) -> Conversation:
    """Does what a line that begins with a slash says; returns the conversation to go on with.
    ValueError or OSError for what cannot be done."""
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ValueError(f"unknown command {name}; known: {known}; Ctrl-D ends the chat")
    return COMMANDS[name].run(llama, talk, rest.strip())


def _path(command: str, name: str) -> Path:
    if not name:
        raise ValueError(f"{command} needs a file name")
    return Path(name).expanduser()


def _read(path: Path) -> list[Message]:
    """A conversation that ends with an answer, if it has any messages."""
    expect(path, JSON, ValueError)
    with path.open("rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise ValueError(f"{path}: more than {_MOST:,} bytes; too long for a conversation")
    try:
        messages = json.loads(data)
        check_dialog([*messages, {"role": "user", "content": ""}])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a saved conversation: {error}") from None
    return [{"role": m["role"], "content": _unicode(m["content"])} for m in messages]


def _unicode(text: str) -> str:
    """Without the lone surrogates that JSON can spell, and no model has read."""
    return text.encode(errors="replace").decode()
