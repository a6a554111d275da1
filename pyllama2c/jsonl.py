"""Many stories into a JSON Lines file, which a later run completes instead of beginning again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pyllama2c.errors import StoryFileError
from pyllama2c.sampling import fresh_seed

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines; a last one that a kill cut short is taken off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.splitlines()


def _read_done(path: Path, prompt: str) -> dict[int, int]:
    """index -> seed of the stories that a file has."""
    done: dict[int, int] = {}
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            record = json.loads(line)
            index, seed, its_prompt = int(record["index"]), int(record["seed"]), record["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoryFileError(f"{path}, line {number}: not a story of pyllama2c") from error
        if its_prompt != prompt:
            raise StoryFileError(
                f"{path}, line {number}: the prompt was {its_prompt!r}, and now is {prompt!r}"
            )
        done[index] = seed
    return done


def _first_seed(path: Path, done: dict[int, int], wanted: int | None) -> int:
    """Story i has this seed + i. A file begun without a seed goes on with the one it drew."""
    seeds = {(seed - index) % 2**64 for index, seed in done.items()}
    if not seeds:
        return fresh_seed() if wanted is None else wanted
    if len(seeds) > 1 or (wanted is not None and wanted not in seeds):
        first = min(seeds)
        raise StoryFileError(
            f"{path} was begun with seed {first}; go on with that, or another file"
        )
    return seeds.pop()


def write_stories(
    llama: Llama, path: Path, count: int, prompt: str, max_batch: int, options: dict[str, Any]
) -> str:
    """Appends the stories that are missing of 0 to count - 1; returns a line that sums up."""
    from tqdm import tqdm

    options = dict(options)
    done = _read_done(path, prompt)
    first = _first_seed(path, done, options.pop("seed"))
    missing = [i for i in range(count) if i not in done]
    seeds = [(first + i) % 2**64 for i in missing]
    n_tokens, started = 0, perf_counter()
    if missing:
        text = os.fsencode(prompt)  # the shell's text need not be valid UTF-8
        stories = llama.generate_batch(
            [text] * len(missing), seed=seeds, max_batch=max_batch, **options
        )
        with path.open("a", encoding="utf-8") as file:
            for story in tqdm(stories, total=len(missing), unit="story"):
                if story.error is not None:
                    raise story.error
                n_tokens += len(story.tokens)
                record = {
                    "index": missing[story.number],
                    "seed": story.seed,
                    "prompt": prompt,
                    "text": story.text,
                    "tokens": len(story.tokens),
                    "finish_reason": story.finish_reason,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
    seconds = perf_counter() - started
    return (
        f"{len(missing)} stories, {count - len(missing)} were there\n"
        f"achieved tok/s: {n_tokens / seconds if missing else 0.0:f}"
    )
