"""A training run as one TOML file: what goes in, what comes out, every number and seed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama import LlamaConfig
from stories import read_stories

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass
class Training:
    steps: int
    batch_size: int  # windows of seq_len tokens a step
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    ema_decay: float  # the exported weights are this running average of the trained ones
    evaluate_every: int
    seed: int


@dataclass
class Run:
    out: Path
    texts: list[Path]
    separator: str
    held_out: Path | None
    model: LlamaConfig
    training: Training
    group_size: int  # of the exported int8 file

    def stories(self) -> list[str]:
        return read_stories(self.texts, self.separator, self.held_out)


def load_run(path: Path) -> Run:
    """Reads a run file; paths in it are relative to it."""
    with path.open("rb") as f:
        table: dict[str, Any] = tomllib.load(f)
    base, data = path.parent, table["data"]
    held_out = data.get("held_out")
    return Run(
        out=base / table["out"],
        texts=[base / text for text in data["texts"]],
        separator=data.get("separator", "<|endoftext|>"),
        held_out=base / held_out if held_out else None,
        model=LlamaConfig(**table["model"]),
        training=Training(**table["training"]),
        group_size=table["export"]["group_size"],
    )
