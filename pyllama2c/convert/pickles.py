"""Reads pickles without executing them: only the opcodes that PyTorch writes, over inert values.

A pickle is a program. `pickle` runs it with access to everything that can be imported, and even
with a restricted `find_class` it builds what the file asks for: memos of 2^32 entries, keys whose
hash takes years. This machine imports nothing: a global is a name, looked up in the caller's table,
and REDUCE calls one of the caller's functions. `pickletools` only parses the arguments. All other
opcodes and names raise CheckpointError.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from pyllama2c.errors import CheckpointError

MAX_BYTES = 4 << 20
"""of a pickle; llama-2-7b's has 0.06 MB, since weights are stored separately"""

_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
}
_MAKE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME"}
_OTHERS = {
    *("MARK", "TUPLE", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "BINPUT", "LONG_BINPUT"),
    *("MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD"),
    "STOP",
}
_KNOWN = _VALUES | _MAKE.keys() | _TUPLES.keys() | _NOTHING | _OTHERS
_OPCODES = {ord(o.code): o for o in pickletools.opcodes}

Function = Callable[..., object]


class Name:
    """A global of the pickle: just a name, known to the caller."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Machine:
    def __init__(self, source: str, names: Mapping[str, Function | None], persistent: Function):
        self._source, self._names, self._persistent = source, names, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._source} {what}")

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self.fail("is damaged: its pickle pops from an empty stack")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        value = self._pop()
        if type(value) is not kind:
            raise self.fail(f"is damaged: its pickle fills something that is not a {kind.__name__}")
        self._stack.append(value)
        return value

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise self.fail("is damaged: its pickle lacks a mark")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _set_items(self, values: list[Any]) -> None:
        target = self._top(dict)
        if len(values) % 2:
            raise self.fail("is damaged: its pickle has a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Only these hash quickly whatever their value.
            if type(key) not in (str, int):
                raise self.fail(f"has a key that is a {type(key).__name__}, not a string")
            target[key] = value

    def _global(self, name: str) -> None:
        if name not in self._names:
            raise self.fail(f"refers to {name[:100]!r}, which no weights need: not loaded")
        self._stack.append(Name(name))

    def _call(self) -> None:
        arguments, what = self._pop(), self._pop()
        function = self._names[what.name] if type(what) is Name else None
        if function is None or type(arguments) is not tuple:
            raise self.fail("calls something that cannot be called: not loaded")
        self._stack.append(function(*arguments))

    def _memoize(self, index: int) -> None:
        value = self._pop()
        self._stack.append(value)
        self._memo[index] = value

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise self.fail("is damaged: its pickle reads a memo entry that it never wrote")
        self._stack.append(self._memo[index])

    def step(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name in _VALUES:
            push(argument)
        elif name in _MAKE:
            push(_MAKE[name]())
        elif name in _TUPLES:
            push(tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            one = name == "SETITEM"
            self._set_items([self._pop(), self._pop()][::-1] if one else self._pop_to_mark())
        elif name in ("APPEND", "APPENDS"):
            values = [self._pop()] if name == "APPEND" else self._pop_to_mark()
            self._top(list).extend(values)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memoize(len(self._memo) if name == "MEMOIZE" else argument)
        elif name in ("BINGET", "LONG_BINGET"):
            self._recall(argument)
        elif name == "GLOBAL":
            self._global(argument)
        elif name == "STACK_GLOBAL":
            last, module = self._pop(), self._pop()
            if type(last) is not str or type(module) is not str:
                raise self.fail("is damaged: a global of its pickle is not named by a string")
            self._global(f"{module}.{last}")
        elif name == "BINPERSID":
            push(self._persistent(self._pop()))
        elif name == "REDUCE":
            self._call()
        elif name == "BUILD":
            self._pop()  # the attributes of an OrderedDict, which weights do not need
            self._top(dict)

    def result(self) -> object:
        if len(self._stack) != 1 or self._marks:
            raise self.fail("is damaged: its pickle does not end with one value")
        return self._stack[0]


def _argument(opcode: pickletools.OpcodeInfo, stream: io.BytesIO) -> Any:
    if opcode.name == "GLOBAL":  # pickletools would resolve escapes, which pickle does not have
        lines = [stream.readline(), stream.readline()]
        if not all(line.endswith(b"\n") for line in lines):
            raise ValueError("it ends within a name")
        return ".".join(line[:-1].decode() for line in lines)
    return opcode.arg.reader(stream) if opcode.arg is not None else None


def read(
    data: bytes, source: str, names: Mapping[str, Function | None], persistent: Function
) -> object:
    """The value of a pickle.

    `names`: the globals that it may name, as "module.name", each with the function that a call
    means (None: it may not be called). `persistent` turns persistent ids into values. These
    functions check their arguments.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{source} has {len(data):,} bytes; the limit is {MAX_BYTES:,}")
    machine = _Machine(source, names, persistent)
    stream = io.BytesIO(data)
    while True:
        opcode = _OPCODES.get(int.from_bytes(stream.read(1), "little"))
        if opcode is None:
            raise machine.fail("is not a pickle, or is damaged: unknown opcode")
        if opcode.name not in _KNOWN:
            raise machine.fail(f"uses the opcode {opcode.name}, which no weights need: not loaded")
        if opcode.name == "STOP":
            return machine.result()
        try:
            argument = _argument(opcode, stream)
        except ValueError as error:  # pickletools' only complaint
            raise machine.fail(f"is not a pickle, or is damaged: {str(error)[:200]}") from error
        machine.step(opcode.name, argument)
