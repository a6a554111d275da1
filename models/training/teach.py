"""Let a trained teacher write stories and mark the real ones: lessons for a smaller model.

Both through this package's engine, from `model.gguf` in the run's folder (see export.py). After
every token the teacher's likeliest next tokens are kept, so that a pupil can learn from those.
What it writes begins with the first few tokens of a real story. Neither these nor the same of real
stories are marked: a teacher whose training windows began anywhere does not know how stories begin.
Run again to go on where it was killed. One process a core, each with one thread, writes most:

export PYLLAMA2C_THREADS=1
python models/training/teach.py models/training/teacher.toml --stories 10000 &
python models/training/teach.py models/training/teacher.toml --stories 10000 --worker 1
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import lessons
import numpy as np
from numpy.typing import NDArray
from run import Run, load_run
from tqdm import tqdm

from pyllama2c import Llama

SHARD = 500  # stories a file
MAX_TOKENS = 511  # the pupil's context, less BOS
OPENING = 4  # tokens, without BOS


def mark(tokens: list[int], logits: NDArray[np.float32]) -> lessons.Marked:
    """tokens: from BOS on; logits: after each of them, but for those before the opening's last."""
    ids, probabilities = lessons.likeliest(logits)
    unmarked = ((len(tokens) - len(logits), 0), (0, 0))
    return tokens, np.pad(ids, unmarked), np.pad(probabilities, unmarked)


class Listener:
    """Keeps what the teacher thinks before every token that it adds to one story."""

    def __init__(self) -> None:
        self.logits: list[NDArray[np.float32]] = []

    def __call__(self, tokens: list[int], logits: NDArray[np.float32]) -> None:
        self.logits.append(logits.copy())


def in_shards(stories: Iterator[lessons.Marked], folder: Path) -> None:
    """Saves stories as they come, SHARD a file, after those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    number, waiting = len(list(folder.glob("*.npz"))), []
    try:
        for story in stories:
            waiting.append(story)
            if len(waiting) == SHARD:
                lessons.save(folder / f"{number:05}.npz", lessons.from_marked(waiting))
                number, waiting = number + 1, []
    finally:  # after Ctrl-C, too
        if waiting:
            lessons.save(folder / f"{number:05}.npz", lessons.from_marked(waiting))


def mark_stories(teacher: Llama, run: Run, folder: Path) -> None:
    """The real stories, in order; of a long one the beginning."""
    pieces = run.pieces()
    texts = run.split_stories()[0]
    rest = texts[lessons.count(folder) :]
    room = min(MAX_TOKENS + 1, teacher.config.seq_len)

    def marked() -> Iterator[lessons.Marked]:
        for text in tqdm(rest, desc="marking", unit="story"):
            tokens = [lessons.BOS, *pieces.encode(text)][:room]
            yield mark(tokens, teacher.logits(tokens)[OPENING:])

    in_shards(marked(), folder)


def openings(run: Run, count: int, seed: int) -> list[list[int]]:
    """From BOS on, of real stories."""
    pieces = run.pieces()
    texts = random.Random(seed).choices(run.split_stories()[0], k=count)
    return [[lessons.BOS, *tokens[:OPENING]] for tokens in pieces.encode(texts)]


def write_stories(
    teacher: Llama, run: Run, worker: int, count: int, temperature: float, top_p: float
) -> None:
    """Stories in the order in which they end; those that do not are left out.

    Seeds go on behind those of the stories that are there, with room for what a kill left untold.
    """
    folder = run.out / f"written-{worker}"
    there = lessons.count(folder)
    seed = run.training.seed + 10**9 * worker + 1000 * there
    begun = openings(run, count - there, seed)
    listeners = [Listener() for _ in range(there, count)]
    told = teacher.generate_batch(
        begun,
        max_batch=128,
        max_tokens=MAX_TOKENS,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        logits_processor=listeners,
    )

    def marked() -> Iterator[lessons.Marked]:
        for story in tqdm(told, desc="writing", total=count, initial=there, unit="story"):
            if story.error is not None:
                raise story.error
            thoughts, listeners[story.number].logits = listeners[story.number].logits, []
            if story.finish_reason == "stop":
                yield mark([*begun[story.number], *story.tokens], np.stack(thoughts))

    in_shards(marked(), folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the teacher's run")
    parser.add_argument("--stories", type=int, default=20000, help="to write (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--worker", type=int, default=0, help="others than 0 only write")
    arguments = parser.parse_args()
    run, worker = load_run(arguments.run), arguments.worker
    with Llama(run.out / "model.gguf") as teacher:
        if worker == 0:
            mark_stories(teacher, run, run.out / "marked")
        write_stories(
            teacher, run, worker, arguments.stories, arguments.temperature, arguments.top_p
        )


if __name__ == "__main__":
    main()
