"""Logits of random tiny models, of every shape and file version, against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Shape, TinyLlama

from pyllama2c import Llama

SHAPES = {
    "plain": Shape(n_heads=4, n_kv_heads=4),
    "grouped": Shape(n_heads=4, n_kv_heads=2),
    "multi-query": Shape(dim=96, n_heads=8, n_kv_heads=1),
    "kv heads != group": Shape(dim=72, n_heads=12, n_kv_heads=3),
    "six to one": Shape(dim=60, n_heads=6, n_kv_heads=1),
    "untied": Shape(tied=False),
    "odd widths": Shape(dim=34, hidden_dim=57, n_heads=1, n_kv_heads=1, vocab_size=263),
    "head of 2": Shape(dim=18, hidden_dim=31, n_heads=9, n_kv_heads=3, vocab_size=261),
    "head of 100": Shape(dim=300, hidden_dim=172, n_heads=3, n_kv_heads=3, n_layers=1),
    "head of 48": Shape(dim=288, hidden_dim=172, n_heads=6, n_kv_heads=2, n_layers=1),
    "one above": Shape(dim=130, hidden_dim=769, n_heads=13, n_kv_heads=13, n_layers=1),
    "vocabulary of 1": Shape(vocab_size=1),
    "deep": Shape(n_layers=5),
}


def random_tokens(shape: Shape, n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, shape.vocab_size, n).tolist()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("name", SHAPES)
def test_float32_logits(name: str, version: int, isa: str) -> None:
    shape = SHAPES[name]
    truth = TinyLlama.random(shape)
    tokens = random_tokens(shape, 70)  # more than one forward call takes
    with Llama.from_buffer(truth.file(version), isa=isa, threads=2) as llama:
        assert llama.config.version == version
        got = llama.logits(tokens)
    expected = truth.logits(tokens)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(group_size=16),
        Shape(dim=64, hidden_dim=96, n_heads=8, n_kv_heads=2, group_size=32),
        Shape(dim=36, hidden_dim=60, n_heads=6, n_kv_heads=3, group_size=12),
        Shape(dim=30, hidden_dim=45, n_heads=3, n_kv_heads=1, group_size=3, vocab_size=259),
        Shape(dim=26, hidden_dim=39, n_heads=1, n_kv_heads=1, group_size=1, vocab_size=261),
    ],
    ids=lambda shape: f"dim{shape.dim}-group{shape.group_size}",
)
def test_int8_logits(shape: Shape, tied: bool) -> None:
    truth = TinyLlama.random(Shape(**{**shape.__dict__, "tied": tied}))
    tokens = random_tokens(shape, 40)
    with Llama.from_buffer(truth.v2()) as llama:
        assert llama.config.group_size == shape.group_size
        got = llama.logits(tokens)
    expected = truth.as_int8().logits(tokens, int8_activations=True)
    error = np.abs(got - expected).max(axis=1) / np.abs(expected).max()
    # Float32 or float64, an activation near the middle between two int8 values may fall either
    # way; a row after that is off by a step of the quantization. All others agree as floats do.
    assert np.median(error) < 2e-6 or error.max() < 0.02
    assert error[0] < 2e-6
    assert error.max() < 0.1


def test_uneven_groups_follow_runq(tmp_path) -> None:
    """hidden_dim 20 in groups of 8: runq.c drops w2's last inputs and takes shifted scales."""
    shape = Shape(dim=16, hidden_dim=20, n_heads=2, n_kv_heads=2, group_size=8, n_layers=1)
    truth = TinyLlama.random(shape)
    path = tmp_path / "model.bin"
    path.write_bytes(truth.v2())
    with pytest.warns(UserWarning, match="group_size 8 does not divide hidden_dim 20"):
        llama = Llama(path)
    got = llama.logits([5])[0]

    as_int8 = truth.as_int8()
    q, scales = quantized_w2(truth)
    seen_by_runq = np.zeros((16, 20))
    for i in range(16):
        for j in range(0, 16, 8):  # whole groups of the row; the last 4 inputs are left out
            seen_by_runq[i, j : j + 8] = q[i, j : j + 8] * scales[(i * 20 + j) // 8]
    as_int8.weights["w2"] = seen_by_runq[None]
    as_int8.shape = Shape(**{**shape.__dict__, "group_size": 4})  # divides; unused by weights now
    # activations: groups of 8 everywhere but in front of w2, where 2 whole groups count
    expected = runq_logits(as_int8, 5)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    llama.close()


def quantized_w2(truth: TinyLlama):
    from tiny import quantize

    q, scales = quantize(truth.weights["w2"][0], 8)
    return q.reshape(16, 20).astype(np.float64), scales.astype(np.float64)


def runq_logits(model: TinyLlama, token: int):
    """One token at position 0 (attention is its own value), activations in groups of 8."""
    from tiny import dequantize, quantize

    w = {k: v[0] if v.ndim == 3 else v for k, v in model.weights.items()}

    def int8(x):
        n = len(x) // 8 * 8
        return np.concatenate([dequantize(*quantize(x[:n], 8)), np.zeros(len(x) - n)])

    def norm(x, weight):
        return weight * x / np.sqrt((x**2).mean() + 1e-5)

    x = w["embedding"][token]
    value = w["wv"] @ int8(norm(x, w["attention_norm"][0]))
    x = x + w["wo"] @ int8(value)
    h = int8(norm(x, w["ffn_norm"][0]))
    gate = w["w1"] @ h
    inner = gate / (1 + np.exp(-gate)) * (w["w3"] @ h)
    x = x + w["w2"] @ int8(inner)
    return w["classifier"] @ int8(norm(x, w["final_norm"]))


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3), (6, 1), (5, 5)]),
    half_head=st.integers(1, 21),
    hidden_dim=st.integers(1, 90),
    n_layers=st.integers(1, 3),
    vocab_size=st.integers(2, 80),
    tied=st.booleans(),
    version=st.sampled_from([0, 1]),
    threads=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_any_shape(
    heads, half_head, hidden_dim, n_layers, vocab_size, tied, version, threads, seed
) -> None:
    n_heads, n_kv_heads = heads
    shape = Shape(
        dim=2 * half_head * n_heads,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=vocab_size,
        seq_len=12,
        tied=tied,
    )
    truth = TinyLlama.random(shape, seed)
    tokens = random_tokens(shape, 12, seed)
    with Llama.from_buffer(truth.file(version), threads=threads) as llama:
        got = llama.logits(tokens)
    expected = truth.logits(tokens)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * max(1.0, np.abs(expected).max()))
