"""A prompt's KV cache in a file: tokens with their keys and values, for the same model later.

Little-endian: b"l2ccache", version (uint32), n tokens (uint32), the model's fingerprint (uint64),
the tokens (int32), and keys, then values, each (n_layers, n_kv_heads, n, head_size): float32 in
version 3, float16 in version 4. Versions 1 and 2 had a fingerprint that missed much of a model.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from array import array
from pathlib import Path

from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.engine.config import Config
from pyllama2c.engine.session import Session
from pyllama2c.errors import CacheFileError
from pyllama2c.files.recognize import Kind, kind_of_file
from pyllama2c.files.whole import whole_file

_HEADER = struct.Struct("<8sIIQ")
_MAGIC = b"l2ccache"
_VERSIONS = {lib.L2C_KV_FLOAT32: 3, lib.L2C_KV_FLOAT16: 4}
_NAMES = {3: "float32", 4: "float16"}
_OLD = (1, 2)


def _state_bytes(config: Config, n: int, version: int) -> int:
    item = 4 if _NAMES[version] == "float32" else 2
    return 2 * config.n_layers * config.n_kv_heads * n * config.head_size * item


def save(
    path: str | os.PathLike[str], session: Session, n: int, config: Config, fingerprint: int
) -> None:
    """Writes the first n positions, whole or not at all.

    CacheFileError where `path` is a file of another kind, such as a model.
    """
    kind = kind_of_file(path)
    if kind not in (None, Kind.PROMPT_CACHE, Kind.EMPTY):
        raise CacheFileError(f"{path} is {kind.what}; name another file")
    tokens = array("i", session.fed[:n])
    if sys.byteorder == "big":
        tokens.byteswap()
    version = _VERSIONS[session.kv]
    state = ffi.new("char[]", _state_bytes(config, len(tokens), version))
    err = new_error()
    check(lib.l2c_session_save(session.handle, len(tokens), state, err), err)
    with whole_file(Path(path)) as file:
        file.write(_HEADER.pack(_MAGIC, version, len(tokens), fingerprint))
        file.write(tokens.tobytes())
        file.write(ffi.buffer(state))


def load(path: str | os.PathLike[str], session: Session, config: Config, fingerprint: int) -> None:
    """Reads such a file into `session`; CacheFileError, with `session` unchanged, for others."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
        raise CacheFileError(f"{path}: not a regular file")
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:8] != _MAGIC:
            raise CacheFileError(f"{path}: not a prompt cache of pyllama2c")
        _, version, n, made_by = _HEADER.unpack(head)
        if version in _OLD:
            raise CacheFileError(f"{path}: saved by an older pyllama2c; save the prompt again")
        if version not in _NAMES:
            raise CacheFileError(f"{path}: version is {version}; versions 3 and 4 are known")
        if version != (ours := _VERSIONS[session.kv]):
            raise CacheFileError(
                f"{path}: keys and values are {_NAMES[version]}; the model's kv_dtype is "
                f"{_NAMES[ours]}"
            )
        if made_by != fingerprint:
            raise CacheFileError(f"{path}: made by another model, or in another dtype")
        if n > config.seq_len:
            raise CacheFileError(f"{path}: {n} tokens; the model's context is {config.seq_len}")
        expected = _HEADER.size + 4 * n + _state_bytes(config, n, version)
        if size != expected:
            raise CacheFileError(f"{path}: {size} bytes; {n} tokens need {expected}")
        data = file.read(4 * n)
        if len(data) < 4 * n:
            raise CacheFileError(f"{path}: changed while it was read")
        tokens = array("i", data)
        if sys.byteorder == "big":
            tokens.byteswap()
        if any(not 0 <= token < config.vocab_size for token in tokens):
            raise CacheFileError(f"{path}: a token is outside the vocabulary")
        state = ffi.from_buffer("char[]", bytearray(file.read(size)))
    if len(state) != _state_bytes(config, n, version):
        raise CacheFileError(f"{path}: changed while it was read")
    err = new_error()
    session.fed = []  # Ctrl-C may come as the call ends
    check(lib.l2c_session_load(session.handle, n, state, err), err)
    session.fed = list(tokens)
