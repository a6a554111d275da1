"""The one place that imports the C extension: library handles, statuses to exceptions."""

from __future__ import annotations

import os
import sys
from errno import ENOENT
from pathlib import Path
from typing import Any
from zlib import crc32

import pyllama2c
from pyllama2c import errors

try:
    from pyllama2c._llama2c import ffi, lib
except ImportError as error:
    raise ImportError(
        "pyllama2c's C engine is not built for this Python: pip install . (or -e .) in its source "
        "folder"
    ) from error


def _check_engine() -> None:
    """ImportError for an engine of another version or, where csrc is beside the code, of another
    header."""
    header = Path(__file__).resolve().parents[1] / "csrc" / "llama2c.h"
    built_from = getattr(lib, "PYLLAMA2C_HEADER_CRC", None)
    version = getattr(lib, "L2C_VERSION", None)
    same = version is not None and ffi.string(version).decode() == pyllama2c.__version__
    if same and header.is_file():
        same = built_from == crc32(header.read_bytes())
    if not same:
        engine = sys.modules["pyllama2c._llama2c"].__file__
        raise ImportError(
            f"the installed engine is older: pip install . again ({engine} was not "
            f"built from the source that {Path(__file__).parent} belongs to)"
        )


_check_engine()

__all__ = [
    "check",
    "cpu_features",
    "ffi",
    "isa_name",
    "lib",
    "new_error",
    "resolve_isa",
]

ISA_NAMES: dict[str, int] = {
    "auto": lib.L2C_ISA_AUTO,
    "scalar": lib.L2C_ISA_SCALAR,
    "avx2": lib.L2C_ISA_AVX2,
    "avxvnni": lib.L2C_ISA_AVXVNNI,
    "avx512": lib.L2C_ISA_AVX512,
    "neon": lib.L2C_ISA_NEON,
    "dotprod": lib.L2C_ISA_DOTPROD,
    "i8mm": lib.L2C_ISA_I8MM,
    "runq": lib.L2C_ISA_RUNQ,
}

DTYPES: dict[str, int] = {
    "auto": lib.L2C_DTYPE_AUTO,
    "float32": lib.L2C_DTYPE_FLOAT32,
    "int8": lib.L2C_DTYPE_INT8,
    "int4": lib.L2C_DTYPE_INT4,
}

KV_DTYPES: dict[str, int] = {"float32": lib.L2C_KV_FLOAT32, "float16": lib.L2C_KV_FLOAT16}

_BY_STATUS: dict[int, type[errors.Llama2cError]] = {
    lib.L2C_NOMEM: errors.OutOfMemoryError,
    lib.L2C_RANGE: errors.ContextLengthError,
    lib.L2C_BUSY: errors.BusyError,
    lib.L2C_UNSUPPORTED: errors.UnsupportedError,
    lib.L2C_CANCELLED: errors.CancelledError,
    lib.L2C_NONFINITE: errors.NonFiniteLogitsError,
    lib.L2C_DEVICE: errors.DeviceError,
}

# format error, file error, file not found
_FileErrors = tuple[type[errors.Llama2cError], type[OSError], type[OSError]]
CHECKPOINT: _FileErrors = (
    errors.CheckpointError,
    errors.CheckpointFileError,
    errors.CheckpointNotFoundError,
)
TOKENIZER: _FileErrors = (
    errors.TokenizerError,
    errors.TokenizerFileError,
    errors.TokenizerNotFoundError,
)


def new_error() -> Any:
    """An l2c_error * for calls whose status goes to `check`."""
    return ffi.new("l2c_error *")


def check(status: int, err: Any, path: str | None = None, kind: _FileErrors = CHECKPOINT) -> None:
    """Raises the exception of a status other than L2C_OK; `path` is the file that was read."""
    if status == lib.L2C_OK:
        return
    message = ffi.string(err.message).decode("utf-8", "replace")
    if status == lib.L2C_IO:
        code = err.sys_errno
        raise kind[2 if code == ENOENT else 1](code, os.strerror(code), path)
    if path is not None:
        message = f"{path}: {message}"
    if status == lib.L2C_FORMAT:
        raise kind[0](message)
    raise _BY_STATUS.get(status, ValueError)(message)


def resolve_isa(name: str | None) -> int:
    """The l2c_isa of `name` (default: $PYLLAMA2C_ISA, else auto) on this processor."""
    wanted = name or os.environ.get("PYLLAMA2C_ISA") or "auto"
    if wanted not in ISA_NAMES:
        known, source = ", ".join(ISA_NAMES), "" if name else " in PYLLAMA2C_ISA"
        raise ValueError(f"unknown instruction set {wanted!r}{source}; known: {known}")
    isa, err = ffi.new("l2c_isa *"), new_error()
    check(lib.l2c_isa_resolve(ISA_NAMES[wanted], isa, err), err)
    return int(isa[0])


def isa_name(isa: int) -> str:
    return next(name for name, number in ISA_NAMES.items() if number == isa)


def cpu_features() -> list[str]:
    """Features of this processor that kernels use, such as "avx2"."""
    text = ffi.new("char[256]")
    lib.l2c_cpu_features(text, len(text))
    return str(ffi.string(text).decode()).split()
