"""Graphics cards: which there are, opening them, and the kernels compiled for them, once."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.engine.memory import Limit
from pyllama2c.errors import Llama2cError
from pyllama2c.files.hub import cache_folder
from pyllama2c.files.whole import whole_file
from pyllama2c.handle import Handle
from pyllama2c.progress import watched

_DIGEST = hashlib.sha256().digest_size
_SHOWN_FROM = 1 << 30
"""bytes of weights, whose way to a card takes a while"""


def device_number(device: str | None) -> int | None:
    """The number of the card that "cuda" (0) or "cuda:1" names; None for "cpu".

    `device` None: $PYLLAMA2C_DEVICE, else "cpu".
    """
    name = device if device is not None else os.environ.get("PYLLAMA2C_DEVICE") or "cpu"
    found = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
    if found is not None:
        return int(found[1] or 0)
    if name == "cpu":
        return None
    source = "" if device is not None else " in PYLLAMA2C_DEVICE"
    raise ValueError(f"unknown device {name!r}{source}; known: cpu, cuda, cuda:N")


def _driver() -> Any:
    """$PYLLAMA2C_LIBCUDA, a path, or NULL: the system's."""
    named = os.environ.get("PYLLAMA2C_LIBCUDA")
    return ffi.new("char[]", os.fsencode(named)) if named else ffi.NULL


class CardInfo(NamedTuple):
    """What a card is, as its driver says. Sizes are bytes."""

    number: int
    name: str
    pci: str
    """address on the bus"""
    driver: str
    """the newest CUDA that the driver knows: "12.4\""""
    capability: str
    """compute capability: "8.9\""""
    processors: int
    """streaming multiprocessors"""
    memory: int

    @property
    def device(self) -> str:
        return f"cuda:{self.number}"


def _info(c: Any) -> CardInfo:
    name, pci = (ffi.string(text).decode("utf-8", "replace") for text in (c.name, c.pci))
    return CardInfo(
        c.number, name, pci, f"{c.driver // 1000}.{c.driver % 1000 // 10}",
        f"{c.capability // 10}.{c.capability % 10}", c.processors, c.memory,
    )  # fmt: skip


def cards() -> list[CardInfo]:
    """Those that the driver shows this process. UnsupportedError or DeviceError where there is no
    driver, or it does not work."""
    version, count, err = ffi.new("int32_t *"), ffi.new("int32_t *"), new_error()
    check(lib.l2c_device_count(_driver(), version, count, err), err)
    found = []
    for number in range(count[0]):
        info = ffi.new("l2c_device_info *")
        check(lib.l2c_device_describe(_driver(), number, info, err), err)
        found.append(_info(info))
    return found


