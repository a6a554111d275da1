"""A story on the terminal as run.c prints it, or many into a JSON Lines file."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from pyllama2c import validate
from pyllama2c.cli.flags import sampling, steps_of
from pyllama2c.cli.streams import say, write

if TYPE_CHECKING:
    from pyllama2c.model import Llama

_MOST_STORIES = 10_000_000
"""in one file: the indices of those that are missing are a list in memory"""


def tell_story(llama: Llama, arguments: argparse.Namespace) -> int:
    # As bytes: the shell's text need not be valid UTF-8.
    prompt = llama.tokenizer.encode_prompt(os.fsencode(arguments.prompt or ""))
    steps = steps_of(arguments, llama.config.seq_len)
    options = sampling(arguments)
    if len(prompt) > steps:  # as run.c, which stops within the prompt
        write(llama.tokenizer.decode(prompt[: steps + 1]) + "\n")
        say(
            f"pyllama2c: warning: the prompt has {len(prompt)} tokens, which leave no room for a "
            f"story in {steps} positions"
        )
        return 0
    story = llama.generate(
        prompt,
        max_tokens=steps - len(prompt) + 1,
        **options,  # type: ignore[arg-type]
    )
    write(llama.tokenizer.decode(story.prompt_tokens))
    for piece in story:
        write(piece)
    write("\n")
    if story.stats.decode_seconds > 0:
        say(f"achieved tok/s: {story.stats.tokens_per_second:f}")
    return 0


def tell_stories(llama: Llama, arguments: argparse.Namespace) -> int:
    from pyllama2c.cli.jsonl import write_stories

    if arguments.stories is None or arguments.jsonl is None:
        raise ValueError("-N and --jsonl belong together")
    validate.integer("-N", arguments.stories, 1, _MOST_STORIES)
    validate.integer("--batch", arguments.batch, 1, llama._engine.max_batch)
    prompt = arguments.prompt or ""
    used = len(llama.tokenizer.encode_prompt(os.fsencode(prompt)))
    steps = steps_of(arguments, llama.config.seq_len)
    options = sampling(arguments) | {"max_tokens": max(0, steps - used + 1)}
    count, path = arguments.stories, arguments.jsonl
    say(write_stories(llama, path, count, prompt, arguments.batch, options))
    return 0
