"""Quantizes float32 checkpoints to int8: llama2.c's version 2, which runq.c reads too."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllama2c import validate
from pyllama2c.convert.tensors import CHUNK
from pyllama2c.engine.config import Config
from pyllama2c.engine.engine import open_file
from pyllama2c.engine.options import Options
from pyllama2c.errors import CheckpointError, UnsupportedError
from pyllama2c.files.whole import whole_file

_MAGIC = 0x616B3432
_HEADER = {0: 28, 1: 256}


def quantize_groups(
    x: NDArray[np.float32], size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values and a float32 scale for each `size` of them, as in csrc/files/quantize.c."""
    groups = x.reshape(-1, size)
    largest = np.abs(groups).max(axis=1)
    if not np.isfinite(largest).all():
        raise CheckpointError("a weight is NaN or infinite, which int8 cannot represent")
    inverse = np.divide(
        np.float32(127), largest, out=np.zeros_like(largest), where=largest >= np.float32(1e-30)
    )
    q = np.rint(groups * inverse[:, None]).astype(np.int8)
    return q.reshape(-1), largest / np.float32(127)


class Stored(NamedTuple):
    """Where a tensor's float32 weights are in the file, layer by layer."""

    at: int
    n_layers: int
    size: int
    """weights in a layer"""


def stored_tensors(c: Config) -> dict[str, Stored]:
    """The tensors of a float32 checkpoint, in file order."""
    kv, layers = c.n_kv_heads * c.head_size, c.n_layers
    shapes = {
        "embedding": (1, c.vocab_size * c.dim),
        "attention_norm": (layers, c.dim),
        "wq": (layers, c.dim * c.dim),
        "wk": (layers, kv * c.dim),
        "wv": (layers, kv * c.dim),
        "wo": (layers, c.dim * c.dim),
        "ffn_norm": (layers, c.dim),
        "w1": (layers, c.hidden_dim * c.dim),
        "w2": (layers, c.hidden_dim * c.dim),
        "w3": (layers, c.hidden_dim * c.dim),
        "final_norm": (1, c.dim),
        "rope": (1, c.seq_len * c.head_size),
        "classifier": (1, c.vocab_size * c.dim),
    }
    order = list(shapes)
    if c.version == 1:
        norms = ["attention_norm", "ffn_norm", "final_norm"]
        order = [*norms, *(name for name in order if name not in [*norms, "rope"])]
    if c.shared_classifier:
        order.remove("classifier")
    out: dict[str, Stored] = {}
    at = _HEADER[c.version]
    for name in order:
        n_layers, size = shapes[name]
        out[name] = Stored(at, n_layers, size)
        at += 4 * n_layers * size
    return out


def _read(file: BinaryIO, at: int, count: int) -> NDArray[np.float32]:
    # Not mapped, since truncating a mapped file kills the process; not by fromfile, in which Ctrl-C
    # can become a TypeError.
    file.seek(at)
    x = np.empty(count, np.float32)
    if file.readinto(x.view(np.uint8)) != x.nbytes:  # type: ignore[attr-defined]
        raise CheckpointError(f"{file.name} changed while it was read")
    return x


def _pieces(file: BinaryIO, c: Config, size: int) -> Iterator[bytes]:
    """The version 2 file, piece by piece."""
    fields = (c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len)
    header = struct.pack("<Ii7iBi", _MAGIC, 2, *fields, c.shared_classifier, size)
    yield header.ljust(256, b"\0")
    tensors = stored_tensors(c)
    for name in ("attention_norm", "ffn_norm", "final_norm"):
        norm = tensors[name]
        yield _read(file, norm.at, norm.n_layers * norm.size).tobytes()
    for name in ("embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "classifier"):
        if name not in tensors:
            continue
        at, n_layers, n = tensors[name]
        for first in range(at, at + 4 * n_layers * n, 4 * n):
            scales = []
            for start in range(0, n, CHUNK):
                x = _read(file, first + 4 * start, min(CHUNK, n - start))
                try:
                    q, s = quantize_groups(x, size)
                except CheckpointError as error:
                    raise CheckpointError(f"{file.name}: {name}: {error}") from None
                scales.append(s)
                yield q.tobytes()
            yield np.concatenate(scales).tobytes()


def quantize_file(
    source: str | os.PathLike[str], target: str | os.PathLike[str], group_size: int | None = None
) -> int:
    """Writes `source`, a float32 checkpoint, as int8 to `target`; returns the bytes written.

    `group_size` weights share a scale: a divisor of dim and hidden_dim (else ValueError), by
    default the largest power of two up to 32 that is.
    The file appears under its name once it is complete; `target` must not be `source`
    (FileExistsError). CheckpointError for a source that is not a checkpoint, UnsupportedError for
    one that is int8 already, and for GGUF.
    """
    validate.file_path("source", source)
    validate.file_path("target", target)
    source, target = Path(source), Path(target)
    if source.exists() and target.exists() and source.samefile(target):
        why = "is the source itself; name another file"  # int8 does not turn back into float32
        raise FileExistsError(errno.EEXIST, why, str(target))
    engine = open_file(str(source), Options(speculative=False))  # every check is the engine's
    config = engine.config
    engine.close()
    if config.file != "llama2.c":
        raise UnsupportedError(f"{source} is a GGUF file; only llama2.c's files can be quantized")
    if config.dtype != "float32":
        raise UnsupportedError(
            f"{source} holds {config.dtype} weights; only float32 can be quantized"
        )
    if group_size is None:
        group_size = gcd(32, config.dim, config.hidden_dim)
    if group_size < 1 or config.dim % group_size or config.hidden_dim % group_size:
        raise ValueError(
            f"group_size is {group_size}; it must divide dim, {config.dim}, and hidden_dim, "
            f"{config.hidden_dim}: groups must not straddle rows"
        )
    n_bytes = 0
    with source.open("rb") as weights, whole_file(target) as file:
        for piece in _pieces(weights, config, group_size):
            n_bytes += file.write(piece)
    return n_bytes
