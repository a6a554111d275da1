"""What the flags that several commands share stand for: a model, how to sample, how far."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def load(arguments: argparse.Namespace) -> Llama:
    from pyllama2c.model import Llama

    return Llama(
        arguments.model,
        arguments.tokenizer,
        dtype=arguments.dtype,
        context=arguments.context,
        kv_dtype=arguments.kv_dtype,
        speculative=False if arguments.no_speculative else "auto",
        threads=arguments.threads,
        isa=arguments.isa,
    )


def sampling(arguments: argparse.Namespace) -> dict[str, float | int | None]:
    """The keyword arguments of Llama.generate that the flags stand for."""
    return {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": arguments.seed or None,  # as run.c: 0 asks for a new one; -1 does in the library
    }


def steps_of(arguments: argparse.Namespace, seq_len: int) -> int:
    """-n by run.c's rule: 0 and too many mean the whole context."""
    steps: int = arguments.steps
    if steps < 0:
        raise ValueError(f"--steps is {steps}; it must be 0 or more")
    return seq_len if steps == 0 else min(steps, seq_len)
