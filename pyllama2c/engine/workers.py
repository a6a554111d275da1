"""How many threads to use, and the pool of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyllama2c._ffi import check, ffi, lib, new_error

_SMALL = 4 << 20
"""bytes of weights per token below which a second thread costs more than it saves"""

_ENOUGH = 8
"""threads that saturate a desktop's memory; more only on request"""


def available_cpus() -> int:
    """Processors that this process may use: its affinity, capped by a container's CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2: nothing limits us
    return count


def _wanted() -> int | None:
    """$PYLLAMA2C_THREADS."""
    wanted = os.environ.get("PYLLAMA2C_THREADS")
    if not wanted:
        return None
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"PYLLAMA2C_THREADS is {wanted!r}; it must be a number, 1 or more")
    return int(wanted)


def default_threads(sweep_bytes: int) -> int:
    return _wanted() or (1 if sweep_bytes < _SMALL else min(available_cpus(), _ENOUGH))


def batch_threads() -> int:
    return _wanted() or min(available_cpus(), _ENOUGH)


def new_pool(threads: int) -> Any:
    """A worker pool of that many threads, the caller's included."""
    out, err = ffi.new("l2c_pool **"), new_error()
    check(lib.l2c_pool_create(threads, out, err), err)
    return ffi.gc(out[0], lib.l2c_pool_free)
