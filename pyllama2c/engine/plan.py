"""Will it fit? The memory that a model needs, by its header alone, against what is free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from pyllama2c._ffi import DTYPES, KV_DTYPES, check, ffi, lib, new_error
from pyllama2c.engine.config import Config, read_config
from pyllama2c.engine.memory import Limit
from pyllama2c.engine.options import Options
from pyllama2c.engine.workers import batch_threads
from pyllama2c.errors import CheckpointError, OutOfMemoryError, UnsupportedError
from pyllama2c.files.recognize import MODEL, expect, expect_model

_OVERHEAD = 32
"""a 32nd is added for what is not counted: page tables, the tokenizer, Python's own objects"""

_SMALLEST_CONTEXT = 256
"""a shorter one is not recommended"""

RUNQ = "runq"
"""in Plan.needs: the int8 of a version 2 file as they lie in it, for the kernels of that name"""

_DTYPES = ("auto", "float32", "int8", "int4", RUNQ)
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
        return taken + taken // _OVERHEAD

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


class _NeedsByDtype(Mapping[tuple[str, str], Needs]):
    """By dtype and cache type, without what the file cannot give. The header is read for a dtype on
    first use."""

    def __init__(self, read_header: Callable[[str], Any], threads: int | None) -> None:
        self._header = cache(read_header)
        self._threads = threads

    def __getitem__(self, key: tuple[str, str]) -> Needs:
        dtype, kv_dtype = key
        if dtype not in _DTYPES or kv_dtype not in KV_DTYPES or key == (RUNQ, "float16"):
            raise KeyError(key)
        if dtype == RUNQ and self._threads is None:
            raise KeyError(key)
        try:
            header = self._header(dtype)
        except UnsupportedError:
            raise KeyError(key) from None
        return _needs(header, kv_dtype, self._threads)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (key for key in product(_DTYPES, KV_DTYPES) if key in self)

    def __len__(self) -> int:
        return len(list(self))


class Plan(NamedTuple):
    """A model that has not been opened."""

    config: Config
    """its own, with dtype "auto" """
    parameters: int
    file_bytes: int
    needs: Mapping[tuple[str, str], Needs]


def _needs(header: Any, kv_dtype: str, threads: int | None) -> Needs:
    """`threads` None: of a card's memory."""
    c, kv = read_config(lib.l2c_model_config(header)), KV_DTYPES[kv_dtype]
    if threads is None:
        weights, mapped, opening, file = lib.l2c_model_device_bytes(header), False, 0, 0
    else:
        weights, mapped = lib.l2c_model_bytes(header), bool(lib.l2c_model_is_mapped(header))
        opening, file = lib.l2c_model_opening_bytes(header), lib.l2c_model_file_bytes(header)
    # In steps of 64 positions the size is linear.
    first, both = (
        lib.l2c_session_device_bytes(header, 1, context, kv, 0)
        if threads is None
        else lib.l2c_session_bytes(header, 1, context, kv, threads)
        for context in (64, 128)
    )
    return Needs(
        dtype=c.dtype,
        weights=weights,
        sweep=lib.l2c_model_sweep_bytes(header),
        mapped=mapped,
        opening=opening,
        address_space=file + (0 if mapped else weights),
        fixed=first - (both - first),
        per_position=(both - first) // 64,
        cache_per_position=2 * c.n_layers * c.n_kv_heads * c.head_size * _KV_BYTES[kv_dtype],
    )


def _plan(call: Any, arguments: tuple[Any, ...], options: Options, path: str) -> Plan:
    def read_header(dtype: str) -> Any:
        out, err = ffi.new("l2c_model **"), new_error()
        number = lib.L2C_DTYPE_FILE if dtype == RUNQ else DTYPES[dtype]
        check(call(*arguments, number, out, err), err, path)
        return ffi.gc(out[0], lib.l2c_model_free)

    header, threads = read_header("auto"), options.threads or batch_threads()
    return Plan(
        config=read_config(lib.l2c_model_config(header)),
        parameters=lib.l2c_model_parameters(header),
        file_bytes=lib.l2c_model_file_bytes(header),
        needs=_NeedsByDtype(read_header, threads if options.card is None else None),
    )


def plan_file(path: str, options: Options) -> Plan:
    """Reads a model file's header only; the errors are those of opening it."""
    expect(path, MODEL, CheckpointError)
    return _plan(lib.l2c_model_open_header, (os.fsencode(path),), options, path)


def plan_buffer(buffer: Any, options: Options, path: str = "<memory>") -> Plan:
    """The same of a file in memory, a cffi buffer; `path` is what errors call it."""
    expect_model(buffer)
    return _plan(lib.l2c_model_open_header_memory, (buffer, len(buffer)), options, path)


