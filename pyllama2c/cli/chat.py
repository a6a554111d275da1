"""A conversation on the terminal, as run.c's -m chat, and what people expect of one today."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pyllama2c.chat.conversation import Conversation
from pyllama2c.cli import chat_commands
from pyllama2c.cli.flags import as_text, room_for, sampling, steps_of, stops
from pyllama2c.cli.streams import LABEL, coloured, complain, say, write
from pyllama2c.cli.typed import TypedLines
from pyllama2c.errors import Llama2cError, in_words

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def chat(llama: Llama, arguments: argparse.Namespace) -> int:
    """Turns until the end of input. Only the assistant's words go to stdout.

    Ctrl-C ends an answer. A full context loses its oldest turns; with -n the chat ends there, as
    run.c's. A message that does not fit is left out; the exit status is 1 then.
    """
    steps = steps_of(arguments, llama.config.seq_len)
    rolls = not arguments.steps
    options = sampling(arguments) | stops(llama, arguments)
    lines = TypedLines()
    if lines.is_terminal:
        say("Type /help for the commands of a chat.")
    system: str | None = arguments.system_prompt
    if system is None:
        system = lines.ask("Enter system prompt (optional): ", remember=False) or ""
    talk = Conversation(llama, as_text(system))
    user: str | None = arguments.prompt
    status = 0
    while True:
        if user is None:
            user = lines.ask("User: ")
            if user is None:
                say("")
                return status
            if lines.is_terminal and user.startswith("/"):
                talk, user = _commanded(llama, talk, user), None
                continue
        message, user, answer = as_text(user), None, None
        try:
            asked, tokens = talk, talk.ask(message)
            # Less than a quarter is left for the answer. Half of it shall be, as what stays is
            # computed anew, which should not happen every turn.
            if rolls and len(tokens) > steps - steps // 4:
                asked, tokens = _rolled(llama, talk, message, steps // 2)
            if len(tokens) > steps:
                complain(_too_long(len(tokens), len(asked.tokens), steps))
                status = 1
                continue
            if asked.start > talk.start:
                n = asked.start - talk.start
                say(f"the context is full: the {n} oldest messages are dropped from it")
            room = room_for(arguments, len(tokens), steps)
            answer = llama.generate(tokens, max_tokens=room, **options)
            say(coloured("Assistant: ", LABEL, sys.stderr), end="")
            for piece in answer:
                write(piece)
        except KeyboardInterrupt:
            if answer is None:  # it has not begun
                say("")
                continue
            answer.close()
        write("\n")
        talk = asked
        talk.take(answer)
        if options["seed"] is not None:  # the next turn goes on with the random numbers after these
            options["seed"] = answer.rng_state
        if len(talk.tokens) > steps:
            say(f"the context of {steps} positions is full")
            if not rolls:
                return status


def _commanded(llama: Llama, talk: Conversation, line: str) -> Conversation:
    try:
        return chat_commands.run(llama, talk, line)
    except (Llama2cError, OSError, ValueError) as error:
        complain(f"pyllama2c: {in_words(error)}")
        return talk


def _rolled(
    llama: Llama, talk: Conversation, message: str, most: int
) -> tuple[Conversation, list[int]]:
    """The conversation without so many of its oldest turns that the prompt for `message` has `most`
    tokens, if they can be that few; and the prompt."""
    tokens = talk.ask(message)
    while talk.start < len(talk.turns) and len(tokens) > most:
        talk = Conversation(llama, talk.system, talk.turns, talk.start + 2)
        tokens = talk.ask(message)
    return talk, tokens


def _too_long(n_tokens: int, n_before: int, steps: int) -> str:
    before = f" with the {n_before} tokens before it" if n_before else ""
    return (
        f"pyllama2c: the message does not fit: it makes {n_tokens} tokens{before}; the context has "
        f"{steps} positions"
    )
