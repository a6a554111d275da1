"""The training recipe, end to end on a few kilobytes: tokenizer, training, a kill, export."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_python

from pyllama2c import Llama

TRAINING = Path(__file__).resolve().parents[1] / "models" / "training"
NEEDED = ("torch", "sentencepiece", "matplotlib")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"needs {', '.join(missing)}: pip install '.[train]'"
)

NAMES, THINGS = ["Tom", "Lily", "Ben", "Sue", "Max"], ["ball", "kite", "boat", "hat", "drum"]
SHAPES = {
    "tied": "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 4\ntied = true",
    "untied": "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 4\ntied = false",
    "grouped": "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 2\ntied = true",
    "grouped, untied": "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 1\ntied = false",
}
RUN = """
out = "out"
[data]
texts = ["stories.txt"]
[model]
{shape}
n_layers = 2
vocab_size = 320
seq_len = 48
dropout = 0.1
[training]
steps = 12
batch_size = 4
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


def stories() -> str:
    told = [
        f"One day {a} had a {t}. {b} saw the {t} and said, please let me play with it, {a}. "
        f"So {a} and {b} played with the {t} all day long, and they were very happy."
        for a in NAMES
        for b in NAMES
        for t in THINGS
        if a != b
    ]
    return "<|endoftext|>".join(told)


def script(name: str, run: Path, *arguments: str) -> None:
    done = run_python(str(TRAINING / name), str(run), *arguments, timeout=300)
    assert done.returncode == 0, done.stderr


def prepare(folder: Path, shape: str) -> Path:
    folder.mkdir()
    (folder / "stories.txt").write_text(stories())
    run = folder / "run.toml"
    run.write_text(RUN.format(shape=SHAPES[shape]))
    script("train_tokenizer.py", run)
    return run


def losses(run: Path) -> list[float]:
    lines = (run.parent / "out" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def torch_logits(run: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Of the averaged weights, by the module that trained them."""
    import torch

    sys.path.insert(0, str(TRAINING))
    try:
        from llama import Llama as Model
        from run import load_run
    finally:
        sys.path.remove(str(TRAINING))
    described = load_run(run)
    state = torch.load(run.parent / "out" / "checkpoint.pt", weights_only=True)["average"]
    model = Model(described.model)
    model.load_state_dict(
        {k.removeprefix("module."): v for k, v in state.items() if "n_av" not in k}
    )
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_engine_computes_what_was_trained(shape: str, tmp_path: Path) -> None:
    run = prepare(tmp_path / "a", shape)
    script("train.py", run)
    script("export.py", run)
    out = run.parent / "out"
    first, last = losses(run)[0], losses(run)[-1]
    assert len(losses(run)) == 12 and last < 0.8 * first
    assert (out / "loss.svg").stat().st_size > 1000
    with Llama(out / "model.bin", out / "tokenizer.bin") as llama:
        tokens = llama.tokenizer.encode("One day Ben had a kite.", bos=True)
        assert llama.config.shared_classifier is ("untied" not in shape)
        np.testing.assert_allclose(llama.logits(tokens), torch_logits(run, tokens), atol=1e-4)
        exact = llama.score(tokens).bits_per_byte
    with Llama(out / "model-q8.bin", out / "tokenizer.bin") as int8:
        assert int8.config.group_size == 32
        assert int8.score(tokens).bits_per_byte == pytest.approx(exact, abs=0.05)


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    whole, killed = (prepare(tmp_path / name, "tied") for name in ("whole", "killed"))
    script("train.py", whole)
    script("train.py", killed, "--stop-after", "6")
    # What a kill between two checkpoints leaves: steps in the log that no checkpoint has.
    log = killed.parent / "out" / "log.jsonl"
    with log.open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 99.0, "lr": 0.0}) + "\n")
    script("train.py", killed)
    assert losses(killed) == pytest.approx(losses(whole), abs=2e-3)
