"""Let a storyteller practise: it tells stories, its teacher marks where it slips, it tells on anew.

Both through this package's engine, from `model-q8.bin` and `model.gguf` in the folders of their
runs (see export.py). A slip is a token that the teacher finds all but impossible, or unlikely where
the storyteller is far surer of it. At the first that is all but impossible, the story is cut back
to the last whole sentence and told on from there, with another seed. These lessons mark slips as to
be avoided (unlikelihood training, Welleck et al. 2020, "Neural Text Generation with Unlikelihood
Training") and the other tokens as certain; a story that ends with none all but impossible is a
lesson of its own, whole (Dong et al. 2023, "RAFT: Reward rAnked FineTuning"). Stories that repeat
themselves or do not end are told on unread. The real stories go beside them, so that these stay in
mind. A run that starts from the storyteller's learns from all this (practice.toml). Run again to go
on where it was killed. One process a core reads most:

export PYLLAMA2C_THREADS=1
python models/training/practice.py models/training/storyteller.toml models/training/teacher.toml &
python models/training/practice.py models/training/storyteller.toml models/training/teacher.toml \\
    --worker 1
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lessons
import numpy as np
import sentencepiece as spm
from numpy.typing import NDArray
from run import Run, load_run
from stories import repetition
from teach import MAX_TOKENS, OPENING, in_shards
from tqdm import tqdm

from pyllama2c import Llama, Score

AT_ONCE = 256  # stories under way
TRIES = 16  # of telling one on, before it is begun anew
IMPOSSIBLE = math.log(0.003)  # to the teacher
UNLIKELY, SURER = math.log(0.03), math.log(8)  # to the teacher; the storyteller, than the teacher
REPETITIVE = 0.025  # nearly nine of ten real stories are less so
SLIP_WEIGHT = 2.0  # of avoiding a slip, beside 1 of telling another token again
SENTENCE_ENDS = (".", "!", "?", '"')


def slips(teacher: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which tokens are slips: by their log-probabilities to the teacher and the storyteller."""
    return (teacher < IMPOSSIBLE) | ((teacher < UNLIKELY) & (teacher < own - SURER))


def mark(tokens: list[int], avoid: NDArray[np.bool_], start: int) -> lessons.Marked:
    """A story, from BOS to the BOS behind it, as a lesson: `avoid` tells which tokens are slips.

    Tokens before number `start` are context: no lesson is in them.
    """
    ids = np.zeros((len(tokens) - 1, lessons.K), np.uint16)
    probabilities = np.zeros(ids.shape, np.float16)
    ids[:, 0] = tokens[1:]
    probabilities[:, 0] = np.where(avoid[1:], -SLIP_WEIGHT, 1)
    probabilities[: start - 1] = 0
    return tokens[:-1], ids, probabilities


def whole(tokens: list[int]) -> lessons.Marked:
    """A story, from BOS to the BOS behind it, as a lesson without slips."""
    return mark(tokens, np.zeros(len(tokens), bool), 1)


class Begun(NamedTuple):
    """What is kept of a story: from BOS on, its first sentences."""

    tokens: list[int]
    tries: int

    def tried(self, tokens: list[int]) -> Begun:
        """To be told on after `tokens`, or begun anew."""
        return Begun(tokens, self.tries + 1) if self.tries + 1 < TRIES else NEW


NEW = Begun([lessons.BOS], 0)


