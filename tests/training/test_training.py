"""The training recipe, end to end: tokenizer, training, a kill, export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizer_keys import byte_level_keys, chat_model
from training import losses, module, needs_packages, script, torch_logits, write_run

from pyllama2c import Llama

pytestmark = needs_packages

SHAPES = {
    "tied": "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 4\ntied = true",
    "untied": "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 4\ntied = false",
    "grouped": "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 2\ntied = true",
    "grouped, untied": "dim = 32\nhidden_dim = 64\nn_heads = 4\nn_kv_heads = 1\ntied = false",
}


def prepare(folder: Path, shape: str) -> Path:
    run = write_run(folder, SHAPES[shape])
    script("train_tokenizer.py", run)
    return run


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


def test_another_rope_base_becomes_gguf(tmp_path: Path) -> None:
    shape = "dim = 64\nhidden_dim = 96\nn_heads = 4\nn_kv_heads = 2\nrope_theta = 1e5"
    run = write_run(tmp_path / "a", shape)
    script("train_tokenizer.py", run)
    script("train.py", run, "--stop-after", "4")
    script("export.py", run)
    with Llama(run.parent / "out" / "model.gguf", dtype="float32") as llama:
        tokens = llama.tokenizer.encode("One day Ben had a kite.", bos=True)
        truth = torch_logits(run, tokens)
        assert tokens[0] == 1 and llama.config.rope_theta == 1e5
        assert np.abs(llama.logits(tokens) - truth).max() < 0.03 * np.abs(truth).max()  # Q8_0


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


def test_the_learning_rate_restarts_with_every_stage(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")  # stages of 8 and 4 steps, 2 of warm-up
    train, t = module("train"), module("run").load_run(run).training
    once = [train.learning_rate(step, t) for step in range(12)]
    assert once[:2] == [0.005, 0.01] and once[2:] == sorted(once[2:], reverse=True)
    t.restarts = True
    again = [train.learning_rate(step, t) for step in range(12)]
    assert again[:2] == again[8:10] == [0.005, 0.01]
    assert again[2:8] == sorted(again[2:8], reverse=True) and again[10] > again[11]
    assert again[7] < 0.2 * t.learning_rate


def test_attention_on_a_cpu_is_that_on_a_gpu() -> None:
    """Written out or by PyTorch's kernel, with the same gradients, heads shared or not."""
    import torch
    import torch.nn.functional as F

    for n_heads, n_kv_heads, time in ((6, 2, 17), (9, 3, 33), (4, 4, 8), (4, 1, 1)):
        shapes = [(2, heads, time, 16) for heads in (n_heads, n_kv_heads, n_kv_heads)]
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        ours = module("llama").attend(*inputs)
        theirs = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        weights = torch.randn_like(ours)
        gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


def test_a_model_gets_another_vocabulary(tmp_path: Path) -> None:
    """Ids change, what the model computes for a text does not."""
    import torch

    old_path = tmp_path / "old.gguf"
    old_path.write_bytes(chat_model(byte_level_keys()).build())
    shape = "dim = 48\nhidden_dim = 80\nn_heads = 4\nn_kv_heads = 2"
    run = write_run(tmp_path / "a", shape)
    script("train_tokenizer.py", run)
    script("transplant.py", run, str(old_path))
    described = module("run").load_run(run)
    model = module("llama").Llama(described.model).eval()
    model.load_state_dict(torch.load(described.out / "start.pt", weights_only=True))
    with Llama(old_path) as old:
        pieces = module("train").spm.SentencePieceProcessor(
            model_file=str(described.tokenizer / "tokenizer.model")
        )
        # Letters are tokens of both; longer pieces are what the old tokenizer spells.
        letters = [i for i in map(pieces.piece_to_id, "abcdefgh") if i != pieces.unk_id()]
        spelled = [old.tokenizer.encode(pieces.id_to_piece(i))[0] for i in letters]
        assert len(letters) >= 6
        with torch.no_grad():
            ours = model(torch.tensor([[1, *letters]]))[0].numpy()
        theirs = old.logits([0, *spelled])
        np.testing.assert_allclose(ours[:, letters], theirs[:, spelled], atol=1e-4)
        longer = [pieces.id_to_piece(i).replace("▁", " ") for i in range(259, 320)]
        i, ids = next(
            (259 + i, ids)
            for i, ids in enumerate(map(old.tokenizer.encode, longer))
            if len(ids) > 1
        )
        mean = theirs[:, ids].mean(axis=1)  # logits are linear in the embedding
        np.testing.assert_allclose(ours[:, i], mean, atol=1e-4)
