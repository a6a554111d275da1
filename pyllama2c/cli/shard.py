"""`--shard i/n`: one of n parts of a run, each of which another machine may tell."""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple


class Shard(NamedTuple):
    """Every n-th story, from story i on."""

    i: int
    n: int

    def __str__(self) -> str:
        return f"{self.i}/{self.n}"

    def stories(self, count: int) -> range:
        """Indices of those among stories 0 to count - 1 that belong to it."""
        return range(self.i, count, self.n)


def parse_shard(text: str) -> Shard:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is not None:
        shard = Shard(int(match[1]), int(match[2]))
        if shard.i < shard.n:
            return shard
    needed = "i/n with 0 <= i < n: those of seven are 0/7 to 6/7"
    raise argparse.ArgumentTypeError(f"{text!r} is not a shard, {needed}")
