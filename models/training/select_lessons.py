"""Choose among the stories that a teacher wrote those worth learning from.

Dropped are damaged ones, those that share a run of 12 words with the
held-out passages, those that repeat themselves more than nearly all real stories do, and those of
which more than a third has been told before, by the teacher or in the real stories.

python models/training/select_lessons.py models/training/teacher.toml
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lessons
import numpy as np
from run import load_run
from stories import Words, clean, flaw, held_out_runs, ngrams, repetition
from tqdm import tqdm

TOLD_BEFORE = 1 / 3


def make_filter(real: list[str], forbidden: set[Words]) -> Callable[[str], str | None]:
    """A function that names the flaw of a story, and remembers the good ones."""
    told = {run for story in real for run in ngrams(story, 8)}
    repetitive = float(np.quantile([repetition(story) for story in real], 0.99))

    def judge(story: str) -> str | None:
        found = flaw(story, forbidden)
        if found is not None:
            return found
        if story != clean(story):
            return "untidy"
        if repetition(story) > repetitive:
            return "repetitive"
        runs = ngrams(story, 8)
        if runs and sum(run in told for run in runs) / len(runs) > TOLD_BEFORE:
            return "told before"
        told.update(runs)
        return None

    return judge


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the teacher's run")
    run = load_run(parser.parse_args().run)
    pieces = run.pieces()
    judge = make_filter(run.split_stories()[0], held_out_runs(run.held_out))
    written = lessons.load(sorted(run.out.glob("written-*")))
    keep, flaws, n_bytes = [], Counter[str](), 0
    for i in tqdm(range(len(written.starts) - 1), unit="story"):
        text = pieces.decode(written.story(i))
        found = judge(text)
        if found is None:
            keep.append(i)
            n_bytes += len(text)
        else:
            flaws[found] += 1
    if keep:
        (run.out / "chosen").mkdir(exist_ok=True)
        lessons.save(run.out / "chosen" / "00000.npz", written.chosen(keep))
    print(f"kept {len(keep):,} stories, {n_bytes:,} bytes; dropped:", dict(flaws.most_common()))


if __name__ == "__main__":
    main()
