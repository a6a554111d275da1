"""pyllama2c: Llama inference in pure C, in the spirit of llama2.c.

>>> from pyllama2c import Llama
>>> for piece in Llama().generate("Once upon a time", seed=42):
...     print(piece, end="", flush=True)
"""

__version__ = "0.1.0"

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllama2c.chat.llama2 import Message
    from pyllama2c.engine.config import Config
    from pyllama2c.errors import (
        BusyError,
        CacheFileError,
        CancelledError,
        ChatTemplateError,
        ChatTemplateWarning,
        CheckpointError,
        CheckpointWarning,
        ClosedError,
        ContextLengthError,
        DeviceError,
        DownloadError,
        GrammarError,
        Llama2cError,
        NonFiniteLogitsError,
        OutOfMemoryError,
        StoryFileError,
        TokenizerError,
        UnknownModelError,
        UnsupportedError,
    )
    from pyllama2c.generation.batch_story import Completion
    from pyllama2c.generation.completions import Completions
    from pyllama2c.generation.logprobs import TokenLogprob
    from pyllama2c.generation.parameters import BatchParameters, LogitsProcessor, Parameters
    from pyllama2c.generation.score import Score
    from pyllama2c.generation.stats import GenerationStats
    from pyllama2c.generation.story import Generation
    from pyllama2c.model import Llama
    from pyllama2c.tokenizers.base import BaseTokenizer
    from pyllama2c.tokenizers.llama2c import Tokenizer

# In the source folder, from which `pip install .` put the built engine elsewhere.
__path__ = pkgutil.extend_path(__path__, __name__)

__all__ = [
    "BaseTokenizer",
    "BatchParameters",
    "BusyError",
    "CacheFileError",
    "CancelledError",
    "ChatTemplateError",
    "ChatTemplateWarning",
    "CheckpointError",
    "CheckpointWarning",
    "ClosedError",
    "Completion",
    "Completions",
    "Config",
    "ContextLengthError",
    "DeviceError",
    "DownloadError",
    "Generation",
    "GenerationStats",
    "GrammarError",
    "Llama",
    "Llama2cError",
    "LogitsProcessor",
    "Message",
    "NonFiniteLogitsError",
    "OutOfMemoryError",
    "Parameters",
    "Score",
    "StoryFileError",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
    "UnknownModelError",
    "UnsupportedError",
]

_MODULES = (
    "pyllama2c.errors",
    "pyllama2c.model",
    "pyllama2c.engine.config",
    "pyllama2c.chat.llama2",
    "pyllama2c.generation.batch_story",
    "pyllama2c.generation.completions",
    "pyllama2c.generation.logprobs",
    "pyllama2c.generation.parameters",
    "pyllama2c.generation.score",
    "pyllama2c.generation.stats",
    "pyllama2c.generation.story",
    "pyllama2c.tokenizers.base",
    "pyllama2c.tokenizers.llama2c",
)


if not TYPE_CHECKING:  # which would then take every name for one that is there

    def __getattr__(name):
        # Imported when it is asked for: --help need not wait for NumPy, nor Ctrl-C.
        if name in __all__:
            for module in map(import_module, _MODULES):
                if hasattr(module, name):
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        dialects = import_module("pyllama2c.dialects")
        ours = dialects.in_our_words(name, dialects.PACKAGE)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{ours}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
