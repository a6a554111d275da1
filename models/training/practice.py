"""Let a storyteller practise: it tells stories, a teacher reads them, the careful ones are lessons.

A round tells with the storyteller as it is, through this package's engine, and keeps the stories in
which nothing surprises the teacher much; the next stage of the practice run learns from these, and
from real stories beside, so that those stay in mind (Dong et al. 2023, "RAFT: Reward rAnked
FineTuning"). What it has become tells the next round's. Most stories begin with the first tokens of
a real one: left to itself, a storyteller soon begins all of them alike. Run again to go on where it
was killed. One process a core reads most; a round, and the stage that learns from it:

export PYLLAMA2C_THREADS=1
cd models/training
python practice.py practice.toml better_teacher.toml --round 1 &
python practice.py practice.toml better_teacher.toml --round 1 --worker 1
wait
python train.py practice.toml --stop-after 450
python export.py practice.toml
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import lessons
import numpy as np
from run import Round, Run, load_run
from stories import flaw, held_out_runs, repetition
from teach import MAX_TOKENS, OPENING, in_shards
from tqdm import tqdm

from pyllama2c import Llama

AT_ONCE = 512  # stories
IDLE = 16  # times that none is careful, before it is given up
SHORTEST, LONGEST = 60, 200  # tokens
REPETITIVE = 0.015  # of a story's 4-grams; three of four real stories repeat no more
UNLIKELY = 3.0  # nats: 5%
BEGUN = (8, 20)  # tokens of real stories to begin with
ALONE = 0.2  # of all stories begin with nothing
RUN = 8  # tokens
TOLD_BEFORE = 0.1  # of a story's runs
# Turns in which a small storyteller mixes up who is who, and its teacher with it: "it was not a
# ball, it was a dog"; "the tree was not sad anymore", where a boy was. Readers found few right.
MIXED_UP = re.compile(r"(?:\bnot|n't) (?:just )?an? \w|\bany ?more\b")


def whole(tokens: list[int]) -> lessons.Marked:
    """A story, from BOS to the BOS behind it, as a lesson: every token is certain."""
    ids = np.zeros((len(tokens) - 1, lessons.K), np.uint16)
    probabilities = np.zeros(ids.shape, np.float16)
    ids[:, 0], probabilities[:, 0] = tokens[1:], 1
    return tokens[:-1], ids, probabilities


def surprise(logprobs: Sequence[float | None]) -> float:
    """Nats: what a story's tokens fall short of 5% to the teacher, summed."""
    return sum(max(0.0, -p - UNLIKELY) for p in logprobs if p is not None)


class Memory:
    """How often one worker told runs of tokens in one round, so that no phrase becomes a habit."""

    def __init__(self, often: int):
        self.often = often
        self.told: Counter[tuple[int, ...]] = Counter()

    def knows(self, story: list[int]) -> bool:
        runs = self._runs(story)
        return sum(self.told[run] >= self.often for run in runs) > TOLD_BEFORE * len(runs)

    def add(self, story: list[int]) -> None:
        self.told.update(self._runs(story))

    @staticmethod
    def _runs(story: list[int]) -> set[tuple[int, ...]]:
        """But for those of the beginning: most stories share one."""
        return {tuple(story[i : i + RUN]) for i in range(RUN, len(story) - RUN + 1)}


