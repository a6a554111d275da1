"""Models as Meta distributes them: params.json and consolidated.*.pth, one for each GPU it used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from errno import ENOENT
from fnmatch import filter as matching
from pathlib import Path

import numpy as np

from pyllama2c.convert.json_files import Fields, read_json
from pyllama2c.convert.layout import collect
from pyllama2c.convert.model_config import ModelConfig, from_meta
from pyllama2c.convert.tensors import Merged, Tensor
from pyllama2c.errors import CheckpointError, CheckpointNotFoundError

SETTINGS = ("params.json",)
_BY_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
_BY_COLUMNS = ("wo", "w2")
_EMBEDDING = "tok_embeddings"


def weight_files(names: Iterable[str]) -> list[str]:
    """Which of a folder's files hold the weights."""
    return sorted(matching(names, "consolidated.*.pth"))


def _shards(folder: Path) -> list[Path]:
    paths = [folder / name for name in weight_files(path.name for path in folder.iterdir())]
    if not paths:
        raise CheckpointNotFoundError(ENOENT, "no weights: no consolidated.*.pth", str(folder))
    for i, path in enumerate(paths):
        if not re.fullmatch(rf"consolidated\.0*{i}\.pth", path.name):
            raise CheckpointError(f"{folder}: found {path.name} where shard {i} should be")
    return paths


def _merge(parts: list[Tensor], kind: str, dim: int) -> Tensor:
    """One weight from its parts in all shards: matrices are split, norms are repeated in each."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.dtype != first.dtype for part in parts):
        raise CheckpointError(f"{first.name}: its parts in the shards differ in type")
    if len(first.shape) == 1:
        values = first.rows(0, first.shape[0])
        for part in parts[1:]:
            if part.shape != first.shape or not np.array_equal(part.rows(0, part.shape[0]), values):
                raise CheckpointError(f"{part.name} differs from {first.name}")
        return first
    # Llama 2 splits the embedding by columns, Llama 3 by rows.
    by_rows = kind in _BY_ROWS or (kind == _EMBEDDING and first.shape[-1] == dim)
    if not by_rows and kind not in (*_BY_COLUMNS, _EMBEDDING):
        raise CheckpointError(f"{first.name}: how it is split into shards is not known")
    if any(len(part.shape) != 2 or part.shape[by_rows] != first.shape[by_rows] for part in parts):
        raise CheckpointError(f"{first.name}: the shapes of its parts in the shards do not match")
    return Merged(parts, axis=0 if by_rows else 1)


def _open_weights(folder: Path, params: Fields) -> dict[str, Tensor]:
    from pyllama2c.convert.torch_files import open_state_dict  # needs the packages of `convert`

    shards = [open_state_dict(path) for path in _shards(folder)]
    for shard in shards:
        shard.pop("rope.freqs", None)  # follows from params.json
        if shard.keys() != shards[0].keys():
            odd = sorted(shard.keys() ^ shards[0].keys())[0]
            raise CheckpointError(f"{folder}: the weight {odd[:100]} is not in every shard")
    dim, merged = params.integer("dim"), {}
    for name in shards[0]:
        parts = [shard[name] for shard in shards]
        merged[name] = _merge(parts, name.removesuffix(".weight").split(".")[-1], dim)
    return merged


def _width(found: dict[str, Tensor], name: str, folder: Path) -> int:
    if name not in found:
        raise CheckpointError(f"{folder}: no file has the weight {name}")
    return found[name].shape[0]


def open_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration, and the weights under GGUF's names; no matrix is read yet.

    Meta's row order is GGUF's, so rows are not reordered.
    """
    params = read_json(folder / "params.json")
    found = _open_weights(folder, params)
    vocab_size = _width(found, f"{_EMBEDDING}.weight", folder)
    hidden_dim = _width(found, "layers.0.feed_forward.w1.weight", folder)
    config = from_meta(params, hidden_dim, vocab_size)
    tied = "output.weight" not in found
    return config, collect(config, tied, found, lambda w: w.meta, str(folder))
