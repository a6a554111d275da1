"""An open model: its files, its engine and its tokenizer; what it computes is Llama's."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar

from pyllama2c import dialects, pretrained, validate
from pyllama2c.dialects import suggests_arguments
from pyllama2c.engine.config import warn_of_groups
from pyllama2c.engine.engine import aligned, open_buffer, open_file
from pyllama2c.engine.options import Options
from pyllama2c.files import hub
from pyllama2c.files.gguf import Gguf
from pyllama2c.generation.constraint import Grammars
from pyllama2c.handle import ClosableHandle
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.source import TokenizerSource

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyllama2c.engine.options import Dtype, Isa, KvDtype, OpenOptions

_Self = TypeVar("_Self", bound="OpenModel")
_Path = str | os.PathLike[str] | None


class OpenModel(ClosableHandle):
    """What Llama is before anything is asked of it; its docstring says what the arguments are."""

    @suggests_arguments(dialects.MODEL_ARGUMENTS)
    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        *,
        dtype: Dtype = "auto",
        context: int | None = None,
        kv_dtype: KvDtype = "float32",
        speculative: bool | Literal["auto"] = "auto",
        threads: int | None = None,
        isa: Isa | None = None,
        device: str | None = None,
    ):
        options = Options(dtype, context, kv_dtype, speculative, threads, isa, device)
        validate.file_path("tokenizer", tokenizer, optional=True)
        files = pretrained.find_model(model)
        self.path = str(files.checkpoint)
        self._arguments: tuple[_Path, _Path, Options] | None
        self._arguments = _absolute(model), _absolute(tokenizer), options
        self._engine = open_file(self.path, options)
        self._set_up(tokenizer, files.find_tokenizer, partial(Gguf, self.path))

    @classmethod
    def from_pretrained(
        cls: type[_Self],
        repo_id: str,
        filename: str | None = None,
        revision: str | None = None,
        **options: Unpack[OpenOptions],
    ) -> _Self:
        """The model "owner/name" on the Hugging Face hub; `options` are those of Llama.

        `filename` is a .gguf or .bin file, or a pattern that matches one ("*q8_0.gguf"); None: the
        folder, converted once, or its only GGUF file. `revision` is a branch, tag or commit (None:
        main). Needs huggingface_hub (`pip install 'pyllama2c[hub]'`); see docs/hub.md.
        """
        return cls(pretrained.hub_name(repo_id, filename, revision), **options)

    @classmethod
    @suggests_arguments(dialects.MODEL_ARGUMENTS)
    def from_buffer(
        cls: type[_Self],
        checkpoint: Any,
        tokenizer: str | os.PathLike[str] | None = None,
        *,
        dtype: Dtype = "auto",
        context: int | None = None,
        kv_dtype: KvDtype = "float32",
        speculative: bool | Literal["auto"] = "auto",
        threads: int | None = None,
        isa: Isa | None = None,
        device: str | None = None,
    ) -> _Self:
        """A model from a checkpoint in memory: any contiguous buffer, kept as long as the model, or
        copied where it does not begin at a multiple of 4 bytes.

        Without a tokenizer (this argument, or one inside the file) only `logits`, `score`,
        `score_batch`, `save_cache` and `load_cache` work, and only on token ids.
        """
        options = Options(dtype, context, kv_dtype, speculative, threads, isa, device)
        validate.file_path("tokenizer", tokenizer, optional=True)
        checkpoint = aligned(validate.contiguous("checkpoint", checkpoint))
        self = cls.__new__(cls)
        self.path = "<memory>"
        self._arguments = None
        self._engine = open_buffer(checkpoint, options)
        find_tokenizer = hub.no_tokenizer(self.path)
        self._set_up(tokenizer, find_tokenizer, partial(Gguf.from_buffer, checkpoint))
        return self

    def _set_up(
        self, tokenizer: _Path, find: Callable[[int], Path], open_gguf: Callable[[], Gguf]
    ) -> None:
        engine = self._engine
        self.config = engine.config
        self.n_parameters = engine.n_parameters
        self.sweep_bytes = engine.sweep_bytes
        """bytes of weights that decoding one token reads"""
        self.max_batch = engine.max_batch
        """stories that `generate_batch` generates at a time, at most"""
        self.isa, self.threads, self.device = engine.isa, engine.threads, engine.device
        warn_of_groups(self.config, self.path)
        self._tokenizer_source = TokenizerSource(self.config, tokenizer, find, open_gguf)
        self._grammars = Grammars(self._tokenizer_source)

    @property
    def tokenizer(self) -> BaseTokenizer:
        """The model's tokenizer, loaded on first use."""
        self._engine.check_open()
        return self._tokenizer_source.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of its conversations, where the file has one (GGUF)."""
        self._engine.check_open()
        return self._tokenizer_source.chat_template

    def close(self) -> None:
        """Gives the memory back; further use raises ClosedError.

        Stories in progress keep what they need until they end.
        """
        self._engine.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """A copy, here or in another process, opens the same model with the same arguments. Files
        are mapped: the weights of copies are in memory once, unless they are converted to `dtype`.
        """
        self._engine.check_open()
        if self._arguments is None:
            raise TypeError(
                f"a {type(self).__name__} made by from_buffer cannot be copied or pickled: nobody "
                "else has its buffer; write the checkpoint to a file"
            )
        return _reopen, (type(self), *self._arguments)

    def __repr__(self) -> str:
        size = f"{self.n_parameters:,} parameters"
        return f"Llama({self.path!r}, {size}, isa={self.isa!r}, threads={self.threads})"


def _absolute(path: _Path) -> _Path:
    """A relative path is another file in a process that works elsewhere; a name is not."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


def _reopen(cls: type[_Self], model: _Path, tokenizer: _Path, options: Options) -> _Self:
    return cls(model, tokenizer, **vars(options))