def size(n: int) -> str:
    """Bytes for reading: 7.2 GB, 310 MB, 45 kB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if n >= unit:
            return f"{n / unit:,.{0 if n >= 100 * unit else 1 if n >= 10 * unit else 2}f} {name}"
    return f"{n / 1000:,.0f} kB"


def context_of(plan: Plan, options: Options) -> int:
    """The context asked for, by default the model's. ValueError for a longer one."""
    context, longest = options.context, plan.config.seq_len
    if context is None:
        return longest
    if not 1 <= context <= longest:
        raise ValueError(f"context is {context}; it must be 1 to the model's {longest}")
    return context


def alternatives(
    plan: Plan, against: list[Limit], dtype: str, kv_dtype: str, context: int
) -> Iterator[dict[str, Any]]:
    """Options of Llama that fit, those that change least first: a smaller cache, a shorter context,
    smaller weights; with some room to spare, since the process may grow before they are used."""
    against = [limit._replace(free=limit.free - limit.free // _OVERHEAD) for limit in against]
    smaller = () if dtype == RUNQ else ("int8", "int4")
    wanted = [name for name in (dtype, *smaller) if (name, kv_dtype) in plan.needs]
    shortened = False  # which a smaller dtype need not be as well
    for name in dict.fromkeys(wanted):
        other: dict[str, Any] = {} if name == dtype else {"dtype": name}
        for kv in dict.fromkeys((kv_dtype, "float16")):
            needs = plan.needs.get((name, kv))
            if needs is not None and needs.obstacle(against, context) is None:
                yield other | ({} if kv == kv_dtype else {"kv_dtype": kv})
                break
        fitting = plan.needs[name, kv_dtype].largest_context(against, context)
        if 0 < fitting < context and not shortened:
            shortened = True
            yield other | {"context": fitting}


def unavailable(path: str, dtype: str) -> UnsupportedError:
    """For llama2.c's version 2: weights of every other file can be converted."""
    return UnsupportedError(
        f"{path}: the file holds int8 weights, which cannot be converted to {dtype}"
    )


def needed_for(plan: Plan, options: Options, isa: int, path: str) -> str:
    """The dtype to look up in Plan.needs, for an l2c_isa: the one asked for, or RUNQ.

    UnsupportedError for a file, ValueError for a dtype or kv_dtype that runq.c does not have.
    """
    if isa != lib.L2C_ISA_RUNQ:
        return options.dtype
    if options.card is not None:
        raise UnsupportedError("isa='runq' computes on the processor only: device='cpu'")
    c, dtype, kv_dtype = plan.config, options.dtype, options.kv_dtype
    if not c.group_size:
        raise UnsupportedError(
            f"{path}: isa='runq' computes int8 files of llama2.c (version 2) as runq.c does; this "
            f"is {'GGUF' if c.file == 'gguf' else 'llama2.c'} version {c.version}"
        )
    if dtype not in ("auto", "int8"):
        raise ValueError(f"dtype is {dtype!r}; isa='runq' computes with the file's own int8")
    if kv_dtype != "float32":
        raise ValueError(f"kv_dtype is {kv_dtype!r}; isa='runq' computes with float32, as runq.c")
    return RUNQ


def check_fits(
    plan: Plan, against: list[Limit], dtype: str, kv_dtype: str, context: int, path: str
) -> None:
    """OutOfMemoryError, with the numbers and what would fit, where there is no room for the model
    and one story of the whole context. UnsupportedError for a dtype that the file cannot give."""
    if (dtype, kv_dtype) not in plan.needs:
        raise unavailable(path, dtype)
    needs = plan.needs[dtype, kv_dtype]
    obstacle = needs.obstacle(against, context)
    if obstacle is None:
        return
    ways = [
        ", ".join(f"{name}={value!r}" for name, value in options.items())
        for options in alternatives(plan, against, dtype, kv_dtype, context)
    ]
    advice = f"would fit: {'; or '.join(ways)}" if ways else "nothing smaller fits either"
    total = needs.total(context)
    overhead = max(0, needs.asks(obstacle, context) - total)
    raise OutOfMemoryError(
        f"{path}: {needs.dtype} needs {size(total + overhead)} ({size(needs.weights)} of weights, "
        f"{size(needs.cache(context))} of keys and values in {kv_dtype} for a context of "
        f"{context:,}, {size(needs.scratch(context))} of scratch, {size(overhead)} of overhead); "
        f"only {size(obstacle.free)} {obstacle.name}; {advice}"
    )


def has_room(
    plan: Plan, against: list[Limit], dtype: str, kv_dtype: str, context: int, extra: str
) -> bool:
    """Whether a copy in the dtype `extra`, with a story of its own, fits beside the model."""
    if (extra, kv_dtype) not in plan.needs:
        return False
    model, copy = plan.needs[dtype, kv_dtype], plan.needs[extra, kv_dtype]
    return all(
        model.asks(limit, context) + copy.asks(limit, context) <= limit.free for limit in against
    )
