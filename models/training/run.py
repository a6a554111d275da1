"""A training run as one TOML file: what goes in, what comes out, every number and seed."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece as spm
from llama import LlamaConfig
from stories import read_stories

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass
class Stage:
    """A stretch of training: what is read, and in windows of which size."""

    steps: int
    batch_size: int  # windows a step
    window: int  # tokens
    from_starts: bool  # every window begins with a story, as generation does; else anywhere
    lessons: list[Path]  # folders of stories with a teacher's marks; none: the run's texts
    hard_weight: float  # of the story's own next token beside the teacher's marks


@dataclass
class Training:
    stages: list[Stage]
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    ema_decay: float  # the exported weights are this running average of the trained ones
    evaluate_every: int
    seed: int
    restarts: bool = False  # of the learning rate, with every stage (Loshchilov & Hutter 2017)
    compile: bool = False  # a minute at the start, and a third faster from then on

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


@dataclass
class Round:
    """Of practice: how a storyteller tells, and which of its stories are lessons."""

    lessons: int  # that every worker makes
    temperature: float
    top_p: float
    repetition_penalty: float
    surprise: float  # nats of it, to the teacher, are allowed to a story
    often: int  # times that a run of 8 tokens is told; a story of a tenth such is no lesson


@dataclass
class Run:
    out: Path
    start: Path | None  # folder of a run whose averaged weights this one begins with
    tokenizer: Path  # folder that holds tokenizer.model and tokenizer.bin
    texts: list[Path]
    separator: str
    held_out: Path | None
    model: LlamaConfig
    training: Training
    rounds: list[Round]  # of practice; see practice.py
    group_size: int  # of the exported int8 file

    def pieces(self) -> spm.SentencePieceProcessor:
        """The run's tokenizer."""
        return spm.SentencePieceProcessor(model_file=str(self.tokenizer / "tokenizer.model"))

    def split_stories(self) -> tuple[list[str], list[str]]:
        """The texts' stories to learn from, and up to 100 kept apart to watch the training by.

        Which ones those are does not depend on the run, so that no teacher shows them to a pupil.
        """
        stories = read_stories(self.texts, self.separator, self.held_out)
        random.Random(2026).shuffle(stories)
        n_validation = min(100, len(stories) // 20)
        return stories[n_validation:], stories[:n_validation]


def load_run(path: Path) -> Run:
    """Reads a run file; paths in it are relative to it."""
    with path.open("rb") as f:
        table: dict[str, Any] = tomllib.load(f)
    base, data, training = path.parent, table["data"], table["training"]
    held_out, start = data.get("held_out"), table.get("start")
    stages = [
        Stage(
            steps=stage["steps"],
            batch_size=stage["batch_size"],
            window=stage["window"],
            from_starts=stage.get("from_starts", False),
            lessons=[base / folder for folder in stage.get("lessons", [])],
            hard_weight=stage.get("hard_weight", 0.0),
        )
        for stage in training.pop("stages")
    ]
    return Run(
        out=base / table["out"],
        start=base / start if start else None,
        tokenizer=base / table.get("tokenizer", table["out"]),
        texts=[base / text for text in data["texts"]],
        separator=data.get("separator", "<|endoftext|>"),
        held_out=base / held_out if held_out else None,
        model=LlamaConfig(**table["model"]),
        training=Training(stages=stages, **training),
        rounds=[Round(**settings) for settings in table.get("rounds", [])],
        group_size=table["export"]["group_size"],
    )
