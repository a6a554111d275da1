"""A story told by a model: a function that other processes can import."""

from __future__ import annotations

import os

from pyllama2c import Llama


def told(llama: Llama, seed: int) -> tuple[str, int, str, int]:
    """Its text, the model's context and kernels, and the process that told it."""
    story = llama.generate("ab", seed=seed, max_tokens=20)
    return story.read(), llama.config.seq_len, llama.isa, os.getpid()
