"""GGUF files written by hand, so that any part of one can be wrong; and tiny models as GGUF."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny import Shape, TinyLlama

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = (
    range(13)
)
_FORMATS = {
    UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i", FLOAT32: "f",
    BOOL: "B", UINT64: "Q", INT64: "q", FLOAT64: "d",
}  # fmt: skip

# name: number, values in a block, bytes of a block
TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "BF16": (30, 1, 2),
}  # fmt: skip
READABLE = tuple(name for name in TYPES if name != "Q2_K")


def string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def element(kind: int, value: Any) -> bytes:
    return string(value) if kind == STRING else struct.pack("<" + _FORMATS[kind], value)


@dataclass
class Key:
    name: str | bytes
    kind: int
    value: Any
    """a list is an array of that kind; for an unknown kind, its bytes"""

    def build(self) -> bytes:
        head = string(self.name)
        if self.kind not in _FORMATS and self.kind != STRING:
            return head + struct.pack("<I", self.kind) + bytes(self.value)
        if isinstance(self.value, list):
            body = b"".join(element(self.kind, value) for value in self.value)
            return head + struct.pack("<IIQ", ARRAY, self.kind, len(self.value)) + body
        return head + struct.pack("<I", self.kind) + element(self.kind, self.value)


@dataclass
class TensorData:
    name: str | bytes
    dims: Sequence[int]
    """fastest first, as in the file"""
    kind: int
    data: bytes
    offset: int | None = None
    """None: after the tensor before"""


@dataclass
class File:
    keys: list[Key] = field(default_factory=list)
    tensors: list[TensorData] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    n_keys: int | None = None
    n_tensors: int | None = None
    magic: bytes = b"GGUF"

    def build(self) -> bytes:
        infos, data = b"", b""
        for t in self.tensors:
            data = data.ljust(-(-len(data) // self.alignment) * self.alignment, b"\0")
            offset = len(data) if t.offset is None else t.offset
            infos += string(t.name) + struct.pack(f"<I{len(t.dims)}Q", len(t.dims), *t.dims)
            infos += struct.pack("<IQ", t.kind, offset)
            data += t.data
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(key.build() for key in self.keys) + infos
        return head.ljust(-(-len(head) // self.alignment) * self.alignment, b"\0") + data

    def key(self, name: str) -> Key:
        return next(key for key in self.keys if key.name == name)

    def tensor(self, name: str) -> TensorData:
        return next(tensor for tensor in self.tensors if tensor.name == name)


# ---- tensors ----


def random_blocks(kind: str, n_values: int, seed: int = 0, scale: float = 0.01) -> bytes:
    """Blocks of any type with random integers, float16 numbers of about `scale` in their heads."""
    _, values, size = TYPES[kind]
    rng = np.random.default_rng(seed)
    if values == 1:
        return encode(rng.normal(0, scale, n_values), kind)
    blocks = rng.integers(0, 256, (n_values // values, size), np.uint8)
    halves = rng.uniform(0.5, 1.5, (len(blocks), 2)) * [scale, -8 * scale]
    if kind in ("Q4_K", "Q5_K"):  # which are multiplied by integers up to 63
        halves = halves * [1 / 32, -1 / 32]
    as_bytes = halves.astype(np.float16).view(np.uint8)
    if kind == "Q6_K":
        blocks[:, 208:] = (halves[:, :1] / 64).astype(np.float16).view(np.uint8)
    elif kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K"):
        blocks[:, :4] = as_bytes
    else:
        blocks[:, :2] = as_bytes[:, :2]
    return blocks.tobytes()


def encode(x: NDArray[Any], kind: str) -> bytes:
    """float64 values as F32, F16 or BF16."""
    if kind == "F32":
        return x.astype("<f4").tobytes()
    if kind == "F16":
        return x.astype("<f2").tobytes()
    assert kind == "BF16"
    return (x.astype("<f4").view(np.uint32) >> 16).astype("<u2").tobytes()


def decode(data: bytes, kind: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """What the gguf package reads from blocks."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    raw = np.frombuffer(data, {"F32": np.float32, "F16": np.float16}.get(kind, np.uint8))
    values = dequantize(raw, GGMLQuantizationType[kind])
    return values.astype(np.float64).reshape(shape)


# ---- models ----

NAMES = {
    "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "wq": "attn_q", "wk": "attn_k",
    "wv": "attn_v", "wo": "attn_output", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
}  # fmt: skip


def settings(shape: Shape) -> list[Key]:
    def count(name: str, value: int) -> Key:
        return Key(f"llama.{name}", UINT32, value)

    keys = [
        Key("general.architecture", STRING, "llama"),
        count("block_count", shape.n_layers),
        count("context_length", shape.seq_len),
        count("embedding_length", shape.dim),
        count("feed_forward_length", shape.hidden_dim),
        count("attention.head_count", shape.n_heads),
        count("attention.head_count_kv", shape.n_kv_heads),
        count("rope.dimension_count", shape.head_size),
        Key("llama.attention.layer_norm_rms_epsilon", FLOAT32, shape.norm_eps),
        Key("llama.rope.freq_base", FLOAT32, shape.rope_theta),
    ]
    if shape.head:
        keys += [count("attention.key_length", shape.head)]
        keys += [count("attention.value_length", shape.head)]
    return keys


def model_file(tiny: TinyLlama, kinds: dict[str, str] | None = None, seed: int = 0) -> File:
    """`tiny` as GGUF; matrices in `kinds` ("embedding", "wq", ..., "classifier") have those types.

    Of types other than F32 they are random blocks, and `tiny` gets the weights that those hold.
    """
    s, w, kinds = tiny.shape, tiny.weights, kinds or {}
    tensors: list[TensorData] = []

    def put(name: str, key: str, index: tuple[int, ...] = ()) -> None:
        kind, x = kinds.get(key, "F32"), w[key][index]
        data = x.astype("<f4").tobytes()
        if kind != "F32":
            data = random_blocks(kind, x.size, seed + len(tensors), 0.3 * x.std())
            w[key][index] = decode(data, kind, x.shape)
        tensors.append(TensorData(f"{name}.weight", x.shape[::-1], TYPES[kind][0], data))

    put("token_embd", "embedding")
    for layer in range(s.n_layers):
        for key, name in NAMES.items():
            put(f"blk.{layer}.{name}", key, (layer,))
    put("output_norm", "final_norm")
    if s.tied:
        w["classifier"] = w["embedding"]
    else:
        put("output", "classifier")
    if s.rope_divisors:
        data = np.array(s.rope_divisors, "<f4").tobytes()
        tensors.append(TensorData("rope_freqs.weight", (s.head_size // 2,), 0, data))
    return File(settings(s), tensors)
