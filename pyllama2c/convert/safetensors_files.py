"""Weights of .safetensors files, through the `safetensors` package, which checks their headers."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes  # noqa: F401  # registers bfloat16 with NumPy, for safetensors
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pyllama2c.convert.tensors import Tensor
from pyllama2c.errors import CheckpointError
from pyllama2c.files.recognize import SAFETENSORS, expect

_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _SafeTensor(Tensor):
    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: str):
        super().__init__(f"{path}: {name[:100]}", shape, _TYPES.get(dtype, dtype))
        self._path, self._name = path, name

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        # Opened for each read: pages of a mapping that were read count as this process's memory.
        try:
            with safe_open(self._path, "numpy") as file:
                values: NDArray[np.float32] = file.get_slice(self._name)[start:stop]
        except SafetensorError as error:
            raise CheckpointError(f"{self._path} changed while it was read: {error}") from error
        return values.astype(np.float32)


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """The weights of a file by name; none is read yet. CheckpointError for a damaged file."""
    expect(path, SAFETENSORS, CheckpointError)
    with path.open("rb"):  # whose errors name the file; the package's do not
        pass
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: _SafeTensor(path, name, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged: {error}"
        ) from error
