"""Let a trained teacher write stories and mark the real ones: lessons for a smaller model.

Through this package's engine, from `model.gguf` in the run's folder (see export.py), or on a GPU
through PyTorch, from the run's checkpoint. After every token the teacher's likeliest next tokens
are kept, so that a pupil can learn from those. What it writes begins with the first few tokens of
a real story. Neither these nor the same of real stories are marked: a teacher whose training
windows began anywhere does not know how stories begin. Run again to go on where it was killed.
On a GPU one process is enough. Without (or with --device cpu), one a core, each with one thread,
writes most:

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
import torch
from export import load_averaged
from numpy.typing import NDArray
from run import Run, load_run
from sampling import in_bfloat16, shares, tell
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


class EngineTeacher:
    """Marks and writes through this package's engine; a story that does not end comes as None."""

    def __init__(self, run: Run):
        self.llama = Llama(run.out / "model.gguf")

    def mark(self, stories: list[list[int]]) -> Iterator[lessons.Marked]:
        return (mark(tokens, self.llama.logits(tokens)[OPENING:]) for tokens in stories)

    def write(
        self, begun: list[list[int]], temperature: float, top_p: float, seed: int
    ) -> Iterator[lessons.Marked | None]:
        listeners = [Listener() for _ in begun]
        told = self.llama.generate_batch(
            begun,
            max_batch=128,
            max_tokens=MAX_TOKENS,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            logits_processor=listeners,
        )
        for story in told:
            if story.error is not None:
                raise story.error
            thoughts, listeners[story.prompt_index].logits = (
                listeners[story.prompt_index].logits,
                [],
            )
            ended = story.finish_reason == "stop"
            whole = [*begun[story.prompt_index], *story.tokens]
            yield mark(whole, np.stack(thoughts)) if ended else None


class TorchTeacher:
    """The same through PyTorch, from the run's checkpoint."""

    AT_ONCE = 8192  # stories under way: of a model of 107 million parameters, 36 GiB

    def __init__(self, run: Run, device: str):
        self.model = in_bfloat16(load_averaged(run)).to(device)
        self.device = device

    def mark(self, stories: list[list[int]]) -> Iterator[lessons.Marked]:
        for i in range(0, len(stories), 64):
            some = [torch.tensor(tokens) for tokens in stories[i : i + 64]]
            padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
            with torch.no_grad():
                logits = self.model(padded.to(self.device)).float()
            best, ids = logits.topk(lessons.K)
            likeliest = (
                ids.short().cpu().numpy().astype(np.uint16),
                shares(best, logits).cpu().numpy(),
            )
            for tokens, of_ids, of_shares in zip(stories[i : i + 64], *likeliest, strict=True):
                of_ids[:OPENING], of_shares[:OPENING] = 0, 0
                yield tokens, of_ids[: len(tokens)], of_shares[: len(tokens)]

    def write(
        self, begun: list[list[int]], temperature: float, top_p: float, seed: int
    ) -> Iterator[lessons.Marked | None]:
        room = min(MAX_TOKENS + 1, self.model.config.seq_len)
        for i in range(0, len(begun), self.AT_ONCE):
            some = torch.tensor(begun[i : i + self.AT_ONCE], device=self.device)
            told = tell(self.model, some, room, temperature, top_p, seed + i)
            parts = (told.tokens, told.lengths, told.ended, told.ids, told.probabilities)
            stories = zip(*(part.cpu().numpy() for part in parts), strict=True)
            for tokens, length, ended, ids, probabilities in stories:
                n = length - 1  # without the BOS at the end
                whole = tokens[:n].tolist(), ids[:n].astype(np.uint16), probabilities[:n]
                yield whole if ended else None


Teacher = EngineTeacher | TorchTeacher


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


def mark_stories(teacher: Teacher, run: Run, folder: Path) -> None:
    """The real stories, in order; of a long one the beginning."""
    texts = run.split_stories()[0][lessons.count(folder) :]
    room = min(MAX_TOKENS + 1, run.model.seq_len)
    stories = [[lessons.BOS, *tokens][:room] for tokens in run.pieces().encode(texts)]
    in_shards(tqdm(teacher.mark(stories), desc="marking", total=len(texts), unit="story"), folder)


def openings(run: Run, count: int, seed: int) -> list[list[int]]:
    """From BOS on, of real stories."""
    pieces = run.pieces()
    texts = random.Random(seed).choices(run.split_stories()[0], k=count)
    return [[lessons.BOS, *tokens[:OPENING]] for tokens in pieces.encode(texts)]


def write_stories(
    teacher: Teacher, run: Run, worker: int, count: int, temperature: float, top_p: float
) -> None:
    """Those that do not end are left out.

    Seeds go on behind those of the stories that are there, with room for what a kill left untold.
    """
    folder = run.out / f"written-{worker}"
    there = lessons.count(folder)
    seed = run.training.seed + 10**9 * worker + 1000 * there
    told = teacher.write(openings(run, count - there, seed), temperature, top_p, seed)
    bar = tqdm(told, desc="writing", total=count, initial=there, unit="story")
    in_shards((story for story in bar if story is not None), folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the teacher's run")
    parser.add_argument("--stories", type=int, default=20000, help="to write (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--worker", type=int, default=0, help="others than 0 only write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    run, worker, device = load_run(arguments.run), arguments.worker, arguments.device
    teacher: Teacher = EngineTeacher(run) if device == "cpu" else TorchTeacher(run, device)
    if worker == 0:
        mark_stories(teacher, run, run.out / "marked")
    write_stories(teacher, run, worker, arguments.stories, arguments.temperature, arguments.top_p)


if __name__ == "__main__":
    main()
