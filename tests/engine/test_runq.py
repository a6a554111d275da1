"""isa="runq" gives runq.c's logits to the bit, for any file that runq.c reads."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import run_python
from numpy.typing import NDArray
from tiny import MATRICES, Shape, TinyLlama, quantize, tokenizer_file

from pyllama2c import Llama

Floats = NDArray[np.float32]
F = np.float32
LIBM = ctypes.CDLL(None)


def libm(name: str, x: Any, *more: float) -> Floats:
    """A function of the C library's, which NumPy's own of that name is not to the bit."""
    function = getattr(LIBM, name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * (1 + len(more))
    values = np.asarray(x, F)
    return np.array([function(v, *more) for v in values.ravel()], F).reshape(values.shape)


def in_order(terms: Floats) -> Floats:
    """Sums along the last axis, one after the other, from 0."""
    zero = np.zeros((*terms.shape[:-1], 1), F)
    sums: Floats = np.add.accumulate(np.concatenate([zero, terms], axis=-1), axis=-1, dtype=F)
    return sums[..., -1]


def norm(x: Floats, weight: Floats) -> Floats:
    return weight * (F(1) / np.sqrt(in_order(x * x) / F(len(x)) + F(1e-5)) * x)


class RunqC:
    """runq.c's forward(), step by step in float32."""

    def __init__(self, model: TinyLlama):
        self.shape, w = model.shape, model.weights
        size = self.shape.group_size
        layers = {name: [quantize(each, size) for each in w[name]] for name in MATRICES}
        self.matrices = layers | {"classifier": [quantize(w["classifier"], size)]}
        q, scales = quantize(w["embedding"], size)
        self.embedding = (q.reshape(-1, size) * scales[:, None]).reshape(w["embedding"].shape)
        norms = ("attention_norm", "ffn_norm", "final_norm")
        self.norms = {name: w[name].astype(F) for name in norms}
        self.keys: list[list[Floats]] = [[] for _ in range(self.shape.n_layers)]
        self.values: list[list[Floats]] = [[] for _ in range(self.shape.n_layers)]

    def linear(self, name: str, x: Floats, layer: int = 0) -> Floats:
        size = self.shape.group_size
        groups = len(x) // size  # what is past the last whole one is left out
        parts = x[: groups * size].reshape(groups, size)
        x_scales = np.abs(parts).max(axis=1) / F(127)
        ratio = (parts / x_scales[:, None]).astype(np.float64)
        xq = np.trunc(ratio + np.copysign(0.5, ratio)).astype(np.int32)  # C's round
        q, scales = self.matrices[name][layer]
        q = q.reshape(-1, len(x))
        rows = len(q)
        q = q[:, : groups * size].reshape(rows, groups, size).astype(np.int32)
        sums = (q * xq).sum(axis=2).astype(F)
        begins = np.arange(rows)[:, None] * len(x) + np.arange(groups) * size
        return in_order(sums * scales[begins // size] * x_scales)

    def rotated(self, x: Floats, position: int) -> Floats:
        n = self.shape.head_size
        pairs = x.reshape(-1, n // 2, 2)
        powers = [libm("powf", 10000.0, i / n) for i in range(0, n, 2)]
        angles = F(position) * (F(1) / np.array(powers, F))
        cosine, sine = libm("cosf", angles), libm("sinf", angles)
        a, b = pairs[..., 0], pairs[..., 1]
        return np.stack([a * cosine - b * sine, a * sine + b * cosine], axis=-1).reshape(-1, n)

    def attention(self, q: Floats, layer: int) -> Floats:
        s = self.shape
        keys, values = np.array(self.keys[layer]), np.array(self.values[layer])
        out = []
        for head in range(s.n_heads):
            kv = head // (s.n_heads // s.n_kv_heads)
            scores = in_order(q[head] * keys[:, kv]) / np.sqrt(F(s.head_size))
            weights = libm("expf", scores - scores.max())
            weights = weights / in_order(weights)
            out.append(in_order((weights[:, None] * values[:, kv]).T))
        return np.concatenate(out)

    def logits(self, token: int, position: int) -> Floats:
        x = self.embedding[token]
        for layer in range(self.shape.n_layers):
            h = norm(x, self.norms["attention_norm"][layer])
            q, k, v = (self.linear(name, h, layer) for name in ("wq", "wk", "wv"))
            self.keys[layer].append(self.rotated(k, position))
            self.values[layer].append(v.reshape(-1, self.shape.head_size))
            x = x + self.linear("wo", self.attention(self.rotated(q, position), layer), layer)
            h = norm(x, self.norms["ffn_norm"][layer])
            gate = self.linear("w1", h, layer)
            gate = gate * (F(1) / (F(1) + libm("expf", -gate)))
            x = x + self.linear("w2", gate * self.linear("w3", h, layer), layer)
        return self.linear("classifier", norm(x, self.norms["final_norm"]))


@pytest.mark.filterwarnings("ignore:.*group_size")
@pytest.mark.parametrize(
    "shape",
    [
        Shape(dim=64, hidden_dim=96, group_size=32),
        Shape(dim=64, hidden_dim=128, n_heads=2, n_kv_heads=2, group_size=64, tied=False),
        Shape(dim=48, hidden_dim=80, n_heads=6, n_kv_heads=3, group_size=16, n_layers=3),
        Shape(dim=32, hidden_dim=43, n_heads=4, n_kv_heads=1, group_size=8),
    ],
    ids=["64 in 32", "64 in 64", "48 in 16", "rows of 43 in groups of 8"],
)
def test_logits_are_those_of_runq_c(shape: Shape, tmp_path: Path) -> None:
    model, path = TinyLlama.random(shape), tmp_path / "int8.bin"
    path.write_bytes(model.v2())
    tokens = [1, *np.random.default_rng(3).integers(3, 300, 20).tolist()]
    runq = RunqC(model)
    expected = np.array([runq.logits(token, i) for i, token in enumerate(tokens)])
    for threads in (1, 3):
        with Llama(path, isa="runq", threads=threads) as llama:
            assert llama.logits(tokens).tobytes() == expected.tobytes()


def test_the_command_asks_for_it(tmp_path: Path) -> None:
    model = TinyLlama.random(Shape(dim=64, hidden_dim=96, group_size=32))
    int8, float32 = tmp_path / "int8.bin", tmp_path / "float32.bin"
    int8.write_bytes(model.v2())
    float32.write_bytes(model.v0())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file())
    with Llama(int8, isa="runq") as llama:
        told = llama.generate("ab", seed=3, max_tokens=9).read()
    environment = os.environ | {"PYLLAMA2C_ISA": "runq"}
    for flags, options in ((["--isa", "runq"], {}), ([], {"env": environment})):
        story = ["-m", "pyllama2c", str(int8), "-i", "ab", "-s", "3", "-n", "11"]
        done = run_python(*story, *flags, **options)
        assert done.returncode == 0 and told in done.stdout, done.stderr
        refused = run_python("-m", "pyllama2c", str(float32), *flags, **options)
        assert refused.returncode == 1 and "float32.bin: isa='runq'" in refused.stderr
