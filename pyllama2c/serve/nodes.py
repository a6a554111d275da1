"""Stories that a page goes on from: a node is a sequence of token ids, under a short name."""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence

_MAX_NODES = 1 << 14
_MAX_IDS = 1 << 20
"""of all nodes together: 4 MiB"""


class Nodes:
    """The sequences used last, by name. The same ids have the same name, on every server.

    May be used from many threads.
    """

    def __init__(self, max_nodes: int = _MAX_NODES, max_ids: int = _MAX_IDS):
        self._max_nodes, self._max_ids = max_nodes, max_ids
        self._nodes: OrderedDict[str, array[int]] = OrderedDict()
        self._ids = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._nodes)

    def put(self, ids: Sequence[int]) -> str:
        """Keeps a sequence, and lets go of the least recently used ones; returns its name."""
        packed = array("i", ids)
        name = hashlib.blake2b(packed.tobytes(), digest_size=12).hexdigest()
        with self._lock:
            if name not in self._nodes:
                self._nodes[name] = packed
                self._ids += len(packed)
            self._nodes.move_to_end(name)
            while len(self._nodes) > self._max_nodes or self._ids > self._max_ids:
                self._ids -= len(self._nodes.popitem(last=False)[1])
        return name

    def get(self, name: str) -> list[int] | None:
        """The ids, or None where the node is unknown or was let go."""
        with self._lock:
            if name not in self._nodes:
                return None
            self._nodes.move_to_end(name)
            return self._nodes[name].tolist()