class Card(Handle):
    """An open card with its kernels loaded."""

    def __init__(self, number: int) -> None:
        out, err = ffi.new("l2c_device **"), new_error()
        check(lib.l2c_device_open(_driver(), number, out, err), err)
        self.handle: Any = ffi.gc(out[0], lib.l2c_device_free)
        about = lib.l2c_device_about(self.handle)
        self.info = _info(about)
        self._load_kernels(int(about.capability))

    def free_memory(self) -> int:
        """Bytes that any process may take just now."""
        out, err = ffi.new("uint64_t *"), new_error()
        check(lib.l2c_device_free_memory(self.handle, out, err), err)
        return int(out[0])

    def limits(self) -> list[Limit]:
        return [Limit("memory", f"free on {self.info.name}", self.free_memory())]

    def _load_kernels(self, capability: int) -> None:
        """Compiled for this card the last time, or now."""
        from pyllama2c.cuda import load

        ptx = load().for_capability(capability)
        assert ptx is not None  # l2c_device_open refuses cards that are older than any
        digest = hashlib.sha256(ptx).hexdigest()[:16]
        name = f"{digest}-driver{self.info.driver}-sm{capability}.cubin"
        kept, err = cache_folder() / "kernels" / name, new_error()
        image = _read_checked(kept)
        if image is None or lib.l2c_device_load(self.handle, ffi.from_buffer(image), err):
            image = self._compile(ptx)
            check(lib.l2c_device_load(self.handle, ffi.from_buffer(image), err), err)
            with suppress(OSError):  # then the next process compiles it again
                kept.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(kept) as file:
                    file.write(hashlib.sha256(image).digest() + image)

    def _compile(self, ptx: bytes) -> bytes:
        if watched():
            what = f"compiling the kernels for {self.info.name}, once ..."
            print(what, end=" ", file=sys.stderr, flush=True)
        image, size, err = ffi.new("void **"), ffi.new("size_t *"), new_error()
        text, start = ffi.from_buffer(ptx + b"\0"), time.monotonic()
        check(lib.l2c_device_compile(self.handle, text, len(ptx), image, size, err), err)
        if watched():
            print(f"{time.monotonic() - start:.1f} s", file=sys.stderr)
        return bytes(ffi.buffer(image[0], size[0]))

    @contextmanager
    def upload_shown(self, total: int) -> Iterator[None]:
        """A bar on a terminal, meanwhile."""
        if not watched() or total < _SHOWN_FROM:
            yield
            return
        from tqdm import tqdm

        start, done = lib.l2c_device_uploaded(self.handle), threading.Event()
        with tqdm(total=total, unit="B", unit_scale=True, desc=self.info.name, leave=False) as bar:

            def follow() -> None:
                ended = False
                while not ended:
                    ended = done.wait(0.1)
                    bar.update(lib.l2c_device_uploaded(self.handle) - start - bar.n)

            follower = threading.Thread(target=follow, daemon=True)
            follower.start()
            try:
                yield
            finally:
                done.set()
                follower.join()


def _read_checked(path: Path) -> bytes | None:
    """What _load_kernels keeps, with its digest before it; None where there is no such file, or it
    is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[_DIGEST:] if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST] else None


_OPEN: WeakValueDictionary[tuple[int, int], Card] = WeakValueDictionary()
"""by process (a forked child must open its own) and number: models of one card share it"""
_OPENING = threading.Lock()


def open_card(number: int) -> Card:
    """DeviceError, UnsupportedError or OutOfMemoryError, in a sentence, where it cannot be used;
    ValueError where there is no such card."""
    key = (os.getpid(), number)
    with _OPENING:
        card = _OPEN.get(key)
        if card is None:
            card = _OPEN[key] = Card(number)
        return card


class Survey(NamedTuple):
    """Driver and cards, for a user to read."""

    trouble: str | None
    """a sentence: there is no driver, or it does not work"""
    cards: list[dict[str, Any]]
    """CardInfo's fields, "device" and, where it was asked for, bytes "free"; "trouble" where this
    one cannot be used"""

    def card(self, number: int) -> dict[str, Any] | None:
        return self.cards[number] if number < len(self.cards) else None


def survey(*, free_memory: bool) -> Survey:
    """Never fails. Asking for free memory takes some of it for a moment, and may take seconds."""
    try:
        found = cards()
    except Llama2cError as error:
        return Survey(str(error), [])
    return Survey(None, [_facts(info, free_memory) for info in found])


def _facts(info: CardInfo, free_memory: bool) -> dict[str, Any]:
    facts: dict[str, Any] = info._asdict() | {"device": info.device}
    if not free_memory:
        return facts
    out, err, free = ffi.new("l2c_device **"), new_error(), ffi.new("uint64_t *")
    try:
        check(lib.l2c_device_open(_driver(), info.number, out, err), err)
        handle = ffi.gc(out[0], lib.l2c_device_free)
        check(lib.l2c_device_free_memory(handle, free, err), err)
    except Llama2cError as error:
        return facts | {"free": 0, "trouble": str(error)}
    return facts | {"free": int(free[0])}
