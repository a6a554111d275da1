"""Flags that several commands share: a model, its options, sampling, steps."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from pyllama2c import validate
from pyllama2c.cli.arguments import COMMANDS
from pyllama2c.cli.help_texts import advice
from pyllama2c.errors import UnknownModelError

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of Llama."""
    options = {name: getattr(arguments, name) for name in ("dtype", "context", "kv_dtype")}
    options |= {name: getattr(arguments, name) for name in ("threads", "isa", "device")}
    return options | {"speculative": False if arguments.no_speculative else "auto"}


def load(arguments: argparse.Namespace) -> Llama:
    from pyllama2c.model import Llama

    try:
        return Llama(arguments.model, arguments.tokenizer, **model_options(arguments))
    except UnknownModelError as error:
        model = arguments.model
        more = "; put the command first, before any flags" if model in COMMANDS else advice(model)
        raise UnknownModelError(f"{error}{more}") from None


def sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of Llama.generate."""
    return {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "presence_penalty": arguments.presence_penalty,
        "frequency_penalty": arguments.frequency_penalty,
        "logit_bias": dict(arguments.logit_bias) if arguments.logit_bias else None,
        # 0 is a new one, as in run.c, and -1 as elsewhere; in the library None is
        "seed": None if arguments.seed in (0, -1) else arguments.seed,
    }


def as_text(argument: str) -> str:
    """The shell's text, which need not be valid UTF-8."""
    return os.fsencode(argument).decode(errors="replace")


def stops(llama: Llama, arguments: argparse.Namespace) -> dict[str, Any]:
    """What ends a story besides the model's own ends, as keyword arguments of Llama.generate."""
    options: dict[str, Any] = {}
    if arguments.stop:
        options["stop"] = [as_text(text) for text in arguments.stop]
    if arguments.stop_token:
        last = llama.tokenizer.vocab_size - 1
        given = [validate.integer("--stop-token", n, 0, last) for n in arguments.stop_token]
        options["stop_tokens"] = sorted({*llama.tokenizer.ends, *given})
    return options


def room_for(arguments: argparse.Namespace, n_tokens: int, steps: int) -> int:
    """New tokens that may follow a prompt of `n_tokens`; below 0 where it does not fit."""
    room = steps - n_tokens + 1  # the last token is sampled, but not fed
    if arguments.max_tokens is None:
        return room
    most = validate.integer("--max-tokens", arguments.max_tokens, 0, sys.maxsize, "0 or more")
    return min(room, most)


def steps_of(arguments: argparse.Namespace, context: int) -> int:
    """-n by run.c's rule: 0 and too many mean the whole context, as does --max-tokens alone."""
    steps: int | None = arguments.steps
    if steps is None:
        steps = 0 if arguments.max_tokens is not None else arguments.default_steps
    if steps < 0:
        raise ValueError(f"--steps is {steps}; it must be 0 or more")
    return context if steps == 0 else min(steps, context)
