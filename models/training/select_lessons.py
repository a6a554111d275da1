"""Choose among the stories that a teacher wrote those worth learning from.

Dropped are damaged ones, those that share a run of 12 words with the
held-out passages, those that repeat themselves more than nearly all real stories do, and those of
which more than a third has been told before, by the teacher or in the real stories.

python models/training/select_lessons.py models/training/teacher.toml
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from multiprocessing import Pool
from pathlib import Path

import lessons
import numpy as np
from run import load_run
from stories import Words, clean, flaw, held_out_runs, ngrams, repetition
from tqdm import tqdm

TOLD_BEFORE = 1 / 3


def runs_of(story: str) -> list[bytes]:
    """Its runs of 8 words, each as a digest that takes less room."""
    return [blake2b(" ".join(run).encode(), digest_size=8).digest() for run in ngrams(story, 8)]


class Reader:
    """Judges stories one at a time: what a process can do by itself."""

    def __init__(self, real: list[str], forbidden: set[Words]):
        self.forbidden = forbidden
        self.repetitive = float(np.quantile([repetition(story) for story in real], 0.99))

    def read(self, story: str) -> tuple[str | None, list[bytes]]:
        """Its flaw, and of a story without one the runs."""
        found = flaw(story, self.forbidden)
        if found is None and story != clean(story):
            found = "untidy"
        if found is None and repetition(story) > self.repetitive:
            found = "repetitive"
        return found, [] if found else runs_of(story)


_reader: Reader


def _start(reader: Reader) -> None:
    global _reader
    _reader = reader


def _read(story: str) -> tuple[str | None, list[bytes]]:
    return _reader.read(story)


def flaws(stories: Iterable[str], real: list[str], forbidden: set[Words]) -> Iterator[str | None]:
    """Of each story, in order; a process a core reads them."""
    told = {run for story in real for run in runs_of(story)}
    with Pool(initializer=_start, initargs=(Reader(real, forbidden),)) as pool:
        for found, runs in pool.imap(_read, stories, chunksize=200):
            if (
                found is None
                and runs
                and sum(run in told for run in runs) > TOLD_BEFORE * len(runs)
            ):
                found = "told before"
            if found is None:
                told.update(runs)
            yield found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the teacher's run")
    run = load_run(parser.parse_args().run)
    pieces = run.pieces()
    written = lessons.load(sorted(run.out.glob("written-*")))
    texts = [pieces.decode(written.story(i)) for i in range(len(written.starts) - 1)]
    judged = flaws(texts, run.split_stories()[0], held_out_runs(run.held_out))
    found = list(tqdm(judged, total=len(texts), unit="story"))
    keep = [i for i, flaw in enumerate(found) if flaw is None]
    if keep:
        (run.out / "chosen").mkdir(exist_ok=True)
        lessons.save(run.out / "chosen" / "00000.npz", written.chosen(keep))
    n_bytes = sum(len(texts[i]) for i in keep)
    dropped = dict(Counter(flaw for flaw in found if flaw).most_common())
    print(f"kept {len(keep):,} stories, {n_bytes:,} bytes; dropped:", dropped)


if __name__ == "__main__":
    main()
