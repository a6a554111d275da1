"""Arguments, checked where they enter: TypeError for a wrong type, ValueError for a wrong value.
Messages have the argument's name, its value, and what it must be."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any

from pyllama2c.errors import TokenizerError

_BYTES = (bytes, bytearray, memoryview)


def shown(value: object) -> str:
    """repr(value) for a message, shortened; it never raises."""
    try:
        text = repr(value)
    except Exception:  # an int of 5,000 digits has none, nor has a broken object
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def wrong(name: str, value: object, needed: str, kind: type[Exception] = ValueError) -> Exception:
    return kind(f"{name} is {shown(value)}; it must be {needed}")


def _is_bool(value: object) -> bool:
    """Python's or NumPy's, without importing that."""
    kind = type(value)
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def integer(name: str, value: Any, low: int, high: int, limits: str = "") -> int:
    """An integer of Python or NumPy; True and 2.0 are not."""
    limits = limits or f"{low} to {high}"
    try:
        if _is_bool(value):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise wrong(name, value, f"an integer, {limits}", TypeError) from None
    if not low <= number <= high:
        raise wrong(name, value, limits)
    return number


def number(name: str, value: Any, low: float, high: float, limits: str) -> float:
    """A real number within limits, NaN never; neither text that spells one nor a bool."""
    try:
        if _is_bool(value) or isinstance(value, (str, complex, *_BYTES)):
            raise TypeError
        if getattr(value, "ndim", 0):
            raise TypeError
        real = float(value)
    except (TypeError, ValueError):
        raise wrong(name, value, f"a number, {limits}", TypeError) from None
    except OverflowError:
        real = math.inf
    if not low <= real <= high:
        raise wrong(name, value, limits)
    return real


def flag(name: str, value: Any) -> bool:
    if not _is_bool(value):
        raise wrong(name, value, "True or False", TypeError)
    return bool(value)


def one_of(name: str, value: Any, known: Collection[str]) -> None:
    if not isinstance(value, str):
        raise wrong(name, value, "a string: " + ", ".join(known), TypeError)
    if value not in known:
        raise ValueError(f"unknown {name} {shown(value)}; known: {', '.join(known)}")


def file_path(name: str, value: Any, optional: bool = False) -> None:
    """A path as text; C would cut it at a NUL. None is one as well, where it is `optional`."""
    if optional and value is None:
        return
    try:
        path = os.fspath(value)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise wrong(name, value, "a path: str or os.PathLike[str]", TypeError)
    if not path or "\0" in path:
        raise wrong(name, value, "a path that is not empty and has no NUL characters")


def contiguous(name: str, buffer: Any) -> Any:
    """A buffer that C can read without a copy."""
    try:
        view = memoryview(buffer)
    except TypeError:
        needed = "bytes, or another object with the buffer protocol"
        raise wrong(name, buffer, needed, TypeError) from None
    with view:
        if not view.c_contiguous:
            raise ValueError(f"{name} is a buffer that is not contiguous; bytes({name}) would be")
        return buffer if view.nbytes else b""  # a bytearray without bytes has no address for cffi


def values(name: str, value: Any, needed: str) -> Iterable[Any]:
    """What can be iterated, and is neither text nor a mapping."""
    try:
        if isinstance(value, (str, Mapping, *_BYTES)):
            raise TypeError
        iter(value)
    except TypeError:  # a NumPy array without dimensions, too
        raise wrong(name, value, needed, TypeError) from None
    return value  # type: ignore[no-any-return]


def texts(name: str, value: Any, needed: str) -> Iterable[Any]:
    """`values`, of texts: a single text is refused, since its items would be characters."""
    if isinstance(value, (str, bytes)):
        raise ValueError(f"{name} is one text; give a list of {name}")
    return values(name, value, needed)


def token_ids(name: str, tokens: Any, vocab_size: int) -> list[int]:
    """Ids in their order, each within the vocabulary: TokenizerError for one that is not."""
    needed = "a sequence of integers: token ids"
    if isinstance(tokens, Set):
        raise wrong(name, tokens, needed, TypeError)
    listed = values(name, tokens, needed)
    if type(listed).__module__ == "numpy" and hasattr(listed, "tolist"):
        listed = listed.tolist()  # a tenth of the time
    ids: list[int] = []
    for i, token in enumerate(listed):
        if type(token) is not int:
            try:
                if _is_bool(token):
                    raise TypeError
                token = operator.index(token)
            except TypeError:
                raise wrong(f"{name}[{i}]", token, "an integer: a token id", TypeError) from None
        if not 0 <= token < vocab_size:
            raise TokenizerError(f"token {shown(token)} is outside the vocabulary of {vocab_size}")
        ids.append(token)
    return ids
