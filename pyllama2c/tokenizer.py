"""llama2.c's tokenizer.bin: text to token ids and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from pyllama2c._ffi import TOKENIZER, check, ffi, lib, new_error
from pyllama2c.errors import ClosedError, TokenizerError

BOS: int = lib.L2C_BOS
EOS: int = lib.L2C_EOS


class Tokenizer:
    """Byte-pair encoding as SentencePiece does it, with byte fallback.

    `path` is a tokenizer.bin as llama2.c's tokenizer.py writes it. `vocab_size`, where given, is
    how many pieces the model needs; a file with another number is refused.

    Raises TokenizerError (a ValueError) for a damaged or unfitting file; where it cannot be read,
    one that is an OSError as well.
    """

    def __init__(self, path: str | os.PathLike[str], vocab_size: int | None = None):
        self.path = os.fspath(path)
        out, err = ffi.new("l2c_tokenizer **"), new_error()
        status = lib.l2c_tokenizer_open(os.fsencode(self.path), vocab_size or 0, out, err)
        check(status, err, self.path, TOKENIZER)
        self._handle: Any = ffi.gc(out[0], lib.l2c_tokenizer_free)
        self.vocab_size: int = lib.l2c_tokenizer_vocab_size(self._handle)
        self._pieces: dict[int, bytes] = {}  # those seen so far

    bos_id = BOS
    eos_id = EOS

    def encode(self, text: str | bytes, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of `text`; BOS and EOS only where asked for.

        The ids are SentencePiece's: a space is put before the text unless it is empty, `<s>` or
        `<0x41>` in it are just characters, and characters outside the vocabulary become byte
        tokens. Bytes need not be valid UTF-8. Lone surrogates in a str raise TokenizerError.
        """
        handle = self._open_handle()
        if isinstance(text, str):
            try:
                text = text.encode()
            except UnicodeEncodeError as error:
                raise TokenizerError(f"text cannot be encoded as UTF-8: {error}") from None
        tokens, n, err = ffi.new("int32_t[]", len(text) + 1), ffi.new("size_t *"), new_error()
        check(lib.l2c_tokenizer_encode(handle, text, len(text), tokens, n, err), err)
        ids: list[int] = ffi.unpack(tokens, n[0]) if n[0] else []
        return [BOS] * bos + ids + [EOS] * eos

    def piece(self, token: int) -> bytes:
        """The bytes that one token stands for: none for BOS and EOS, one for a byte piece."""
        handle = self._open_handle()
        known = self._pieces.get(token)
        if known is not None:
            return known
        data, length = ffi.new("char **"), ffi.new("size_t *")
        if not 0 <= token < self.vocab_size or lib.l2c_tokenizer_piece(handle, token, data, length):
            raise TokenizerError(f"token {token} is outside the vocabulary of {self.vocab_size}")
        self._pieces[token] = piece = bytes(ffi.buffer(data[0], length[0]))
        return piece

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes that `tokens` stand for, without the space that `encode` put in front."""
        parts: list[bytes] = []
        at_start = True
        for token in tokens:
            piece = self.piece(token)
            if at_start:
                piece = piece.removeprefix(b" ")
            parts.append(piece)
            at_start = token == BOS or (at_start and token == EOS)
        return b"".join(parts)

    def decode(self, tokens: Sequence[int]) -> str:
        """`decode_bytes` as text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def _open_handle(self) -> Any:
        if self._handle is None:
            raise ClosedError("the tokenizer is closed")
        return self._handle

    def close(self) -> None:
        """Frees the tokenizer; further use raises ClosedError."""
        # Dropped rather than freed: a generation in another thread may still hold it.
        self._handle = None

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tokenizer({self.path!r}, vocab_size={self.vocab_size})"
