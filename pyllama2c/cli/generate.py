"""A story on the terminal as run.c prints it, or many into a JSON Lines file."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from pyllama2c import validate
from pyllama2c.cli.flags import room_for, sampling, steps_of, stops
from pyllama2c.cli.prompt import prompt_bytes, prompt_tokens
from pyllama2c.cli.streams import PROMPT, say, show, write

if TYPE_CHECKING:
    from pyllama2c.generation.logprobs import TokenLogprob
    from pyllama2c.model import Llama

_MOST_STORIES = 10_000_000
"""in one file: the indices of those that are missing are a list in memory"""


def tell_story(llama: Llama, arguments: argparse.Namespace) -> int:
    prompt = prompt_tokens(llama, prompt_bytes(arguments), arguments.special)
    steps = steps_of(arguments, llama.config.seq_len)
    options = sampling(arguments) | stops(llama, arguments)
    if len(prompt) > steps:  # as run.c, which stops within the prompt
        write(llama.tokenizer.decode(prompt[: steps + 1]) + "\n")
        say(
            f"pyllama2c: warning: the prompt has {len(prompt)} tokens, which leave no room for a "
            f"story in {steps} positions"
        )
        return 0
    story = llama.generate(
        prompt,
        max_tokens=room_for(arguments, len(prompt), steps),
        logprobs=arguments.logprobs,
        **options,
    )
    write(llama.tokenizer.decode(story.prompt_tokens), PROMPT)
    for piece in story:
        write(piece)
    write("\n")
    for told in story.logprobs:
        say(_logprob_line(llama, told))
    if story.stats.decode_seconds > 0:
        say(f"achieved tok/s: {story.stats.tokens_per_second:f}")
    return 0


def _logprob_line(llama: Llama, told: TokenLogprob) -> str:
    """Of a token: its log-probability, id and text, then the likeliest."""

    def shown(token: int) -> str:
        return repr(llama.tokenizer.piece(token).decode(errors="replace"))

    likeliest = (f"  {logprob:.4f} {shown(token)}" for token, logprob in told.top)
    line = f"{told.logprob:9.4f}  {told.token:6}  {shown(told.token):12}{''.join(likeliest)}"
    return line.rstrip()


def print_json(llama: Llama, arguments: argparse.Namespace) -> int:
    """One object when the story has ended, in ASCII whatever the terminal's encoding is."""
    from pyllama2c.cli.story_records import logprob_fields, prompt_fields

    text = prompt_bytes(arguments)
    prompt = prompt_tokens(llama, text, arguments.special)
    steps = steps_of(arguments, llama.config.seq_len)
    story = llama.generate(
        prompt,
        max_tokens=max(0, room_for(arguments, len(prompt), steps)),
        logprobs=arguments.logprobs,
        **sampling(arguments),
        **stops(llama, arguments),
    )
    record = {
        "model": os.fsencode(llama.path).decode(errors="replace"),
        **prompt_fields(text),
        "text": story.read(),
        "tokens": story.tokens,
        **({} if arguments.logprobs is None else logprob_fields(story.logprobs)),
        "seed": story.seed,
        "finish_reason": story.finish_reason,
        "stats": asdict(story.stats),
    }
    show(json.dumps(record, indent=2, allow_nan=False))
    return 0


def tell_stories(llama: Llama, arguments: argparse.Namespace) -> int:
    from pyllama2c.cli.jsonl import write_stories

    if arguments.stories is None or arguments.jsonl is None:
        raise ValueError(
            "-N and --jsonl belong together" + (", also with --shard" if arguments.shard else "")
        )
    validate.integer("-N", arguments.stories, 1, _MOST_STORIES)
    if arguments.shard is not None and arguments.seed in (0, -1):
        raise ValueError(
            f"--shard needs --seed, the same one for all shards; {arguments.seed} draws a new one"
        )
    validate.integer("--batch", arguments.batch, 1, llama.max_batch)
    for name in ("json", "special"):
        if getattr(arguments, name):
            raise ValueError(f"--{name} is for one story, not for -N")
    prompt = prompt_bytes(arguments)
    used = len(llama.tokenizer.encode_prompt(prompt))
    steps = steps_of(arguments, llama.config.seq_len)
    options = sampling(arguments) | stops(llama, arguments) | {"logprobs": arguments.logprobs}
    options["max_tokens"] = max(0, room_for(arguments, used, steps))
    count, path = arguments.stories, arguments.jsonl
    say(write_stories(llama, path, count, prompt, arguments.batch, options, arguments.shard))
    return 0
