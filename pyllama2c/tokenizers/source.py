"""Where a model's tokenizer and chat template come from, and how they are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyllama2c.engine.config import Config
from pyllama2c.errors import CheckpointError
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.llama2c import Tokenizer

if TYPE_CHECKING:
    from pyllama2c.files.gguf import Gguf


class TokenizerSource:
    """A model's tokenizer and chat template, read on first use: a model fed ids needs neither.

    tokenizer: the path of a tokenizer.bin, which is opened at once. Without one, the tokenizer is
    the GGUF file's own, or the one at the path that `find` returns for a vocab_size. Only GGUF
    files, opened by `open_gguf`, have chat templates.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: str | os.PathLike[str] | None,
        find: Callable[[int], Path],
        open_gguf: Callable[[], Gguf],
    ):
        self._vocab_size, self._find = config.vocab_size, find
        self._open_gguf = open_gguf if config.file == "gguf" else None
        self._lock = threading.Lock()
        self._tokenizer: BaseTokenizer | None = None
        self._template: str | None = None
        self._template_read = False
        if tokenizer:
            self._tokenizer = Tokenizer(tokenizer, self._vocab_size)

    @property
    def tokenizer(self) -> BaseTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._read_tokenizer()
            return self._tokenizer

    def _read_tokenizer(self) -> BaseTokenizer:
        if self._open_gguf is not None:
            from pyllama2c.tokenizers.gguf import has_tokenizer, read_tokenizer

            with self._open_gguf() as gguf:
                if has_tokenizer(gguf):
                    return read_tokenizer(gguf, self._vocab_size)
        return Tokenizer(self._find(self._vocab_size), self._vocab_size)

    @property
    def chat_template(self) -> str | None:
        with self._lock:
            if not self._template_read and self._open_gguf is not None:
                with self._open_gguf() as gguf:
                    template = gguf.get("tokenizer.chat_template")
                if not isinstance(template, (str, type(None))):
                    raise CheckpointError(f"{gguf.path}: tokenizer.chat_template is not text")
                self._template = template or None
            self._template_read = True
            return self._template
