"""Hugging Face and Meta folders of random tiny Llamas, and a float64 Llama in Hugging Face's order.

PyTorch's files are written byte by byte: neither PyTorch nor transformers is needed, and tests can
put anything else into them.
"""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, NDArray[Any]]
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}


@dataclass(frozen=True)
class Model:
    """A random Llama under Hugging Face's names; bfloat16 holds each weight exactly."""

    dim: int = 64
    hidden_dim: int = 96
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_size: int = 16
    vocab_size: int = 300
    theta: float = 10000.0
    eps: float = 1e-5
    tied: bool = False
    scaling: dict[str, Any] | None = None
    seed: int = 0
    weights: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        q_dim, kv_dim = self.n_heads * self.head_size, self.n_kv_heads * self.head_size

        def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
            values = rng.normal(0, scale * columns**-0.5, (rows, columns)).astype(np.float32)
            self.weights[name] = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)

        def norm(name: str) -> None:
            self.weights[name] = rng.integers(64, 192, self.dim).astype(np.float32) / 128

        matrix("model.embed_tokens.weight", self.vocab_size, self.dim, self.dim**0.5 / 2)
        for i in range(self.n_layers):
            at = f"model.layers.{i}"
            norm(f"{at}.input_layernorm.weight")
            matrix(f"{at}.self_attn.q_proj.weight", q_dim, self.dim, 2)
            matrix(f"{at}.self_attn.k_proj.weight", kv_dim, self.dim, 2)
            matrix(f"{at}.self_attn.v_proj.weight", kv_dim, self.dim)
            matrix(f"{at}.self_attn.o_proj.weight", self.dim, q_dim)
            norm(f"{at}.post_attention_layernorm.weight")
            matrix(f"{at}.mlp.gate_proj.weight", self.hidden_dim, self.dim)
            matrix(f"{at}.mlp.up_proj.weight", self.hidden_dim, self.dim)
            matrix(f"{at}.mlp.down_proj.weight", self.dim, self.hidden_dim)
        norm("model.norm.weight")
        if not self.tied:
            matrix("lm_head.weight", self.vocab_size, self.dim)

    def config(self) -> dict[str, Any]:
        """config.json as transformers 4 writes it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 256,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "rope_scaling": self.scaling,
            "tie_word_embeddings": self.tied,
        }

    def logits(self, tokens: list[int]) -> Array:
        """(len(tokens), vocab_size), as transformers computes it, in float64."""
        w = {name: values.astype(np.float64) for name, values in self.weights.items()}
        n, size = len(tokens), self.head_size
        frequency = self.theta ** (-np.arange(0, size, 2) / size)
        s = self.scaling
        if s is not None and s["rope_type"] == "linear":
            frequency = frequency / s["factor"]
        elif s is not None:
            length = 2 * np.pi / frequency
            old, low, high = (
                s["original_max_position_embeddings"],
                s["low_freq_factor"],
                s["high_freq_factor"],
            )
            smooth = (old / length - low) / (high - low)
            between = (1 - smooth) * frequency / s["factor"] + smooth * frequency
            slow = np.where(length > old / low, frequency / s["factor"], between)
            frequency = np.where(length < old / high, frequency, slow)
        angle = np.outer(np.arange(n), np.concatenate([frequency, frequency]))

        def norm(x: Array, name: str) -> Array:
            return w[name] * x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps)

        def heads(x: Array, count: int, rotate: bool) -> Array:
            x = x.reshape(n, count, size).transpose(1, 0, 2)
            if rotate:
                half = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
                x = x * np.cos(angle) + half * np.sin(angle)
            return x

        x = w["model.embed_tokens.weight"][tokens]
        mask = np.triu(np.full((n, n), -np.inf), 1)
        for i in range(self.n_layers):
            at = f"model.layers.{i}"
            h = norm(x, f"{at}.input_layernorm.weight")
            q = heads(h @ w[f"{at}.self_attn.q_proj.weight"].T, self.n_heads, True)
            k = heads(h @ w[f"{at}.self_attn.k_proj.weight"].T, self.n_kv_heads, True)
            v = heads(h @ w[f"{at}.self_attn.v_proj.weight"].T, self.n_kv_heads, False)
            k, v = (np.repeat(a, self.n_heads // self.n_kv_heads, axis=0) for a in (k, v))
            scores = q @ k.transpose(0, 2, 1) / size**0.5 + mask
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out = (p / p.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, -1)
            x = x + out @ w[f"{at}.self_attn.o_proj.weight"].T
            h = norm(x, f"{at}.post_attention_layernorm.weight")
            gate, up = (h @ w[f"{at}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}.mlp.down_proj.weight"].T
        head = w["model.embed_tokens.weight" if self.tied else "lm_head.weight"]
        return norm(x, "model.norm.weight") @ head.T


# ---- Hugging Face's folders ----


def write_safetensors(path: Path, weights: Weights, dtype: str = "float32") -> None:
    import ml_dtypes
    from safetensors.numpy import save_file

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    save_file({name: values.astype(kind) for name, values in weights.items()}, path)


def write_hugging_face(
    folder: Path, model: Model, dtype: str = "float32", shards: int = 1, index: bool = True
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config()))
    names = list(model.weights)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", model.weights, dtype)
        return folder
    table = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: model.weights[name] for name in names[i::shards]}
        write_safetensors(folder / file, part, dtype)
        table |= dict.fromkeys(part, file)
    if index:
        content = json.dumps({"metadata": {}, "weight_map": table})
        (folder / "model.safetensors.index.json").write_text(content)
    return folder


# ---- PyTorch's files ----


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def call(name: str, arguments: bytes) -> bytes:
    """A global called with `arguments`, opcodes that push the items of a tuple."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode() + b"(" + arguments + b"tR"


def storage(kind: str, key: str, numel: int) -> bytes:
    pid = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(numel)
    return b"(" + pid + b"tQ"


def tensor(
    kind: str,
    key: str,
    numel: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
) -> bytes:
    hooks = call("collections.OrderedDict", b"")
    arguments = storage(kind, key, numel) + integer(offset) + numbers(shape) + numbers(strides)
    return call("torch._utils._rebuild_tensor_v2", arguments + b"\x89" + hooks)


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def write_zip(path: Path, pickle: bytes, storages: dict[str, bytes], **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_torch(path: Path, weights: Weights, dtype: str = "float32") -> Path:
    """What torch.save(weights, path) writes, in essence."""
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    items, storages = {}, {}
    for i, (name, values) in enumerate(weights.items()):
        strides = tuple(s // values.itemsize for s in np.ascontiguousarray(values).strides)
        items[name] = tensor(STORAGES[dtype], str(i), values.size, values.shape, strides)
        storages[str(i)] = np.ascontiguousarray(values).astype(kind).tobytes()
    return write_zip(path, pickled(mapping(items)), storages, byteorder=b"little", version=b"3\n")


# ---- Meta's folders ----

_META = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.layers": "layers",
    "model.norm": "norm",
    "lm_head": "output",
}


def pairs_together(values: NDArray[Any], head_size: int) -> NDArray[Any]:
    """Rows of wq or wk from Hugging Face's order to Meta's: numbers j and j + head_size / 2 of a
    head become 2j and 2j + 1. One by one, to be plainly right."""
    out = np.empty_like(values)
    for head in range(len(values) // head_size):
        for j in range(head_size // 2):
            out[head * head_size + 2 * j] = values[head * head_size + j]
            out[head * head_size + 2 * j + 1] = values[head * head_size + j + head_size // 2]
    return out


def meta_weights(weights: Weights, head_size: int) -> Weights:
    """Hugging Face's weights under Meta's names and in Meta's order."""
    out = {}
    for name, values in weights.items():
        if "q_proj" in name or "k_proj" in name:
            values = pairs_together(values, head_size)
        for old, new in _META.items():
            name = name.replace(old, new)
        out[name] = values
    return out


def meta_shard(weights: Weights, i: int, n: int, embedding_axis: int) -> Weights:
    """The shard of GPU i of n."""
    out = {"rope.freqs": np.ones(4, np.float32)}
    for name, values in weights.items():
        kind = name.split(".")[-2]
        axis = {"wo": 1, "w2": 1, "tok_embeddings": embedding_axis}.get(kind, 0)
        out[name] = values if values.ndim == 1 else np.split(values, n, axis=axis)[i]
    return out


def write_meta(
    folder: Path, model: Model, shards: int = 1, embedding_axis: int = 1, dtype: str = "bfloat16"
) -> Path:
    folder.mkdir(parents=True)
    params = {
        "dim": model.dim,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "multiple_of": 32,
        "norm_eps": model.eps,
        "rope_theta": model.theta,
        "vocab_size": -1,
    }
    (folder / "params.json").write_text(json.dumps(params))
    weights = meta_weights(model.weights, model.head_size)
    for i in range(shards):
        shard = meta_shard(weights, i, shards, embedding_axis)
        write_torch(folder / f"consolidated.{i:02d}.pth", shard, dtype)
    return folder
