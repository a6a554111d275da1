"""Stories from text files: reading, cleaning, and keeping the held-out ones out."""

from __future__ import annotations

import json
import re
from pathlib import Path

_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "..."})


def clean(story: str) -> str:
    """Plain quotes, no trailing blanks, one empty line between paragraphs, no text broken off."""
    story = story.translate(_QUOTES)
    paragraphs = [" ".join(line.split()) for line in story.splitlines()]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _shingles(text: str, n: int = 12) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def read_stories(
    paths: list[Path], separator: str = "<|endoftext|>", held_out: Path | None = None
) -> list[str]:
    """The distinct stories of `paths`, cleaned, in file order.

    A story that shares a run of 12 words with any passage of `held_out` (a JSON file with a
    `passages` list) is dropped, so that evaluation text is never trained on. Stories with
    letters broken by a wrong decoding (non-ASCII after cleaning) are dropped as well.
    """
    forbidden: set[tuple[str, ...]] = set()
    if held_out is not None:
        for passage in json.loads(held_out.read_text(encoding="utf-8"))["passages"]:
            forbidden |= _shingles(passage)
    kept: dict[str, None] = {}
    for path in paths:
        for raw in path.read_text(encoding="utf-8").split(separator):
            story = clean(raw)
            whole = story.endswith((".", "!", "?", '"'))
            if len(story) > 100 and whole and story.isascii() and not forbidden & _shingles(story):
                kept[story] = None
    return list(kept)
