"""pyllama2c: Llama inference in pure C, in the spirit of llama2.c.

>>> from pyllama2c import Llama
>>> for piece in Llama().generate("Once upon a time", seed=42):
...     print(piece, end="", flush=True)
"""

__version__ = "0.1.0"

from pyllama2c.batch import Completion
from pyllama2c.config import Config
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
    DownloadError,
    Llama2cError,
    NonFiniteLogitsError,
    OutOfMemoryError,
    StoryFileError,
    TokenizerError,
    UnknownModelError,
    UnsupportedError,
)
from pyllama2c.generation import Generation, GenerationStats
from pyllama2c.model import Llama
from pyllama2c.score import Score
from pyllama2c.tokenizer import BaseTokenizer, Tokenizer

__all__ = [
    "BaseTokenizer",
    "BusyError",
    "CacheFileError",
    "CancelledError",
    "ChatTemplateError",
    "ChatTemplateWarning",
    "CheckpointError",
    "CheckpointWarning",
    "ClosedError",
    "Completion",
    "Config",
    "ContextLengthError",
    "DownloadError",
    "Generation",
    "GenerationStats",
    "Llama",
    "Llama2cError",
    "NonFiniteLogitsError",
    "OutOfMemoryError",
    "Score",
    "StoryFileError",
    "Tokenizer",
    "TokenizerError",
    "UnknownModelError",
    "UnsupportedError",
]
