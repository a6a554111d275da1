"""Write a trained run's averaged weights as llama2.c files: v0 (float32) and v2 (int8 groups).

python models/training/export.py models/training/storyteller.toml --install
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from llama import Llama, LlamaConfig
from numpy.typing import NDArray
from run import load_run

MAGIC = 0x616B3432  # "ak42"
Array = NDArray[np.float32]


def _fields(c: LlamaConfig, vocab_size: int) -> bytes:
    numbers = (c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, vocab_size, c.seq_len)
    return struct.pack("<7i", *numbers)


def _matrices(model: Llama) -> Iterator[tuple[str, Array]]:
    """The per-layer matrices in file order, each for all layers before the next."""
    for name in ("wq", "wk", "wv", "wo"):
        yield name, _stack([getattr(layer.attention, name).weight for layer in model.layers])
    for name in ("w1", "w2", "w3"):
        yield name, _stack([getattr(layer, name).weight for layer in model.layers])


def _stack(tensors: list[torch.Tensor]) -> Array:
    return np.stack([tensor.detach().float().cpu().numpy() for tensor in tensors])


def v0_bytes(model: Llama) -> bytes:
    """Legacy float32: a negative vocab_size says that the classifier has weights of its own."""
    c = model.config
    matrices = dict(_matrices(model))
    parts = [_fields(c, c.vocab_size if c.tied else -c.vocab_size)]
    order = [
        _stack([model.tok_embeddings.weight]),
        _stack([layer.attention_norm.weight for layer in model.layers]),
        *(matrices[name] for name in ("wq", "wk", "wv", "wo")),
        _stack([layer.ffn_norm.weight for layer in model.layers]),
        *(matrices[name] for name in ("w1", "w2", "w3")),
        _stack([model.norm.weight]),
        _stack([model.table[0], model.table[1]]),
    ]
    if not c.tied:
        order.append(_stack([model.output.weight]))
    return b"".join([*parts, *(array.tobytes() for array in order)])


def quantize(weights: Array, group_size: int) -> tuple[NDArray[np.int8], Array]:
    """llama2.c's Q8_0: symmetric, scale = largest magnitude of the group / 127."""
    groups = weights.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    safe = np.where(scales == 0, np.float32(1), scales)
    return np.rint(groups / safe[:, None]).astype(np.int8), scales.astype(np.float32)


def v2_bytes(model: Llama, group_size: int) -> bytes:
    """int8 in groups; the norms stay float32."""
    c = model.config
    if c.dim % group_size or c.hidden_dim % group_size:
        raise ValueError(f"group size {group_size} must divide dim and hidden_dim")
    header = struct.pack("<Ii", MAGIC, 2) + _fields(c, c.vocab_size)
    header += struct.pack("<Bi", c.tied, group_size)
    norms = [
        _stack([layer.attention_norm.weight for layer in model.layers]),
        _stack([layer.ffn_norm.weight for layer in model.layers]),
        _stack([model.norm.weight]),
    ]
    tensors = [_stack([model.tok_embeddings.weight])]
    tensors += [layers for _, layers in _matrices(model)]
    if not c.tied:
        tensors.append(_stack([model.output.weight]))
    parts = [header.ljust(256, b"\0"), *(norm.tobytes() for norm in norms)]
    for tensor in tensors:
        for matrix in tensor:
            q, scales = quantize(matrix, group_size)
            parts += [q.tobytes(), scales.tobytes()]
    return b"".join(parts)


def write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    print(f"wrote {path}: {len(data):,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the run")
    parser.add_argument("--install", action="store_true", help="as the embedded model in models/")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    state = torch.load(run.out / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = Llama(run.model)
    prefix = "module."
    averaged = {k.removeprefix(prefix): v for k, v in state["average"].items() if k != "n_averaged"}
    model.load_state_dict(averaged)
    write(run.out / "model.bin", v0_bytes(model))
    write(run.out / "model-q8.bin", v2_bytes(model, run.group_size))
    if arguments.install:
        models = Path(__file__).resolve().parent.parent
        shutil.copyfile(run.out / "model-q8.bin", models / "storyteller.bin")
        shutil.copyfile(run.out / "tokenizer.bin", models / "tokenizer.bin")
        print(f"installed into {models}")


if __name__ == "__main__":
    main()
