"""Bodies to structs; what is wrong is named, with its value and what it must be."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from pyllama2c.serve.errors import ApiError
from pyllama2c.serve.schema import NEUTRAL
from pyllama2c.validate import shown

_T = TypeVar("_T", bound=msgspec.Struct)
_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`")
_MISSING = re.compile(r"Object missing required field `(.*?)`")


def decode(body: bytes, kind: type[_T]) -> _T:
    """The request in a body; ApiError (400) for what is none."""
    try:
        value = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), body) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from None
    _refuse_unsupported(value, "")
    return value


def decode_any(body: bytes) -> Any:
    """Any JSON; ApiError (400) for what is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from None


def _not_json(error: Exception) -> ApiError:
    return ApiError(400, f"the body is not JSON: {error}", code="invalid_json")


def _refuse_unsupported(value: msgspec.Struct, where: str) -> None:
    for name in value.__struct_fields__:
        item = getattr(value, name)
        if name in NEUTRAL:
            if item is not None and not _is_one_of(item, NEUTRAL[name]):
                raise unsupported(f"{where}{name}", item)
        elif isinstance(item, list) and item and isinstance(item[0], msgspec.Struct):
            for i, each in enumerate(item):
                _refuse_unsupported(each, f"{where}{name}[{i}].")


def _is_one_of(item: Any, values: tuple[Any, ...]) -> bool:
    """Equal and of the same type: 1 is not True."""
    return any(type(item) is type(value) and item == value for value in values)


def unsupported(name: str, value: Any) -> ApiError:
    message = f"{name} is {shown(value)}, which is not supported"
    return ApiError(400, message, param=name, code="unsupported_parameter")


def wrong(name: str, message: str) -> ApiError:
    return ApiError(400, message, param=name, code="invalid_value")


def _explained(message: str, body: bytes) -> ApiError:
    """msgspec's message, with the field's name and value."""
    found = _PATH.search(message)
    path = found[1] if found else ""
    needed = message[: found.start()] if found else message
    for pattern, code, what in (
        (_UNKNOWN, "unknown_parameter", "is not a field that this server knows"),
        (_MISSING, "missing_required_parameter", "is required"),
    ):
        if named := pattern.match(needed):
            name = f"{path}.{named[1]}" if path else named[1]
            return ApiError(400, f"{name} {what}", param=name, code=code)
    if not path:
        return ApiError(400, f"the body is wrong: {needed}", code="invalid_type")
    needed = needed[:1].lower() + needed[1:]
    return wrong(path, f"{path} is {_value_at(path, body)}; {needed}")


def _value_at(path: str, body: bytes) -> str:
    try:
        value = json.loads(body)
        for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
            if index == "...":  # a key of a dict, which msgspec does not name
                break
            value = value[name] if name else value[int(index)]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "wrong"
    return shown(value)
