"""The training recipe on a few kilobytes: run files, commands, and the modules that they are."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from environment import run_python

TRAINING = Path(__file__).resolve().parents[2] / "models" / "training"
_NEEDED = ("torch", "sentencepiece", "matplotlib", "gguf")
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
needs_packages = pytest.mark.skipif(
    bool(_missing), reason=f"needs {', '.join(_missing)}: pip install '.[train]'"
)

_NAMES, _THINGS = ["Tom", "Lily", "Ben", "Sue", "Max"], ["ball", "kite", "boat", "hat", "drum"]
SHAPE = "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 4"
TEACHER = "dim = 64\nhidden_dim = 96\nn_heads = 4\nn_kv_heads = 2\nrope_theta = 1e5"
RUN = """
out = "out"
[data]
texts = ["stories.txt"]
[model]
{shape}
n_layers = 2
vocab_size = 320
seq_len = 128
dropout = 0.1
[training]
stages = [{stages}]
learning_rate = 1e-2
warmup_steps = 2
weight_decay = 0.1
gradient_clip = 1.0
ema_decay = 0.5
evaluate_every = 4
seed = 7
[export]
group_size = 32
"""
STAGES = (
    "{ steps = 8, batch_size = 4, window = 32 }",
    "{ steps = 4, batch_size = 2, window = 64 }",
)


def stories() -> list[str]:
    return [
        f"One day {a} had a {t}. {b} saw the {t} and said, please let me play with it, {a}. "
        f"So {a} and {b} played with the {t} all day long, and they were very happy."
        for a in _NAMES
        for b in _NAMES
        for t in _THINGS
        if a != b
    ]


def script(name: str, run: Path, *arguments: str) -> str:
    """Runs a command of the recipe; returns what it printed."""
    done = run_python(str(TRAINING / name), str(run), *arguments, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_run(
    folder: Path, shape: str = SHAPE, stages: tuple[str, ...] = STAGES, more: str = ""
) -> Path:
    folder.mkdir()
    (folder / "stories.txt").write_text("<|endoftext|>".join(stories()))
    run = folder / "run.toml"
    run.write_text(more + RUN.format(shape=shape, stages=", ".join(stages)))
    return run


def losses(run: Path) -> list[float]:
    lines = (run.parent / "out" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def module(name: str) -> ModuleType:
    """One of models/training's; they import each other by bare names, as scripts do."""
    sys.path.insert(0, str(TRAINING))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TRAINING))


def torch_logits(run: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Of the averaged weights, by the module that trained them."""
    import torch

    model = module("export").load_averaged(module("run").load_run(run))
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0].numpy()  # type: ignore[no-any-return]
