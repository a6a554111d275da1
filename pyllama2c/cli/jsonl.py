"""Many stories as JSON Lines: into a file, which a later run completes, or into a pipe.

A file is read before it is written. It is continued if every line is one of ours, made with the
same settings; a last line that a kill cut short is removed and made again. Any other file is
refused, and left as it is.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c.cli.shard import Shard
from pyllama2c.cli.story_records import (
    Held,
    logprob_fields,
    prompt_fields,
    read_stories,
    settings_of,
)
from pyllama2c.errors import StoryFileError
from pyllama2c.files.lock import lock
from pyllama2c.generation.request import make_request
from pyllama2c.generation.sampling import fresh_seed
from pyllama2c.progress import watched

if TYPE_CHECKING:
    from pyllama2c.generation.batch_story import Completion
    from pyllama2c.model import Llama

STANDARD_OUTPUT = Path("-")


class _Target(NamedTuple):
    """Where lines go."""

    fd: int
    name: str
    is_file: bool
    """a regular file, which is read first; all others are streams"""

    def write(self, line: bytes) -> None:
        """Writes a whole line; a file is left as it was where that fails."""
        start = os.fstat(self.fd).st_size if self.is_file else 0
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        except OSError as error:
            if self.is_file:
                os.ftruncate(self.fd, start)
            raise OSError(error.errno, error.strerror, self.name) from None


@contextmanager
def _opened(path: Path) -> Iterator[_Target]:
    if path == STANDARD_OUTPUT:
        if sys.stdout is None:
            raise StoryFileError("--jsonl -: standard output is closed")
        sys.stdout.flush()
        yield _Target(sys.stdout.fileno(), "standard output", False)
        return
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        is_file = True  # it will be one
    how = os.O_RDWR | os.O_CREAT | os.O_APPEND if is_file else os.O_WRONLY
    fd = os.open(path, how | getattr(os, "O_BINARY", 0), 0o666)
    try:
        if is_file:
            _lock(fd, path)
        yield _Target(fd, str(path), is_file)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    """Two runs at once would make the same stories, and cut each other's last lines."""
    try:
        lock(fd)
    except BlockingIOError:
        raise StoryFileError(f"{path} is being written by another pyllama2c") from None


def _held(target: _Target, expected: dict[str, Any], shard: Shard | None) -> Held:
    if not target.is_file:
        return Held(set(), None, 0, True)
    with open(target.fd, "rb", closefd=False) as file:
        return read_stories(file, target.name, expected, shard)


def _first_seed(target: _Target, held: Held, wanted: int | None) -> int:
    """Of story 0; story i has this + i. A file begun without a seed keeps the one drawn then."""
    if held.first_seed is None:
        return fresh_seed() if wanted is None else wanted
    if wanted not in (None, held.first_seed):
        raise StoryFileError(
            f"{target.name} was begun with seed {held.first_seed}; use that seed, or another file"
        )
    return held.first_seed


def _mend(target: _Target, held: Held) -> None:
    """Makes the file end with a whole line."""
    if target.is_file and os.fstat(target.fd).st_size > held.end:
        os.ftruncate(target.fd, held.end)
    if not held.ended:
        target.write(b"\n")


def _line(story: Completion, index: int, fields: dict[str, Any]) -> bytes:
    logprobs = {} if story.logprobs is None else logprob_fields(story.logprobs)
    record = {
        "index": index,
        "seed": story.seed,
        **fields,
        "text": story.text,
        "tokens": len(story.tokens),
        **logprobs,
        "finish_reason": story.finish_reason,
    }
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def write_stories(
    llama: Llama,
    path: Path,
    count: int,
    prompt: bytes,
    max_batch: int,
    options: dict[str, Any],
    shard: Shard | None = None,
) -> str:
    """Writes those of the stories 0 to count - 1 that `path` does not have yet; returns a summary.

    Of a `shard`, only its own, in their order. "-" is standard output. Only a regular file is read
    first: elsewhere all are written.
    StoryFileError for a file that holds something else, or stories made with other settings.
    """
    options = dict(options)
    seed = options.pop("seed")
    make_request([0], 1, llama.config.vocab_size, **options)  # what is wrong leaves no file behind
    fields = {**prompt_fields(prompt), "settings": settings_of(llama, prompt, options)}
    with _opened(path) as target:
        held = _held(target, fields, shard)
        first = _first_seed(target, held, seed)
        wanted = range(count) if shard is None else shard.stories(count)
        missing = [i for i in wanted if i not in held.done]
        started = perf_counter()
        stories = llama.generate_batch(
            [prompt] * len(missing),
            seed=[(first + i) % 2**64 for i in missing],
            max_batch=max_batch,
            in_order=shard is not None,
            **options,
        )
        _mend(target, held)
        n_tokens = 0
        with _bar(len(missing), target) as bar:
            for story in stories:
                if story.error is not None:
                    raise story.error
                n_tokens += len(story.tokens)
                target.write(_line(story, missing[story.prompt_index], fields))
                bar.update()
        seconds = perf_counter() - started
    return (
        f"{len(missing)} stories, {len(wanted) - len(missing)} already there\n"
        f"achieved tok/s: {n_tokens / seconds if missing else 0.0:f}"
    )


def _bar(total: int, target: _Target) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="story", disable=not watched() or os.isatty(target.fd))
