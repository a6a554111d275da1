"""A model's shape."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyllama2c._ffi import DTYPES, lib

_DTYPES = {number: name for name, number in DTYPES.items()} | {lib.L2C_DTYPE_MIXED: "mixed"}
_FILES = {lib.L2C_FILE_LLAMA2C: "llama2.c", lib.L2C_FILE_GGUF: "gguf"}


class Config(NamedTuple):
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
    rope_theta: float
    """RoPE turns pair j of a head by position * rope_theta ** (-2 * j / head_size)"""
    rope_scaled: bool
    """and these are divided by factors that the file has: Llama 3's, or one for all"""
    norm_eps: float
    """what RMSNorm adds to the mean square"""
    file: str
    """the format: "llama2.c" or "gguf\""""
    version: int
    """of the format: 0, 1 or 2 of llama2.c's, 2 or 3 of GGUF"""
    shared_classifier: bool
    group_size: int
    """int8 weights of the file that share a scale; 0 where they are float32"""
    dtype: str
    """what the weights are computed with: "float32", "int8", "int4", or "mixed" where it differs"""


def read_config(model: Any) -> Config:
    """The configuration of an `l2c_model`."""
    c = lib.l2c_model_config(model)
    values = {name: getattr(c, name) for name in Config._fields}
    values |= {name: bool(values[name]) for name in ("shared_classifier", "rope_scaled")}
    return Config(**values | {"dtype": _DTYPES[c.dtype], "file": _FILES[c.file]})
