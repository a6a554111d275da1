"""Will it fit? What a model needs, against what is free."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pyllama2c._ffi import DTYPES, check, ffi, lib, new_error
from pyllama2c.engine.config import Config, read_config
from pyllama2c.engine.memory import Limit
from pyllama2c.engine.needs import OVERHEAD, RUNQ, Needs, NeedsByDtype
from pyllama2c.engine.options import Options
from pyllama2c.engine.workers import batch_threads
from pyllama2c.errors import CheckpointError, OutOfMemoryError, UnsupportedError
from pyllama2c.files.recognize import MODEL, expect, expect_model


class Plan(NamedTuple):
    """A model that has not been opened."""

    config: Config
    """its own, with dtype "auto" """
    parameters: int
    file_bytes: int
    needs: Mapping[tuple[str, str], Needs]


def _plan(call: Any, arguments: tuple[Any, ...], options: Options, path: str) -> Plan:
    def read_header(dtype: str) -> Any:
        out, err = ffi.new("l2c_model **"), new_error()
        number = lib.L2C_DTYPE_FILE if dtype == RUNQ else DTYPES[dtype]
        check(call(*arguments, number, out, err), err, path)
        return ffi.gc(out[0], lib.l2c_model_free)

    header = read_header("auto")
    return Plan(
        config=read_config(lib.l2c_model_config(header)),
        parameters=lib.l2c_model_parameters(header),
        file_bytes=lib.l2c_model_file_bytes(header),
        # Of the threads of a batch, the largest session: scratch grows with them.
        needs=NeedsByDtype(
            read_header, options.threads or batch_threads(), options.card is not None
        ),
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
    against = [limit._replace(free=limit.free - limit.free // OVERHEAD) for limit in against]
    smaller = () if dtype == RUNQ else ("int8", "int4")
    wanted = [name for name in (dtype, *smaller) if (name, kv_dtype) in plan.needs]
    shortened = False  # said once: that a smaller dtype can be shortened as well is no news
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


def dtype_key(plan: Plan, options: Options, isa: int, path: str) -> str:
    """The key of Plan.needs for what these options and this l2c_isa compute with: the dtype asked
    for, or RUNQ.

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
