"""Flags of how tokens are chosen, beside run.c's own."""

from __future__ import annotations

import argparse
from functools import partial


def add_sampling(parser: argparse._ActionsContainer) -> None:
    add = parser.add_argument
    add("--top-k", type=int, default=0, metavar="K", help="keep the K most probable; 0: off")
    add("--min-p", type=float, default=0.0, metavar="P", help="keep p >= P * largest p; 0: off")
    penalty = partial(add, type=float, metavar="X")
    penalty(
        "--repetition-penalty",
        default=1.0,
        help="makes tokens of prompt and story less likely, as CTRL does; 1: off",
    )
    penalty(
        "--presence-penalty",
        default=0.0,
        help="taken from the logit of each token that the story has; 0: off",
    )
    penalty(
        "--frequency-penalty",
        default=0.0,
        help="the same, as many times as the story has it; 0: off",
    )
    add(
        "--logit-bias",
        action="append",
        type=_bias,
        metavar="ID=VALUE",
        help="add VALUE to a token's logit, -inf: never choose it; may be given several times",
    )
    held = parser.add_mutually_exclusive_group()
    held.add_argument(
        "--json-schema",
        metavar="SCHEMA",
        help="the story is JSON by this JSON Schema: a file, or its text; {} is any JSON",
    )
    held.add_argument("--regex", metavar="REGEX", help="the story matches this expression")
    held.add_argument(
        "--grammar", metavar="PATH", help="the story matches the grammar in this file: Lark or GBNF"
    )


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        needed = "a token id, =, and a number or -inf, such as 29991=-2.5"
        raise argparse.ArgumentTypeError(f"{text!r} is not {needed}") from None
