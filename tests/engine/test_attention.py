"""What a token looked at, as C tells it, against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import Shape, TinyLlama

from pyllama2c import Llama
from pyllama2c.engine.session import Session


def told(llama: Llama, tokens: list[int], position: int) -> np.ndarray:
    config = llama.config
    with llama._engine.session_with(tokens[:position]) as session:
        assert isinstance(session, Session)
        shape = (config.n_layers, config.n_heads, position + 1)
        weights = session.attention(tokens[position], position, shape)
        assert session.fed == tokens[: position + 1]
        return weights


@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(n_heads=4, n_kv_heads=2, n_layers=3),
        Shape(dim=72, n_heads=12, n_kv_heads=3),
        Shape(dim=16, n_heads=1, n_kv_heads=1, seq_len=300),  # positions go to several threads
    ],
    ids=["grouped", "kv heads != group", "long"],
)
def test_weights(shape: Shape, kv_dtype: str, isa: str) -> None:
    truth = TinyLlama.random(shape)
    tokens = np.random.default_rng(1).integers(0, shape.vocab_size, shape.seq_len).tolist()
    looks: list[np.ndarray] = []
    truth.logits(tokens, looks=looks)
    expected = np.stack(looks)
    first: dict[int, bytes] = {}
    for threads in (1, 3):
        with Llama.from_buffer(
            truth.v0(), isa=isa, threads=threads, kv_dtype=kv_dtype, speculative=False
        ) as llama:
            for position in (0, 1, shape.seq_len // 2, shape.seq_len - 1):
                weights = told(llama, tokens, position)
                error = 2e-5 if kv_dtype == "float32" else 5e-3
                np.testing.assert_allclose(
                    weights, expected[:, :, position, : position + 1], rtol=0, atol=error
                )
                assert first.setdefault(position, weights.tobytes()) == weights.tobytes()


def test_logits_are_those_of_a_plain_pass() -> None:
    shape = Shape()
    with Llama.from_buffer(TinyLlama.random(shape).v0()) as llama:
        tokens = [3, 1, 4, 1, 5]
        plain = llama.logits(tokens)[-1]
        with llama._engine.session_with(tokens[:-1]) as session:
            session.attention(5, 4, (shape.n_layers, shape.n_heads, 5))
            assert session.logits(1, shape.vocab_size)[0].tobytes() == plain.tobytes()
