"""A model's shape."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pyllama2c._ffi import DTYPES, lib
from pyllama2c.errors import CheckpointWarning, warn

_DTYPES: dict[int, str] = {number: name for name, number in DTYPES.items()} | {
    lib.L2C_DTYPE_MIXED: "mixed"
}
_FILES = {lib.L2C_FILE_LLAMA2C: "llama2.c", lib.L2C_FILE_GGUF: "gguf"}


@dataclass(frozen=True, slots=True)
class Config:
    """A model's shape and settings, in llama2.c's words."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    """of queries, keys and values; n_heads * head_size need not be dim"""
    vocab_size: int
    seq_len: int
    """the context in positions: the model's, or the shorter one it was opened with"""
    rope_theta: float
    """RoPE turns pair j of a head by position * rope_theta ** (-2 * j / head_size)"""
    rope_scaled: bool
    """the file divides these frequencies by factors: Llama 3's, or one for all"""
    norm_eps: float
    """added to the mean square in RMSNorm"""
    file: str
    """the format: "llama2.c" or "gguf\""""
    version: int
    """of the format: 0, 1 or 2 of llama2.c's, 2 or 3 of GGUF"""
    shared_classifier: bool
    group_size: int
    """int8 weights of the file that share a scale; 0 where they are float32"""
    dtype: str
    """of the weights in memory: "float32", "int8", "int4", or "mixed" where matrices differ"""


def read_config(c: Any) -> Config:
    """An l2c_config."""
    values = {f.name: getattr(c, f.name) for f in fields(Config)}
    values |= {name: bool(values[name]) for name in ("shared_classifier", "rope_scaled")}
    return Config(**values | {"dtype": _DTYPES[c.dtype], "file": _FILES[c.file]})


def warn_of_groups(config: Config, path: str) -> None:
    """CheckpointWarning for a version 2 file that llama2.c's exporter should not have written."""
    if config.group_size and config.hidden_dim % config.group_size:
        warn(
            f"{path}: group_size {config.group_size} does not divide hidden_dim "
            f"{config.hidden_dim}. runq.c, whose results this reproduces, then leaves out "
            "the last inputs of w2 and shifts its scales; better export with one that divides.",
            CheckpointWarning,
        )
