"""GGUF files: metadata and tensors, through the engine's own reader (csrc/files/gguf.c)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c import validate
from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.errors import CheckpointError, ClosedError
from pyllama2c.files.recognize import GGUF_FILE, expect
from pyllama2c.handle import ClosableHandle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOATS = (lib.L2C_GGUF_FLOAT32, lib.L2C_GGUF_FLOAT64)
_NOT_FOUND = -1


class Tensor(NamedTuple):
    name: str
    type: str
    """as GGML calls it: "F32", "Q4_1", ..."""
    shape: tuple[int, ...]
    """in NumPy's order: the last dimension is contiguous"""
    offset: int
    """of its data in the file"""
    bytes: int


class Gguf(ClosableHandle):
    """A GGUF file of version 2 or 3, of any architecture; checked as a whole when it is opened.

    Its metadata is a mapping from keys to values; `tensors` are the rest.

    Raises CheckpointError for a damaged file, UnsupportedError for a big-endian one, another
    version or an unknown type, and an OSError for a file that cannot be read.
    """

    _buffer: Any = None

    def __init__(self, path: str | os.PathLike[str]):
        validate.file_path("path", path)
        self.path = os.fspath(path)
        expect(self.path, GGUF_FILE, CheckpointError)
        out, err = ffi.new("l2c_gguf **"), new_error()
        check(lib.l2c_gguf_open(os.fsencode(self.path), out, err), err, self.path)
        self._open(out[0])

    @classmethod
    def from_buffer(cls, data: Any, path: str = "<memory>") -> Gguf:
        """The same from memory: any contiguous buffer, kept as long as this object. Errors call it
        `path`."""
        self = cls.__new__(cls)
        self.path = path
        buffer = ffi.from_buffer(validate.contiguous("data", data))
        out, err = ffi.new("l2c_gguf **"), new_error()
        check(lib.l2c_gguf_open_memory(buffer, len(buffer), out, err), err, self.path)
        self._buffer = buffer  # which keeps the memory
        self._open(out[0])
        return self

    def _open(self, handle: Any) -> None:
        self._gguf: Any = ffi.gc(handle, lib.l2c_gguf_free)
        self.version = int(lib.l2c_gguf_version(handle))

    @property
    def _handle(self) -> Any:
        if self._gguf is None:
            raise ClosedError("the file is closed")
        return self._gguf

    # ---- metadata: a mapping from key to value ----

    def __iter__(self) -> Iterator[str]:
        """Keys in order of their names."""
        i, handle = 0, self._handle
        while (key := lib.l2c_gguf_key_at(handle, i)) != ffi.NULL:
            yield _text(key.name, key.name_length)
            i += 1

    def __contains__(self, name: str) -> bool:
        return bool(lib.l2c_gguf_find_key(self._handle, name.encode()) != _NOT_FOUND)

    def __getitem__(self, name: str) -> Any:
        """A value: int, float, bool, str or a list of these; KeyError without such a key.

        CheckpointError for a string that is not UTF-8.
        """
        number = lib.l2c_gguf_find_key(self._handle, name.encode())
        if number == _NOT_FOUND:
            raise KeyError(name)
        key = lib.l2c_gguf_key_at(self._handle, number)
        read = self._reader(key, number)
        return [read(i) for i in range(key.count)] if key.is_array else read(0)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def _reader(self, key: Any, number: int) -> Any:
        """A function from an element's index to the element."""
        handle, err = self._handle, new_error()
        if key.type == lib.L2C_GGUF_STRING:
            data, length = ffi.new("char **"), ffi.new("size_t *")

            def string(i: int) -> str:
                check(lib.l2c_gguf_string(handle, number, i, data, length, err), err, self.path)
                raw = bytes(ffi.buffer(data[0], length[0]))
                try:
                    return raw.decode()
                except UnicodeDecodeError as error:
                    name = _text(key.name, key.name_length)
                    raise CheckpointError(f"{self.path}: {name}: {error}") from None

            return string
        if key.type in _FLOATS:
            function, value = lib.l2c_gguf_number, ffi.new("double *")
        else:
            function, value = lib.l2c_gguf_integer, ffi.new("int64_t *")

        def number_at(i: int) -> Any:
            check(function(handle, number, i, value, err), err, self.path)
            return bool(value[0]) if key.type == lib.L2C_GGUF_BOOL else value[0]

        return number_at

    # ---- tensors ----

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name, in order of the names."""
        tensors, handle, i = {}, self._handle, 0
        while (t := lib.l2c_gguf_tensor_at(handle, i)) != ffi.NULL:
            name, kind = _text(t.name, t.name_length), _text(t.type)
            tensors[name] = Tensor(name, kind, _shape(t), int(t.offset), int(t.bytes))
            i += 1
        return tensors

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32, dequantized; KeyError without it, UnsupportedError for its type."""
        import numpy as np

        number = lib.l2c_gguf_find_tensor(self._handle, name.encode())
        if number == _NOT_FOUND:
            raise KeyError(name)
        t = lib.l2c_gguf_tensor_at(self._handle, number)
        out = np.empty(_shape(t), np.float32)
        rows, err = out.reshape(-1, t.dims[0]), new_error()
        for i, row in enumerate(rows):
            pointer = ffi.cast("float *", row.ctypes.data)
            check(lib.l2c_gguf_tensor_row(self._handle, number, i, pointer, err), err, self.path)
        return out

    def close(self) -> None:
        """Gives the memory back; further use raises ClosedError."""
        self._gguf = None


def _shape(t: Any) -> tuple[int, ...]:
    return tuple(ffi.unpack(t.dims, t.n_dims)[::-1])


def _text(characters: Any, length: int = -1) -> str:
    return str(ffi.string(characters, length).decode())
