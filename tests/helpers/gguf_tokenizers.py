"""Small tokenizers of both kinds that GGUF files have."""

from __future__ import annotations

from gguf_files import File, Key
from tokenizer_keys import byte_level_keys, sentencepiece_keys

from pyllama2c.files.gguf import Gguf
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.gguf import read_tokenizer

KINDS = {"llama": sentencepiece_keys, "gpt2": byte_level_keys}
IM_START = {"llama": 281, "gpt2": 1}


def read(keys: list[Key], size: int = 300) -> BaseTokenizer:
    with Gguf.from_buffer(File(keys).build()) as gguf:
        return read_tokenizer(gguf, size)


TOKENIZERS = {name: read(keys()) for name, keys in KINDS.items()}
