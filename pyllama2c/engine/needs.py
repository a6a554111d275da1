"""The memory that a model needs, by its header alone: in one dtype, in all that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from pyllama2c._ffi import KV_DTYPES, lib
from pyllama2c.engine.config import read_config
from pyllama2c.engine.memory import Limit
from pyllama2c.errors import UnsupportedError

OVERHEAD = 32
"""a 32nd is added for what is not counted: page tables, the tokenizer, Python's own objects"""

_SMALLEST_CONTEXT = 256
"""a shorter one is not recommended"""

RUNQ = "runq"
"""the dtype key of the int8 of a version 2 file as they lie in it, for the kernels of that name"""

_DTYPE_KEYS = ("auto", "float32", "int8", "int4", RUNQ)
_KV_BYTES = {"float32": 4, "float16": 2}


class Needs(NamedTuple):
    """The memory that a model needs in one dtype. Sizes are bytes."""

    dtype: str
    """of the weights in memory"""
    weights: int
    sweep: int
    """weights read per token"""
    mapped: bool
    """weights stay in the mapped file: the system can drop their pages and read them again"""
    opening: int
    """pages of the file that are also in memory, at most, while the model is opened"""
    address_space: int
    """of file and weights, at most"""
    fixed: int
    """of a session of one sequence, whatever its context: scratch"""
    per_position: int
    """of a session, for each position of its context"""
    cache_per_position: int
    """of that, keys and values"""

    def session(self, context: int) -> int:
        """One story of the whole context."""
        return self.fixed + context * self.per_position

    def cache(self, context: int) -> int:
        return context * self.cache_per_position

    def scratch(self, context: int) -> int:
        return self.session(context) - self.cache(context)

    def total(self, context: int) -> int:
        return self.weights + self.session(context)

    def asks(self, limit: Limit, context: int) -> int:
        """Bytes that count towards a limit."""
        taken = (0 if self.mapped else self.weights) + self.session(context)
        if limit.kind == "address space":
            taken = max(taken + (self.weights if self.mapped else 0), self.address_space)
        return taken + taken // OVERHEAD

    def obstacle(self, against: list[Limit], context: int) -> Limit | None:
        """The tightest limit that it does not fit in."""
        broken = [limit for limit in against if self.asks(limit, context) > limit.free]
        return min(broken, key=lambda limit: limit.free, default=None)

    def largest_context(self, against: list[Limit], context: int) -> int:
        """Positions up to `context` that fit, in round numbers; 0 where too few do."""
        low, high = 0, context // _SMALLEST_CONTEXT
        while low < high:
            middle = (low + high + 1) // 2
            if self.obstacle(against, middle * _SMALLEST_CONTEXT) is None:
                low = middle
            else:
                high = middle - 1
        return low * _SMALLEST_CONTEXT


def _needs(header: Any, kv_dtype: str, threads: int, on_card: bool) -> Needs:
    """Of a card's memory, or of this process's with so many threads."""
    c, kv = read_config(lib.l2c_model_config(header)), KV_DTYPES[kv_dtype]
    # In steps of 64 positions the size is linear.
    if on_card:
        weights, mapped, opening = lib.l2c_model_device_bytes(header), False, 0
        space = weights
        first, both = (lib.l2c_session_device_bytes(header, 1, n, kv, 0) for n in (64, 128))
    else:
        weights, mapped = lib.l2c_model_bytes(header), bool(lib.l2c_model_is_mapped(header))
        opening = lib.l2c_model_opening_bytes(header)
        space = lib.l2c_model_file_bytes(header) + (0 if mapped else weights)
        first, both = (lib.l2c_session_bytes(header, 1, n, kv, threads) for n in (64, 128))
    return Needs(
        dtype=c.dtype,
        weights=weights,
        sweep=lib.l2c_model_sweep_bytes(header),
        mapped=mapped,
        opening=opening,
        address_space=space,
        fixed=first - (both - first),
        per_position=(both - first) // 64,
        cache_per_position=2 * c.n_layers * c.n_kv_heads * c.head_size * _KV_BYTES[kv_dtype],
    )


class NeedsByDtype(Mapping[tuple[str, str], Needs]):
    """By dtype and cache type, without what the file cannot give. The header is read for a dtype on
    first use."""

    def __init__(self, read_header: Callable[[str], Any], threads: int, on_card: bool) -> None:
        self._header = cache(read_header)
        self._threads, self._on_card = threads, on_card

    def __getitem__(self, key: tuple[str, str]) -> Needs:
        dtype, kv_dtype = key
        if dtype not in _DTYPE_KEYS or kv_dtype not in KV_DTYPES or key == (RUNQ, "float16"):
            raise KeyError(key)
        if dtype == RUNQ and self._on_card:
            raise KeyError(key)
        try:
            header = self._header(dtype)
        except UnsupportedError:
            raise KeyError(key) from None
        return _needs(header, kv_dtype, self._threads, self._on_card)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (key for key in product(_DTYPE_KEYS, KV_DTYPES) if key in self)

    def __len__(self) -> int:
        return len(list(self))
