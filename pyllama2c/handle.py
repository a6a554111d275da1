"""Base of what owns C memory, and so cannot be copied."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


class Handle:
    """copy, deepcopy and pickle refuse it: a copy would share what the first changes or frees."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: it holds memory of the C engine"
        )
