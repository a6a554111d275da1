"""How much memory this process may still take: what machine, container and limits leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Limit(NamedTuple):
    """Something that bounds this process's memory, and how many bytes it leaves."""

    kind: str
    """what it counts: "memory" (resident pages), "data" (private writable pages, resident or not)
    or "address space" (all that is mapped, files included)"""
    name: str
    free: int


def _fields(path: Path, unit: int = 1) -> dict[str, int]:
    """Lines `name[:] number ...` of a kernel file, times `unit`; {} where it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    split = (line.replace(":", " ").split() for line in lines)
    return {words[0]: unit * int(words[1]) for words in split if words[1:] and words[1].isdigit()}


def _number(path: Path) -> int | None:
    """A file that holds one number: None for "max", and where it cannot be read."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _machine() -> Iterator[Limit]:
    available = _fields(Path("/proc/meminfo"), 1024).get("MemAvailable")
    if available is not None:
        yield Limit("memory", "available on this machine", available)
    elif sys.platform == "win32":
        yield from _windows()
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Limit("memory", "installed in this machine", size)


if sys.platform == "win32":
    import ctypes
    import struct

    def _windows() -> Iterator[Limit]:
        status = struct.Struct("<2I7Q")  # MEMORYSTATUSEX
        asked = ctypes.create_string_buffer(status.pack(status.size, *[0] * 8), status.size)
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(asked):
            available, commit = (status.unpack(asked.raw)[i] for i in (3, 5))
            yield Limit("memory", "available on this machine", available)
            yield Limit("data", "left by memory and the page file", commit)


# version: mount point; files of limit and use; fields of memory.stat that are only cached files
_GROUPS = {
    2: ("/sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file")),
    1: (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}


def _groups() -> Iterator[Limit]:
    """Control groups, from this process's own up to the root: each may have a limit. In a container
    the path can be the host's, which does not exist there; the root is then the container's."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines):
        version = 2 if number == "0" else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        mount, most, used, cached = _GROUPS[version]
        own = Path(mount + path)
        for folder in [own, *own.parents]:
            limit, use = _number(folder / most), _number(folder / used)
            # a version 1 group without a limit has one of nearly 2^63
            if limit is not None and use is not None and limit < 1 << 60:
                files = _fields(folder / "memory.stat")
                reclaimable = sum(files.get(name, 0) for name in cached)
                free = max(0, limit - max(0, use - reclaimable))
                yield Limit("memory", f"left by the control group's limit of {limit:,} bytes", free)
            if folder == Path(mount):
                break


def _process() -> Iterator[Limit]:
    try:
        import resource
    except ImportError:
        return
    status = _fields(Path("/proc/self/status"), 1024)
    for kind, number, use, name in (
        ("address space", resource.RLIMIT_AS, "VmSize", "RLIMIT_AS"),
        ("data", resource.RLIMIT_DATA, "VmData", "RLIMIT_DATA"),
    ):
        limit = resource.getrlimit(number)[0]
        if limit != resource.RLIM_INFINITY and use in status:
            free = max(0, limit - status[use])
            yield Limit(kind, f"left by {name} ({limit:,} bytes)", free)


def limits() -> list[Limit]:
    """All that bounds this process, on Linux; elsewhere what is known. Cached files do not count as
    used: the system drops them for whoever needs the memory."""
    return [*_machine(), *_groups(), *_process()]
