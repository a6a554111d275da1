"""Random JSON Schemas of what llguidance takes. Few allow a text without end, which a storyteller
would tell."""

from __future__ import annotations

import random
from typing import Any

PATTERNS = (
    "^[a-z]{1,9}$",
    "^[A-Z][a-z]{2,8}$",
    r"^\d{3}-\d{4}$",
    "^(red|green|blue)$",
    "^.{1,12}$",
    "^[ab]?x$",
)
FORMATS = ("date", "time", "date-time", "uuid", "ipv4")
NAMES = ("name", "age", "a b", "ünï", "😀", 'qu"ote', "", "$ref", "x-y", "back\\slash")


def _string(r: random.Random) -> dict[str, Any]:
    choice = r.randrange(12)
    if choice == 0:
        return {"type": "string"}
    if choice < 5:
        low = r.randrange(4)
        return {"type": "string", "minLength": low, "maxLength": low + r.randrange(20)}
    if choice < 7:
        return {"type": "string", "pattern": r.choice(PATTERNS)}
    if choice < 9:
        return {"type": "string", "format": r.choice(FORMATS)}
    return {
        "enum": r.sample(["a", "é", "日本", "😀", 'x"y', "a\\b", "line\nbreak", "", "long text"], 3)
    }


def _number(r: random.Random) -> dict[str, Any]:
    low = r.randrange(-1000, 1000)
    if r.random() < 0.15:
        return {"type": r.choice(["integer", "number"])}
    return r.choice(
        [
            {"type": "integer", "minimum": low, "maximum": low + r.randrange(1, 10**6)},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 100},
            {"type": "integer", "multipleOf": r.randrange(2, 20), "minimum": 0, "maximum": 10**4},
            {"type": "number", "minimum": low / 8, "maximum": low / 8 + 3.5},
            {"type": "integer", "exclusiveMaximum": 5, "minimum": -5},
        ]
    )


def _array(r: random.Random, depth: int) -> dict[str, Any]:
    low = r.randrange(3)
    schema: dict[str, Any] = {"type": "array", "items": _any(r, depth - 1), "minItems": low}
    if r.random() < 0.9:
        schema["maxItems"] = low + r.randrange(3)
    if r.random() < 0.2:
        schema["prefixItems"] = [_any(r, depth - 1) for _ in range(r.randrange(1, 3))]
    return schema


def _object(r: random.Random, depth: int) -> dict[str, Any]:
    names = r.sample(NAMES, r.randrange(0, 5))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(r, depth - 1) for name in names},
        "required": [name for name in names if r.random() < 0.6],
    }
    if r.random() < 0.95:
        schema["additionalProperties"] = False
    elif r.random() < 0.5:
        schema["additionalProperties"] = _any(r, 0)
    return schema


def _any(r: random.Random, depth: int) -> dict[str, Any]:
    if depth > 0 and r.random() < 0.5:
        kind = r.randrange(5)
        if kind == 0:
            return _array(r, depth)
        if kind == 1:
            return {"anyOf": [_any(r, depth - 1) for _ in range(r.randrange(1, 4))]}
        if kind == 2:
            return {"$ref": "#/$defs/thing"}
        return _object(r, depth)
    kind = r.randrange(8)
    if kind < 3:
        return _string(r)
    if kind < 5:
        return _number(r)
    if kind == 5:
        return {"type": r.choice(["boolean", "null", ["null", "boolean"]])}
    if kind == 6:
        return {"const": r.choice([1, 2.5, "x", None, True, [1, "a"], {"k": [None]}])}
    return {"enum": r.sample([1, "1", None, False, [], {}, "é😀", -0.5], r.randrange(1, 4))}


def random_schema(seed: int) -> dict[str, Any]:
    r = random.Random(seed)
    schema = _object(r, 3) if r.random() < 0.8 else _any(r, 3)
    return {**schema, "$defs": {"thing": _any(r, 0)}}
