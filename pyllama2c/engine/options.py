"""How a model is opened: what Llama's keyword arguments say."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Literal, TypedDict

from pyllama2c import validate
from pyllama2c._ffi import DTYPES, ISA_NAMES, KV_DTYPES
from pyllama2c.engine.device import device_number

_MAX_THREADS = 256
"""the limit of l2c_pool_create"""

Dtype = Literal["auto", "float32", "int8", "int4"]
KvDtype = Literal["float32", "float16"]
Isa = Literal["auto", "scalar", "avx2", "avxvnni", "avx512", "neon", "dotprod", "i8mm", "runq"]


class OpenOptions(TypedDict, total=False):
    """Keyword arguments of Llama, for functions that pass them on."""

    tokenizer: str | os.PathLike[str] | None
    dtype: Dtype
    context: int | None
    kv_dtype: KvDtype
    speculative: bool | Literal["auto"]
    threads: int | None
    isa: Isa | None
    device: str | None


@dataclass(frozen=True)
class Options:
    """Llama's keyword arguments, described there; checked as far as that needs no model."""

    dtype: Dtype = "auto"
    context: int | None = None
    kv_dtype: KvDtype = "float32"
    speculative: bool | Literal["auto"] = "auto"
    threads: int | None = None
    isa: Isa | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        validate.one_of("dtype", self.dtype, DTYPES)
        if self.context is not None:
            limits = "1 to the model's own"  # which plan.py knows
            context = validate.integer("context", self.context, -sys.maxsize, sys.maxsize, limits)
            object.__setattr__(self, "context", context)  # NumPy's integers overflow
        validate.one_of("kv_dtype", self.kv_dtype, KV_DTYPES)
        is_auto = isinstance(self.speculative, str) and self.speculative == "auto"
        if not (is_auto or isinstance(self.speculative, bool)):
            kind = ValueError if isinstance(self.speculative, str) else TypeError
            needed = "True, False or 'auto'"
            raise validate.wrong("speculative", self.speculative, needed, kind)
        if self.threads is not None:
            threads = validate.integer("threads", self.threads, 1, _MAX_THREADS)
            object.__setattr__(self, "threads", threads)
        if self.isa is not None:
            validate.one_of("isa", self.isa, ISA_NAMES)
        if not isinstance(self.device, (str, type(None))):
            raise validate.wrong("device", self.device, '"cpu", "cuda" or "cuda:N"', TypeError)
        device_number(self.device)

    @property
    def card(self) -> int | None:
        """The number of the graphics card; None where the processor computes."""
        return device_number(self.device)
