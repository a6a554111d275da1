"""A model's shape."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyllama2c._ffi import DTYPES, lib


class Config(NamedTuple):
    """A model's shape, in llama2.c's words."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    vocab_size: int
    seq_len: int
    version: int
    """of the checkpoint format: 0, 1 or 2"""
    shared_classifier: bool
    group_size: int
    """int8 weights of the file that share a scale; 0 where they are float32"""
    dtype: str
    """what the weights are computed with: "float32", "int8" or "int4\""""


def read_config(model: Any) -> Config:
    """The configuration of an `l2c_model`."""
    c = lib.l2c_model_config(model)
    values = {name: getattr(c, name) for name in Config._fields}
    dtype = next(name for name, number in DTYPES.items() if number == c.dtype)
    return Config(**values | {"shared_classifier": bool(c.shared_classifier), "dtype": dtype})
