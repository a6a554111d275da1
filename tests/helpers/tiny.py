"""Random tiny models: llama2.c files of every version, and a float64 NumPy Llama as the truth."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


@dataclass(frozen=True)
class Shape:
    dim: int = 48
    hidden_dim: int = 80
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    vocab_size: int = 300
    seq_len: int = 96
    tied: bool = True
    group_size: int = 0
    """of a version 2 file"""
    head: int = 0
    """size of a head; 0: dim / n_heads, as in every llama2.c file"""
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    rope_divisors: tuple[float, ...] = ()
    """of RoPE's frequencies; none: all 1"""

    @property
    def head_size(self) -> int:
        return self.head or self.dim // self.n_heads

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_size


def quantize(x: Array, group_size: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    groups = x.astype(np.float32).reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    q = np.rint(groups / np.where(scales == 0, np.float32(1), scales)[:, None])
    return q.astype(np.int8).ravel(), scales


def dequantize(q: NDArray[np.int8], scales: NDArray[np.float32]) -> Array:
    return (q.reshape(len(scales), -1) * scales[:, None].astype(np.float64)).ravel()


@dataclass
class TinyLlama:
    """Weights in float64, as a file of the given version holds them."""

    shape: Shape
    weights: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def random(cls, shape: Shape, seed: int = 0) -> TinyLlama:
        rng, s = np.random.default_rng(seed), shape
        kv = s.n_kv_heads * s.head_size
        rows = {"wq": s.q_dim, "wk": kv, "wv": kv, "wo": s.dim}
        rows |= {"w1": s.hidden_dim, "w2": s.dim, "w3": s.hidden_dim}
        columns = dict.fromkeys(MATRICES, s.dim) | {"w2": s.hidden_dim, "wo": s.q_dim}
        w: dict[str, Any] = {"embedding": rng.normal(0, 0.5, (s.vocab_size, s.dim))}
        for name in MATRICES:
            size = (s.n_layers, rows[name], columns[name])
            w[name] = rng.normal(0, columns[name] ** -0.5, size)
        for name in ("attention_norm", "ffn_norm"):
            w[name] = rng.uniform(0.5, 1.5, (s.n_layers, s.dim))
        w["final_norm"] = rng.uniform(0.5, 1.5, s.dim)
        w["classifier"] = w["embedding"]
        if not s.tied:
            w["classifier"] = rng.normal(0, 0.5, (s.vocab_size, s.dim))
        return cls(s, {k: v.astype(np.float32).astype(np.float64) for k, v in w.items()})

    @classmethod
    def from_v0(cls, data: bytes) -> TinyLlama:
        """The model that a version 0 file with a tied classifier holds."""
        names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
        s = Shape(**dict(zip(names, struct.unpack_from("<7i", data), strict=True)))
        sizes = cls.random(s).weights
        order = ["embedding", "attention_norm", *MATRICES[:4], "ffn_norm", *MATRICES[4:]]
        w, numbers, at = {}, np.frombuffer(data, "<f4", offset=28).astype(np.float64), 0
        for name in [*order, "final_norm"]:
            w[name] = numbers[at : at + sizes[name].size].reshape(sizes[name].shape)
            at += sizes[name].size
        return cls(s, w | {"classifier": w["embedding"]})

    def fields(self, vocab_size: int) -> bytes:
        s = self.shape
        numbers = (s.dim, s.hidden_dim, s.n_layers, s.n_heads, s.n_kv_heads, vocab_size, s.seq_len)
        return struct.pack("<7i", *numbers)

    def v0(self) -> bytes:
        w, s = self.weights, self.shape
        order = [w["embedding"], w["attention_norm"], *(w[n] for n in MATRICES[:4])]
        order += [w["ffn_norm"], *(w[n] for n in MATRICES[4:]), w["final_norm"]]
        order += [np.zeros(s.seq_len * s.head_size)]
        if not s.tied:
            order.append(w["classifier"])
        header = self.fields(s.vocab_size if s.tied else -s.vocab_size)
        return header + b"".join(a.astype("<f4").tobytes() for a in order)

    def _header(self, version: int) -> bytes:
        s = self.shape
        header = struct.pack("<Ii", 0x616B3432, version) + self.fields(s.vocab_size)
        header += struct.pack("<B", s.tied)
        if version == 2:
            header += struct.pack("<i", s.group_size)
        return header.ljust(256, b"\0")

    def v1(self) -> bytes:
        w = self.weights
        order = [w["attention_norm"], w["ffn_norm"], w["final_norm"], w["embedding"]]
        order += [w[name] for name in MATRICES]
        if not self.shape.tied:
            order.append(w["classifier"])
        return self._header(1) + b"".join(a.astype("<f4").tobytes() for a in order)

    def v2(self) -> bytes:
        w, size = self.weights, self.shape.group_size
        norms = [w["attention_norm"], w["ffn_norm"], w["final_norm"]]
        parts = [self._header(2), *(a.astype("<f4").tobytes() for a in norms)]
        tensors = [w["embedding"], *(layer for name in MATRICES for layer in w[name])]
        if not self.shape.tied:
            tensors.append(w["classifier"])
        for tensor in tensors:
            q, scales = quantize(tensor, size)
            parts += [q.tobytes(), scales.astype("<f4").tobytes()]
        return b"".join(parts)

    def file(self, version: int) -> bytes:
        return (self.v0, self.v1, self.v2)[version]()

    def as_int8(self) -> TinyLlama:
        """The same model with the weights that its version 2 file holds."""
        size, out = self.shape.group_size, dict(self.weights)
        for name in ("embedding", "classifier", *MATRICES):
            out[name] = dequantize(*quantize(out[name], size)).reshape(out[name].shape)
        return TinyLlama(self.shape, out)

    def logits(
        self,
        tokens: list[int],
        int8_activations: bool = False,
        float32: Collection[str] = (),
        looks: list[Array] | None = None,
    ) -> Array:
        """(len(tokens), vocab_size): the whole transformer in float64, as in the paper.

        With `int8_activations`, inputs of matrices are quantized, but not those in `float32`.
        `looks` gets each layer's attention: (n_heads, len(tokens), len(tokens)).
        """
        s, w = self.shape, self.weights
        size = s.group_size

        def linear(x: Array, name: str, layer: int | None = None) -> Array:
            if int8_activations and name not in float32:
                x = np.stack([dequantize(*quantize(row, size)) for row in x])
            return x @ (w[name] if layer is None else w[name][layer]).T

        def norm(x: Array, weight: Array) -> Array:
            return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + s.norm_eps)

        frequency = s.rope_theta ** (-np.arange(0, s.head_size, 2) / s.head_size)
        frequency = frequency / np.array(s.rope_divisors or 1.0)
        angle = np.outer(np.arange(len(tokens)), frequency)
        rotation = np.exp(1j * angle)[:, None, :]

        def heads(x: Array, n: int, rotate: bool) -> Array:
            x = x.reshape(len(tokens), n, s.head_size)
            if rotate:
                pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * rotation
                x = np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)
            return x.transpose(1, 0, 2)

        x = w["embedding"][tokens]
        mask = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
        for layer in range(s.n_layers):
            h = norm(x, w["attention_norm"][layer])
            q = heads(linear(h, "wq", layer), s.n_heads, True)
            k = heads(linear(h, "wk", layer), s.n_kv_heads, True)
            v = heads(linear(h, "wv", layer), s.n_kv_heads, False)
            k, v = (np.repeat(a, s.n_heads // s.n_kv_heads, axis=0) for a in (k, v))
            scores = q @ k.transpose(0, 2, 1) / np.sqrt(s.head_size) + mask
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            p = p / p.sum(axis=-1, keepdims=True)
            if looks is not None:
                looks.append(p)
            out = p @ v
            x = x + linear(out.transpose(1, 0, 2).reshape(len(tokens), -1), "wo", layer)
            h = norm(x, w["ffn_norm"][layer])
            gate = linear(h, "w1", layer)
            inner = gate / (1 + np.exp(-gate)) * linear(h, "w3", layer)
            x = x + linear(inner, "w2", layer)
        return linear(norm(x, w["final_norm"]), "classifier")


BYTE_PIECES = [b"<0x%02X>" % i for i in range(256)]
SPECIAL_PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
TEXT_PIECES = [
    b" ", b"a", b"b", b"c", b"d", b"e", b" a", b"ab", b"abc", b"cd", b"de", b"  ", b"aa", b"aaaa",
    "é".encode(), "日".encode(), b".", b"\n", b" ab", b"<", b"s", b">",
]  # fmt: skip


def tokenizer_file(vocab_size: int = 300, pieces: list[bytes] | None = None) -> bytes:
    """A tokenizer.bin of `vocab_size` pieces; longer pieces merge first."""
    if pieces is None:
        pieces = [*SPECIAL_PIECES, *BYTE_PIECES, *TEXT_PIECES]
        pieces += [b" w%d" % i for i in range(vocab_size - len(pieces))]
    parts = [struct.pack("<i", max(map(len, pieces)))]
    for i, piece in enumerate(pieces):
        parts.append(struct.pack("<fi", -float(i) if i > 258 else 0.0, len(piece)) + piece)
    return b"".join(parts)
