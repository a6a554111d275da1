"""A conversation on the terminal, as run.c's -m chat."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pyllama2c.cli import sampling, steps_of
from pyllama2c.conversation import Conversation
from pyllama2c.streams import say, write

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def _ask(label: str) -> str | None:
    """A line from standard input; None at its end. The label is not part of the answer's text."""
    say(label, end="")
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def chat(llama: Llama, arguments: argparse.Namespace) -> int:
    """Turns until end of input or of the context. Only the assistant's words go to stdout."""
    steps = steps_of(arguments, llama.config.seq_len)
    system: str | None = arguments.system_prompt
    if system is None:
        system = _ask("Enter system prompt (optional): ") or ""
    user: str | None = arguments.prompt
    options = sampling(arguments)
    conversation = Conversation(llama, system)
    while True:
        if user is None:
            user = _ask("User: ")
        if user is None:
            say("")
            return 0
        tokens = conversation.ask(user)
        room = steps - len(tokens) + 1
        if room < 1:
            break
        say("Assistant: ", end="")
        answer = llama.generate(tokens, max_tokens=room, **options)  # type: ignore[arg-type]
        for piece in answer:
            write(piece)
        write("\n")
        conversation.take(answer)
        if options["seed"] is not None:  # another turn, other coins; still the same conversation
            options["seed"] = answer.rng_state
        if answer.finish_reason == "length":
            break
        user = None
    say(f"the context of {steps} positions is full")
    return 0
