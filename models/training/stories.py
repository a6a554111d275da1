"""Stories as text: reading, cleaning, keeping the held-out ones out, and counting n-grams."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "..."})

Words = tuple[str, ...]


def clean(story: str) -> str:
    """Plain quotes, no trailing blanks, one empty line between paragraphs, no text broken off."""
    story = story.translate(_QUOTES)
    paragraphs = [" ".join(line.split()) for line in story.splitlines()]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def ngrams(text: str, n: int) -> list[Words]:
    """Runs of n words, in lower case, punctuation left out."""
    words = re.findall(r"[a-z']+", text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(stories: list[str], n: int) -> float:
    """distinct-n (Li et al. 2016): different n-grams over all n-grams, of all stories together."""
    counts = Counter(ngram for story in stories for ngram in ngrams(story, n))
    return len(counts) / counts.total()


def repetition(story: str, n: int = 4) -> float:
    """How much of one story repeats itself: 1 - different n-grams / all n-grams."""
    found = ngrams(story, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def held_out_runs(held_out: Path | None) -> set[Words]:
    """Runs of 12 words of the passages (a JSON file with a list `passages`) kept for evaluation."""
    if held_out is None:
        return set()
    passages = json.loads(held_out.read_text(encoding="utf-8"))["passages"]
    return {run for passage in passages for run in ngrams(passage, 12)}


def flaw(story: str, forbidden: set[Words]) -> str | None:
    """What speaks against learning from a cleaned story.

    Letters that are not ASCII are ones broken by a wrong decoding; a run of words from `forbidden`
    would let evaluation text be trained on.
    """
    if len(story) <= 100:
        return "short"
    if not story.endswith((".", "!", "?", '"')):
        return "cut off"
    if not story.isascii():
        return "not ASCII"
    if not forbidden.isdisjoint(ngrams(story, 12)):
        return "held out"
    return None


def read_stories(
    paths: list[Path], separator: str = "<|endoftext|>", held_out: Path | None = None
) -> list[str]:
    """The distinct stories of `paths` without a flaw, cleaned, in file order."""
    forbidden = held_out_runs(held_out)
    kept: dict[str, None] = {}
    for path in paths:
        for raw in path.read_text(encoding="utf-8").split(separator):
            story = clean(raw)
            if flaw(story, forbidden) is None:
                kept[story] = None
    return list(kept)
