"""Exceptions. All derive from Llama2cError, and from the built-in that Python users expect."""

from __future__ import annotations

import os
import sys
import warnings


def warn(message: str, category: type[Warning]) -> None:
    """A warning that points at the line outside this package that led to it."""
    level, frame = 2, sys._getframe(1)  # of this function, and of its caller
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, level)


def _is_ours(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] == "pyllama2c"


def in_words(error: BaseException) -> str:
    """An exception's message; of an OSError the file and the reason, without errno."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    name = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
    return f"{name}: {error.strerror}"


class Llama2cError(Exception):
    """Base of every exception that pyllama2c defines."""


class CheckpointError(Llama2cError, ValueError):
    """A model file is neither a llama2.c checkpoint nor GGUF, is damaged, or is cut short."""


# OSError first among the bases: its constructor is the one that knows errno and filename.
class CheckpointFileError(OSError, CheckpointError):
    """A model file cannot be read; `errno` and `filename` are set."""

    def __str__(self) -> str:
        return in_words(self)


class CheckpointNotFoundError(FileNotFoundError, CheckpointFileError):
    """There is no such model file."""


class TokenizerError(Llama2cError, ValueError):
    """A tokenizer file is damaged or unfit for the model; text or ids cannot be en- or decoded."""


class TokenizerFileError(OSError, TokenizerError):
    """A tokenizer file cannot be read; `errno` and `filename` are set."""

    def __str__(self) -> str:
        return in_words(self)


class TokenizerNotFoundError(FileNotFoundError, TokenizerFileError):
    """There is no such tokenizer file."""


class ChatTemplateError(Llama2cError, ValueError):
    """A file's chat template is wrong, refuses the messages, or asks for too much."""


class GrammarError(Llama2cError, ValueError):
    """A JSON Schema, regular expression or grammar is wrong, unsupported or past a limit."""


class ContextLengthError(Llama2cError, ValueError):
    """The prompt does not fit the model's context."""


class CacheFileError(Llama2cError, ValueError):
    """A file is not a saved prompt, is damaged, or belongs to another model."""


class StoryFileError(Llama2cError, ValueError):
    """A story file holds something other than the stories that are to be continued."""


class NonFiniteLogitsError(Llama2cError, ArithmeticError):
    """The model computed NaN or infinity (damaged weights), or every token was forbidden."""


class OutOfMemoryError(Llama2cError, MemoryError):
    """There is not enough memory; the message says how much is needed."""


class UnsupportedError(Llama2cError, NotImplementedError):
    """Valid, but not supported on this machine or by this build."""


class DeviceError(Llama2cError, RuntimeError):
    """A graphics card or its driver failed, or was used in a child of the process that opened it.

    After a failed computation every model on the card raises it, and can only be closed.
    """


class ClosedError(Llama2cError, ValueError):
    """The object was used after it was closed."""


class BusyError(Llama2cError, RuntimeError):
    """One story or session was used from two threads at once."""


class CancelledError(Llama2cError):
    """A computation was cancelled from another thread."""


class UnknownModelError(Llama2cError, ValueError):
    """Neither an existing file nor the name of a known model."""


class DownloadError(Llama2cError, OSError):
    """A known model could not be downloaded; the message says how to fetch it by hand."""


class CheckpointWarning(UserWarning):
    """A model file loads, but probably does not say what its maker meant."""


class ChatTemplateWarning(UserWarning):
    """A chat template has no place for a message, which was put elsewhere or left out."""
