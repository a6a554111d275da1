"""The engine as a WebAssembly module, for pages that tell stories without a server.

engine.wasm.xz is made from csrc by csrc/wasm/build_wasm.py. It imports nothing and exports what
csrc/llama2c.h declares, malloc and free.
"""

from __future__ import annotations

import lzma
from importlib.resources import files

NAME = "engine.wasm.xz"


def load() -> bytes:
    """The module of this installation."""
    return lzma.decompress((files(__package__) / NAME).read_bytes())
