"""Bases of what owns C memory: it cannot be copied, and is closed at the end of a `with` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, SupportsIndex, TypeVar

_Self = TypeVar("_Self", bound="ClosableHandle")


class Handle:
    """copy, deepcopy and pickle refuse it: a copy would share what the first changes or frees."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: it holds memory of the C engine"
        )


class ClosableHandle(Handle, ABC):
    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
