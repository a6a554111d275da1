"""llama2.c's tokenizer.bin: SentencePiece's byte-pair encoding, in C."""

from __future__ import annotations

import os
from typing import Any

from pyllama2c import validate
from pyllama2c._ffi import TOKENIZER, check, ffi, lib, new_error
from pyllama2c.errors import ClosedError, TokenizerError
from pyllama2c.files.recognize import TOKENIZER_FILE, expect
from pyllama2c.tokenizers.base import BaseTokenizer


class Tokenizer(BaseTokenizer):
    """Byte-pair encoding as SentencePiece does it, with byte fallback.

    `path` is a tokenizer.bin as llama2.c's tokenizer.py writes it. `vocab_size`, where given, is
    how many pieces the model needs; a file with a different number is refused. The ids are
    SentencePiece's: a space is prepended to a text unless it is empty, and characters outside the
    vocabulary become byte tokens. The file is read into memory: it may change afterwards.

    Raises TokenizerError (a ValueError) for a file that is damaged or does not fit the model; for
    one that cannot be read, a TokenizerError that is an OSError as well.
    """

    adds_space = True

    def __init__(self, path: str | os.PathLike[str], vocab_size: int | None = None):
        super().__init__()
        validate.file_path("path", path)
        if vocab_size is not None:
            validate.integer("vocab_size", vocab_size, 1, 2**31 - 1)
        self.path = os.fspath(path)
        expect(self.path, TOKENIZER_FILE, TokenizerError)
        out, err = ffi.new("l2c_tokenizer **"), new_error()
        status = lib.l2c_tokenizer_open(os.fsencode(self.path), vocab_size or 0, out, err)
        self._take(status, out, err)
        self.ends = frozenset((self.bos_id, self.eos_id))

    def _take(self, status: int, out: Any, err: Any) -> None:
        """Takes ownership of the handle, unless opening failed."""
        check(status, err, self.path, TOKENIZER)
        self._handle: Any = ffi.gc(out[0], lib.l2c_tokenizer_free)
        self.vocab_size: int = lib.l2c_tokenizer_vocab_size(self._handle)
        self.bos_id: int = lib.l2c_tokenizer_bos(self._handle)
        self.eos_id: int = lib.l2c_tokenizer_eos(self._handle)

    def _open_handle(self) -> Any:
        handle = self._handle
        if handle is None:
            raise ClosedError("the tokenizer is closed")
        return handle

    def _encode_text(self, text: str, space_first: bool) -> list[int]:
        data = text.encode("utf-8", "surrogateescape")
        tokens = ffi.new("int32_t[]", 3 * (len(data) + 1))
        n, err = ffi.new("size_t *"), new_error()
        handle = self._open_handle()
        status = lib.l2c_tokenizer_encode(handle, data, len(data), space_first, tokens, n, err)
        check(status, err, self.path, TOKENIZER)
        return ffi.unpack(tokens, n[0]) if n[0] else []

    def _piece(self, token: int) -> bytes:
        data, length = ffi.new("char **"), ffi.new("size_t *")
        lib.l2c_tokenizer_piece(self._open_handle(), token, data, length)
        return bytes(ffi.buffer(data[0], length[0]))

    def close(self) -> None:
        """Frees the tokenizer; further use raises ClosedError."""
        super().close()
        # Dropped rather than freed: a generation in another thread may still hold it.
        self._handle = None
