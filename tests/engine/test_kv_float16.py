"""Keys and values in float16: half the memory, the same bits everywhere; what rounding costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from environment import SHARED
from sequences import Sequences, model
from tiny import Shape, TinyLlama

from pyllama2c import CacheFileError, Llama, NonFiniteLogitsError
from pyllama2c.cli.evaluate import read_passages

SHAPES = [
    Shape(seq_len=160),
    Shape(dim=66, hidden_dim=45, n_layers=1, n_heads=3, n_kv_heads=1, seq_len=160),  # heads of 22
    Shape(group_size=24, hidden_dim=96, seq_len=160),
    Shape(group_size=24, hidden_dim=80, seq_len=160),  # runq.c's arithmetic
]
NAMES = ["grouped", "odd", "int8", "runq"]


@pytest.mark.filterwarnings("ignore:.*group_size")
@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_same_bits_for_every_isa_thread_count_and_split(shape: Shape, isa: str) -> None:
    tokens = np.random.default_rng(3).integers(0, shape.vocab_size, 150).tolist()
    with model(shape, isa="scalar", threads=1, kv_dtype="float16") as llama:
        expected = llama.logits(tokens)
        one_by_one = Sequences(llama, 1)
        apart = np.vstack([one_by_one.feed([(0, i, t)]) for i, t in enumerate(tokens)])
    assert apart.tobytes() == expected.tobytes()
    for threads in (1, 2, 3):
        with model(shape, isa=isa, threads=threads, kv_dtype="float16") as llama:
            assert llama.logits(tokens).tobytes() == expected.tobytes()
            together = Sequences(llama, 3)
            for position in range(0, 150, 5):
                rows = [(s, position + i, tokens[position + i]) for s in range(3) for i in range(5)]
                got = together.feed(rows)
                for s in range(3):
                    part = got[5 * s : 5 * s + 5]
                    assert part.tobytes() == expected[position : position + 5].tobytes()


@pytest.mark.parametrize("shape", SHAPES[:2], ids=NAMES[:2])
def test_logits_are_near_those_of_float32(shape: Shape) -> None:
    tokens = np.random.default_rng(4).integers(0, shape.vocab_size, 150).tolist()
    with model(shape) as whole, model(shape, kv_dtype="float16") as half:
        a, b = whole.logits(tokens), half.logits(tokens)
    assert a.tobytes() != b.tobytes()
    np.testing.assert_allclose(a, b, rtol=0, atol=0.02)


def test_keys_are_rounded_to_nearest_even(tmp_path: Path) -> None:
    """Layer 0's keys and values depend on nothing that was rounded before."""
    tokens = np.random.default_rng(5).integers(0, 300, 40).tolist()
    states = {}
    for kv_dtype, dtype in (("float32", np.float32), ("float16", np.float16)):
        path = tmp_path / kv_dtype
        with model(Shape(n_layers=1), kv_dtype=kv_dtype) as llama:
            llama.save_cache(path, tokens)
        states[kv_dtype] = np.frombuffer(path.read_bytes()[24 + 4 * len(tokens) :], dtype)
    rounded = states["float32"].astype(np.float16)
    assert rounded.tobytes() == states["float16"].tobytes() and rounded.size == 2 * 2 * 40 * 12


def test_saved_and_loaded(tmp_path: Path) -> None:
    path, tokens = tmp_path / "prompt.cache", [1, 5, 6, 7, 8, 9, 10]
    with model(Shape(), kv_dtype="float16") as llama:
        llama.save_cache(path, tokens)
        expected = llama.logits([*tokens, 11])[-1]
    with model(Shape(), kv_dtype="float16") as llama:
        assert llama.load_cache(path) == tokens
        with llama._engine.sessions.lent(tokens) as session:
            assert session.cached(tokens) == len(tokens)
            session.feed([11], len(tokens))
            assert session.logits(1, 300)[0].tobytes() == expected.tobytes()
    with model(Shape()) as llama:
        message = "keys and values are float16; the model's kv_dtype is float32"
        with pytest.raises(CacheFileError, match=message):
            llama.load_cache(path)


def test_what_float16_cannot_hold_is_told() -> None:
    tiny = TinyLlama.random(Shape())
    tiny.weights["wv"][0] *= 1e7
    with Llama.from_buffer(tiny.v0()) as llama:
        assert np.isfinite(llama.logits([1, 5])).all()
    llama = Llama.from_buffer(tiny.v0(), kv_dtype="float16")
    with llama, pytest.raises(NonFiniteLogitsError):
        llama.score([1, 5])


def test_perplexity_on_held_out_stories(stories260k: Llama) -> None:
    path = SHARED / "text" / "heldout_tinystories.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    stories = read_passages(path)[:60]
    assert len(stories) == 60
    with Llama(stories260k.path, stories260k.tokenizer.path, kv_dtype="float16") as half:
        totals = []
        for llama in (stories260k, half):
            tokens = [llama.tokenizer.encode(text, bos=True)[:512] for text in stories]
            totals.append(sum(score.total for score in llama.score_batch(tokens)))
    assert abs(totals[1] / totals[0] - 1) < 2e-4
