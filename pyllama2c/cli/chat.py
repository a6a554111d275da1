"""A conversation on the terminal, as run.c's -m chat."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pyllama2c.chat.conversation import Conversation
from pyllama2c.cli.flags import as_text, room_for, sampling, steps_of, stops
from pyllama2c.cli.streams import complain, say, write

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def _ask(label: str) -> str | None:
    """A line from standard input; None at its end. The label goes to standard error."""
    say(label, end="")
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def chat(llama: Llama, arguments: argparse.Namespace) -> int:
    """Turns until end of input or of the context. Only the assistant's words go to stdout.

    Ctrl-C ends an answer. A message that does not fit is left out; the exit status is 1 then.
    """
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    steps = steps_of(arguments, llama.config.seq_len)
    system: str | None = arguments.system_prompt
    if system is None:
        system = _ask("Enter system prompt (optional): ") or ""
    user: str | None = arguments.prompt
    options = sampling(arguments) | stops(llama, arguments)
    conversation = Conversation(llama, as_text(system))
    status = 0
    while True:
        if user is None:
            user = _ask("User: ")
        if user is None:
            say("")
            return status
        tokens, user = conversation.ask(as_text(user)), None
        if len(tokens) > steps:
            complain(_too_long(len(tokens), len(conversation.tokens), steps))
            status = 1
            continue
        room = room_for(arguments, len(tokens), steps)
        say("Assistant: ", end="")
        answer = llama.generate(tokens, max_tokens=room, **options)
        try:
            for piece in answer:
                write(piece)
        except KeyboardInterrupt:
            answer.close()
        write("\n")
        conversation.take(answer)
        if options["seed"] is not None:  # the next turn goes on with the random numbers after these
            options["seed"] = answer.rng_state
        if len(conversation.tokens) > steps:
            break
    say(f"the context of {steps} positions is full")
    return status


def _too_long(n_tokens: int, n_before: int, steps: int) -> str:
    before = f" with the {n_before} tokens before it" if n_before else ""
    return (
        f"pyllama2c: the message does not fit: it makes {n_tokens} tokens{before}; the context has "
        f"{steps} positions"
    )
