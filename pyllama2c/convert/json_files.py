"""Other programs' JSON files: fields of the right type and range, or an error that names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyllama2c.errors import CheckpointError, TokenizerError
from pyllama2c.files.recognize import JSON, expect

_MAX = 2**31 - 1


class Fields:
    """An object of a JSON file. A null field counts as absent, as its writers intend."""

    def __init__(
        self,
        path: Path,
        values: object,
        where: str = "",
        error: type[CheckpointError] | type[TokenizerError] = CheckpointError,
    ):
        if not isinstance(values, dict):
            raise error(f"{path}: {where or 'it'} is not a JSON object")
        self.path, self._where, self._error = path, f"{where}." if where else "", error
        self._values: dict[str, Any] = values

    def fail(self, name: str, must: str) -> CheckpointError | TokenizerError:
        value = json.dumps(self._values.get(name))[:100]
        return self._error(f"{self.path}: {self._where}{name} is {value}; it must be {must}")

    def get(self, name: str, default: Any = None) -> Any:
        value = self._values.get(name)
        return default if value is None else value

    def __contains__(self, name: str) -> bool:
        """Whether the field is present, even as null."""
        return name in self._values

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(name, default)
        if type(value) is not int or not least <= value <= _MAX:
            raise self.fail(name, f"an integer of {least} to {_MAX}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if type(value) not in (int, float) or value is None or not 0 < value <= 1e30:
            raise self.fail(name, "a number above 0, at most 1e30")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            raise self.fail(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self.fail(name, "a string")
        return value

    def object(self, name: str) -> Fields:
        return Fields(self.path, self.get(name), self._where + name, self._error)

    def table(self, name: str) -> list[Any]:
        value = self.get(name, [])
        if not isinstance(value, list):
            raise self.fail(name, "an array")
        return value

    def items(self) -> list[tuple[str, Any]]:
        return list(self._values.items())


def read_json(
    path: Path, error: type[CheckpointError] | type[TokenizerError] = CheckpointError
) -> Fields:
    """The object that a JSON file holds."""
    expect(path, JSON, error)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not JSON: {reason}") from reason
    return Fields(path, values, error=error)
