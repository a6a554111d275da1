"""The engine as a WebAssembly module, for pages that tell stories without a server.

engine.wasm.xz is made from csrc by csrc/wasm/build_wasm.py. It imports nothing and exports what
csrc/llama2c.h declares, malloc and free. The scripts beside it answer a page's questions with it.
"""

from __future__ import annotations

import lzma
from importlib.resources import files

NAME = "engine.wasm.xz"
_WORKER = ("layout", "library", "tokenizer", "choice", "engine", "worker")


def load() -> bytes:
    """The module of this installation."""
    return lzma.decompress((files(__package__) / NAME).read_bytes())


def worker() -> str:
    """The script of a Worker that computes."""
    return "".join(_script(name) for name in _WORKER)


def page_engine() -> str:
    """What a page's own script asks in the place of a server."""
    return _script("page_engine")


def _script(name: str) -> str:
    return (files(__package__) / f"{name}.js").read_text(encoding="utf-8")
