"""Flags that several commands share: a model, its options, sampling, steps."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of Llama."""
    options = {name: getattr(arguments, name) for name in ("dtype", "context", "kv_dtype")}
    options |= {name: getattr(arguments, name) for name in ("threads", "isa", "device")}
    return options | {"speculative": False if arguments.no_speculative else "auto"}


def load(arguments: argparse.Namespace) -> Llama:
    from pyllama2c.model import Llama

    return Llama(arguments.model, arguments.tokenizer, **model_options(arguments))


def sampling(arguments: argparse.Namespace) -> dict[str, float | int | None]:
    """Keyword arguments of Llama.generate."""
    return {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": arguments.seed or None,  # 0 is a new one, as in run.c; in the library None is
    }


def steps_of(arguments: argparse.Namespace, context: int) -> int:
    """-n by run.c's rule: 0 and too many mean the whole context."""
    steps: int = arguments.steps
    if steps < 0:
        raise ValueError(f"--steps is {steps}; it must be 0 or more")
    return context if steps == 0 else min(steps, context)