class Practice:
    def __init__(self, pupil: Llama, teacher: Llama, run: Run, telling: Round):
        self.pupil, self.teacher, self.telling = pupil, teacher, telling
        self.pieces, self.forbidden = run.pieces(), held_out_runs(run.held_out)
        real = self.pieces.encode(run.split_stories()[0])
        self.begun = [tokens[:n] for tokens in real for n in BEGUN]
        self.memory = Memory(telling.often)

    def worth_reading(self, story: list[int]) -> bool:
        if not SHORTEST <= len(story) <= LONGEST:
            return False
        text = self.pieces.decode(story)
        return (
            repetition(text) <= REPETITIVE
            and flaw(text, self.forbidden) is None
            and not MIXED_UP.search(text)
            and not self.memory.knows(story)
        )

    def begin(self, seed: int) -> list[list[int]]:
        """From BOS on: what AT_ONCE stories go on from."""
        draw = random.Random(seed)
        return [
            [lessons.BOS, *([] if draw.random() < ALONE else draw.choice(self.begun))]
            for _ in range(AT_ONCE)
        ]

    def tell(self, seed: int) -> Iterator[tuple[list[int], list[int]]]:
        """How each story that is worth reading began, and all of it."""
        begun = self.begin(seed)
        told = self.pupil.generate_batch(
            begun,
            max_batch=128,
            in_order=True,
            max_tokens=LONGEST,
            temperature=self.telling.temperature,
            top_p=self.telling.top_p,
            repetition_penalty=self.telling.repetition_penalty,
            seed=seed,
        )
        for opening, story in zip(begun, told, strict=True):
            if story.error is not None:
                raise story.error
            tokens = [*opening, *story.tokens]
            if story.finish_reason == "stop" and self.worth_reading(tokens):
                yield opening, tokens

    def lessons(self, seed: int) -> Iterator[lessons.Marked]:
        """Without end, but for a storyteller that tells none."""
        idle = 0
        while idle < IDLE:
            told = list(self.tell(seed))
            seed += AT_ONCE
            texts = [[*story, lessons.BOS] for _, story in told]
            # How stories open is not judged: the teacher may not know (see teach.py).
            starts = [max(len(opening), OPENING + 1) for opening, _ in told]
            scores = self.teacher.score_batch(texts, starts=starts)
            idle += 1
            for (_, story), score in zip(told, scores, strict=True):
                careful = surprise(score.logprobs) <= self.telling.surprise
                if careful and not self.memory.knows(story):  # of one told in this very batch
                    self.memory.add(story)
                    idle = 0
                    yield whole([*story, lessons.BOS])
        raise SystemExit(f"of {IDLE * AT_ONCE} stories, none was careful enough for a lesson")


def save_real_stories(run: Run, folder: Path) -> None:
    """Of a long one the beginning."""
    texts = run.pieces().encode(run.split_stories()[0][lessons.count(folder) :])
    stories = ([lessons.BOS, *tokens, lessons.BOS][: MAX_TOKENS + 2] for tokens in texts)
    in_shards(map(whole, stories), folder)


def told_before(folder: Path) -> list[list[int]]:
    """The stories that were saved in it, from BOS on."""
    if not lessons.count(folder):
        return []
    saved = lessons.load([folder])
    return [[lessons.BOS, *saved.story(i)] for i in range(len(saved.starts) - 1)]


def storyteller(run: Run, number: int) -> Path:
    """Who tells this round's stories: at first what the run starts from, then what it became."""
    return (run.start if number == 1 and run.start else run.out) / "model-q8.bin"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the practice run")
    parser.add_argument("teacher", type=Path, help="TOML file that describes the teacher's run")
    parser.add_argument("--round", type=int, default=1, help="from 1 on (%(default)s)")
    parser.add_argument("--worker", type=int, default=0, help="others than 0 only practise")
    arguments = parser.parse_args()
    run, number, worker = load_run(arguments.run), arguments.round, arguments.worker
    if not 1 <= number <= len(run.rounds):
        parser.error(f"{arguments.run} describes {len(run.rounds)} rounds: there is no {number}")
    if worker == 0:
        save_real_stories(run, run.out / "real")
    telling, folder = run.rounds[number - 1], run.out / f"round-{number}" / str(worker)
    before = told_before(folder)
    # Behind the seeds of the lessons that are there, with room for what a kill left unsaved.
    seed = run.training.seed + 10**8 * (100 * number + worker) + IDLE * AT_ONCE * len(before)
    with (
        Llama(storyteller(run, number), run.tokenizer / "tokenizer.bin") as pupil,
        Llama(load_run(arguments.teacher).out / "model.gguf") as teacher,
    ):
        practice = Practice(pupil, teacher, run, telling)
        for story in before:
            practice.memory.add(story)
        wanted = range(len(before), telling.lessons)
        bar = tqdm(wanted, desc="practising", unit="lesson")
        in_shards((lesson for _, lesson in zip(bar, practice.lessons(seed), strict=False)), folder)


if __name__ == "__main__":
    main()
