"""Reads what torch.save writes, without PyTorch: a zip archive of a pickle and raw storages.

The pickle (pickles.py) describes tensors: storage, offset, shape, strides. Storages are archive
members without compression, so rows are read in place.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pyllama2c.convert import pickles
from pyllama2c.convert.tensors import Tensor
from pyllama2c.errors import CheckpointError, UnsupportedError
from pyllama2c.files.recognize import TORCH, expect

_LOCAL_HEADER = 30
_MAX_DIMENSIONS = 8
_LIMIT = 2**48
"""of a size or stride, so that their sums and products stay small"""

_STORAGES: dict[str, np.dtype[Any]] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    at: int
    """offset in the file, bytes"""
    numel: int
    dtype: np.dtype[Any]


class _StoredTensor(Tensor):
    def __init__(self, path: Path, storage: _Storage, offset: int, shape: Any, strides: Any):
        super().__init__("", shape, storage.dtype.name)
        self._path, self._dtype, self._strides = path, storage.dtype, strides
        self._at = storage.at + offset * storage.dtype.itemsize

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        shape = (stop - start, *self.shape[1:])
        if 0 in shape:
            return np.empty(shape, np.float32)
        size = self._dtype.itemsize
        count = 1 + sum((n - 1) * s for n, s in zip(shape, self._strides, strict=True))
        at = self._at + start * self._strides[0] * size
        with self._path.open("rb") as file:
            file.seek(at)
            data = file.read(count * size)
        if len(data) != count * size:
            raise CheckpointError(f"{self.name} is cut short; did the file change?")
        values = np.frombuffer(data, self._dtype)
        strides = [s * size for s in self._strides]
        view = np.lib.stride_tricks.as_strided(values, shape, strides, writeable=False)
        return view.astype(np.float32)


class _Archive:
    """A zip archive whose members are read in place."""

    def __init__(self, path: Path):
        self.path = path
        expect(path, TORCH, CheckpointError)
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise UnsupportedError(
                    f"{path} is not a zip archive: damaged, or saved by a PyTorch older than 1.6, "
                    "whose format is not supported. Load and save it again with a newer one"
                )
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise CheckpointError(f"{path} is a damaged zip archive: {error}") from error
        self._members = {member.filename: member for member in members}
        if len(self._members) != len(members):
            raise CheckpointError(f"{path} has two members of the same name")
        pickled = [name for name in self._members if name.count("/") == 1]
        pickled = [name for name in pickled if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise CheckpointError(f"{path} was not written by torch.save: it lacks a data.pkl")
        self._root = pickled[0].removesuffix("data.pkl")

    def place(self, name: str) -> tuple[int, int]:
        """A member's offset in the file and its size, in bytes."""
        member = self._members.get(self._root + name)
        if member is None:
            raise CheckpointError(f"{self.path} lacks its member {name[:100]!r}")
        if member.flag_bits & 1:
            raise UnsupportedError(f"{self.path}: its member {name} is encrypted")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UnsupportedError(f"{self.path}: its member {name} is compressed")
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            known = 0 <= member.header_offset < size
            file.seek(member.header_offset if known else 0)
            header = file.read(_LOCAL_HEADER)
        if not known or len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"{self.path}: the header of its member {name} is damaged")
        at = member.header_offset + _LOCAL_HEADER + sum(struct.unpack_from("<HH", header, 26))
        if at + member.file_size > size:
            raise CheckpointError(f"{self.path} is cut short within its member {name}")
        return at, member.file_size

    def read(self, name: str, limit: int) -> bytes:
        at, size = self.place(name)
        if size > limit:
            raise CheckpointError(f"{self.path}: {name} has {size:,} bytes; the limit is {limit:,}")
        with self.path.open("rb") as file:
            file.seek(at)
            return file.read(size)

    def has(self, name: str) -> bool:
        return self._root + name in self._members


class _StateDict:
    """The calls that a state dict's pickle makes, each argument checked."""

    def __init__(self, archive: _Archive):
        self._archive = archive
        self._storages: dict[str, _Storage] = {}

    def _fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._archive.path}: {what}")

    def storage(self, pid: object) -> _Storage:
        """("storage", class, member, device, number of elements)"""
        match pid:
            case ("storage", pickles.Name(name=name), str(key), str(), int(numel)):
                dtype = _STORAGES.get(name)
            case _:
                dtype = None
        if dtype is None:
            raise self._fail("its pickle describes a storage in a way that torch.save does not")
        if key not in self._storages:
            at, size = self._archive.place(f"data/{key}")
            self._storages[key] = _Storage(at, size // dtype.itemsize, dtype)
        storage = self._storages[key]
        if storage.dtype != dtype or storage.numel != numel:
            raise self._fail(
                f"storage {key[:100]!r} is said to hold {numel} x {dtype.name}; "
                f"its member holds {storage.numel} x {storage.dtype.name}"
            )
        return storage

    def tensor(self, *arguments: object) -> _StoredTensor:
        """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)"""
        match arguments[:4]:
            case (_Storage() as storage, int(offset), tuple(shape), tuple(strides)):
                pass
            case _:
                raise self._fail("its pickle describes a tensor in a way that torch.save does not")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not 1 <= len(shape) <= _MAX_DIMENSIONS:
            raise self._fail(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
        if any(type(n) is not int or not 0 <= n < _LIMIT for n in numbers):
            raise self._fail("a tensor's offset, size or stride is negative or 2^48 or more")
        extent = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        values = 1
        for n in shape:
            values *= n
        if values > 0 and (extent > storage.numel or values > storage.numel):
            raise self._fail(
                f"a tensor of shape {shape}, strides {strides} and offset {offset} lies outside "
                f"of its storage, which has {storage.numel} elements"
            )
        return _StoredTensor(self._archive.path, storage, offset, shape, strides)

    def parameter(self, *arguments: object) -> _StoredTensor:
        """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)"""
        if not arguments or not isinstance(arguments[0], _StoredTensor):
            raise self._fail("its pickle describes a parameter in a way that torch.save does not")
        return arguments[0]

    def ordered(self, *arguments: object) -> dict[object, object]:
        """collections.OrderedDict()"""
        if arguments:
            raise self._fail("its pickle fills an OrderedDict in a way that torch.save does not")
        return {}


def open_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights of a .pth or .bin file by name; none is read yet.

    CheckpointError for a file that is damaged, or whose pickle is more than a table of weights;
    UnsupportedError for formats that torch.save no longer writes.
    """
    archive = _Archive(path)
    # A storage's size in elements is only right for one type, so a key has one type.
    if archive.has("byteorder") and archive.read("byteorder", 16) != b"little":
        raise UnsupportedError(f"{path} was saved on a big-endian machine")
    calls = _StateDict(archive)
    names: dict[str, pickles.Function | None] = dict.fromkeys(_STORAGES)
    names["collections.OrderedDict"] = calls.ordered
    names["torch._utils._rebuild_tensor_v2"] = calls.tensor
    names["torch._utils._rebuild_parameter"] = calls.parameter
    data = archive.read("data.pkl", pickles.MAX_BYTES)
    table = pickles.read(data, str(path), names, calls.storage)
    if type(table) is not dict:
        raise CheckpointError(f"{path} holds a {type(table).__name__}, not weights by name")
    for name, tensor in table.items():
        if not isinstance(name, str) or not isinstance(tensor, _StoredTensor):
            raise CheckpointError(
                f"{path}: {str(name)[:100]!r} is a {type(tensor).__name__}, not a weight by name"
            )
        tensor.name = f"{path}: {name[:100]}"
    return table