class Practice:
    def __init__(self, pupil: Llama, teacher: Llama, pieces: spm.SentencePieceProcessor):
        self.pupil, self.teacher, self.pieces = pupil, teacher, pieces
        self.sentence_ends = {
            i
            for i in range(pieces.vocab_size())
            if not pieces.is_byte(i) and pieces.id_to_piece(i).endswith(SENTENCE_ENDS)
        }

    def cut(self, tokens: list[int], slip: int) -> list[int]:
        """What stands before the sentence of token number `slip`; of the first one BOS alone."""
        before = range(slip - 1, OPENING, -1)
        return tokens[: next((i for i in before if tokens[i] in self.sentence_ends), 0) + 1]

    def tell_on(self, begun: list[Begun], seed: int) -> Iterator[tuple[Begun, list[int], bool]]:
        """Each with the tokens of the whole story, and whether it is worth reading."""
        told = self.pupil.generate_batch(
            [story.tokens for story in begun],
            max_batch=128,
            in_order=True,
            max_tokens=MAX_TOKENS,
            temperature=0.8,
            top_p=0.9,
            seed=seed,
        )
        for story, end in zip(begun, told, strict=True):
            tokens = [*story.tokens, *end.tokens]
            ended = end.finish_reason == "stop" and OPENING < len(tokens) <= MAX_TOKENS
            yield story, tokens, ended and repetition(self.pieces.decode(tokens)) <= REPETITIVE

    def lessons(self, seed: int) -> Iterator[lessons.Marked]:
        """Without end."""
        begun, idle = [NEW] * AT_ONCE, 0
        while True:
            told = list(self.tell_on(begun, seed))
            seed += AT_ONCE
            begun = [story.tried(story.tokens) for story, _, worth in told if not worth]
            read = [(story, [*tokens, lessons.BOS]) for story, tokens, worth in told if worth]
            idle = 0 if read else idle + 1
            if idle == TRIES:
                raise SystemExit(
                    f"of {TRIES * AT_ONCE} stories, none ends without repeating itself"
                )
            # How stories open is not judged: the teacher may not know (see teach.py).
            starts = [max(len(story.tokens), OPENING + 1) for story, _ in read]
            texts = [tokens for _, tokens in read]
            by_teacher = self.teacher.score_batch(texts, starts=starts)
            by_pupil = self.pupil.score_batch(texts, starts=starts)
            scored = zip(read, starts, map(_array, by_teacher), map(_array, by_pupil), strict=True)
            for (story, tokens), start, teacher, own in scored:
                yield mark(tokens, slips(teacher, own), start)
                impossible = np.flatnonzero(teacher < IMPOSSIBLE)
                if len(impossible):
                    begun.append(story.tried(self.cut(tokens, int(impossible[0]))))
                else:
                    yield whole(tokens)
                    begun.append(NEW)


def _array(score: Score) -> NDArray[np.float32]:
    """Its log-probabilities; 0 for what is not scored."""
    return np.array([0 if p is None else p for p in score.logprobs], np.float32)


def save_real_stories(run: Run, folder: Path) -> None:
    """Of a long one the beginning."""
    if not folder.exists():
        texts = run.pieces().encode(run.split_stories()[0])
        stories = ([lessons.BOS, *tokens[:MAX_TOKENS], lessons.BOS] for tokens in texts)
        in_shards(map(whole, stories), folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the storyteller's run")
    parser.add_argument("teacher", type=Path, help="TOML file that describes the teacher's run")
    parser.add_argument("--lessons", type=int, default=8500, help="to be made (%(default)s)")
    parser.add_argument("--worker", type=int, default=0, help="others than 0 only practise")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    if arguments.worker == 0:
        save_real_stories(run, run.out / "real")
    folder = run.out / f"practised-{arguments.worker}"
    there = lessons.count(folder)
    # Behind the seeds of the lessons that are there, with room for what a kill left unsaved.
    seed = run.training.seed + 10**9 * arguments.worker + 1000 * there
    with (
        Llama(run.out / "model-q8.bin", run.tokenizer / "tokenizer.bin") as pupil,
        Llama(load_run(arguments.teacher).out / "model.gguf") as teacher,
    ):
        made = Practice(pupil, teacher, run.pieces()).lessons(seed)
        wanted = range(there, arguments.lessons)
        numbered = zip(tqdm(wanted, desc="practising", unit="lesson"), made, strict=False)
        in_shards((lesson for _, lesson in numbered), folder)


if __name__ == "__main__":
    main()
