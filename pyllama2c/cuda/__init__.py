"""The kernels that a graphics card runs, as text: PTX, which its driver compiles for it.

kernels.ptx.xz is made from csrc/cuda/kernels.cu by csrc/cuda/build_ptx.py: a line of JSON that says
from what and how, then the texts, one for each compute capability that brought instructions we use.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from importlib.resources import files

NAME = "kernels.ptx.xz"


@dataclass(frozen=True)
class Kernels:
    sources: str
    """SHA-256 of the sources"""
    flags: tuple[str, ...]
    """what nvcc was told"""
    nvcc: str
    """its version"""
    texts: dict[int, bytes]
    """PTX by the least capability that takes it: 75 for compute capability 7.5"""

    def for_capability(self, capability: int) -> bytes | None:
        """The PTX for a card; None where it is older than any text."""
        fitting = [least for least in self.texts if least <= capability]
        return self.texts[max(fitting)] if fitting else None


def pack(kernels: Kernels) -> bytes:
    header = {
        "sources": kernels.sources,
        "flags": kernels.flags,
        "nvcc": kernels.nvcc,
        "texts": {str(least): len(text) for least, text in kernels.texts.items()},
    }
    whole = json.dumps(header).encode() + b"\n" + b"".join(kernels.texts.values())
    return lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)


def unpack(data: bytes) -> Kernels:
    head, _, rest = lzma.decompress(data).partition(b"\n")
    header = json.loads(head)
    texts = {}
    for least, size in header["texts"].items():
        texts[int(least)], rest = rest[:size], rest[size:]
    return Kernels(header["sources"], tuple(header["flags"]), header["nvcc"], texts)


def load() -> Kernels:
    """The kernels of this installation."""
    return unpack((files(__package__) / NAME).read_bytes())
