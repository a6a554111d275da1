"""The draft model of exact speculative decoding: the same weights in int8."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pyllama2c._ffi import check, ffi, lib, new_error
from pyllama2c.engine.session import MAX_DRAFT, Session, SessionOptions, Sessions

WORTH_DRAFTING = 16 << 20
"""bytes of float32 weights above which reading them costs more than computing with them"""


class Draft:
    """Makes the int8 copy when the first story needs it, and lends its sessions.

    Where it cannot be made (a weight is NaN, in a row that the story may never read; for a card,
    which reads the file again, there is none any more), stories go
    on without drafts.
    """

    def __init__(self, make: Callable[[Any, Any], int], pool: Any, options: SessionOptions):
        """`make` is called with l2c_model ** and l2c_error *."""
        self._from: Any = (make, pool, options)
        self._sessions: Sessions | None = None
        self._impossible = False
        self._lock = threading.Lock()

    def lease(self, tokens: list[int], holder: object) -> Session | None:
        """None where these weights have no int8 copy."""
        with self._lock:
            if self._impossible:
                return None
            if self._sessions is None:
                make, pool, options = self._from
                out, err = ffi.new("l2c_model **"), new_error()
                status = make(out, err)
                if status in (lib.L2C_FORMAT, lib.L2C_IO):  # a card's copy is read from the file
                    self._impossible = True
                    return None
                check(status, err)
                self._sessions = Sessions(ffi.gc(out[0], lib.l2c_model_free), pool, options)
        return self._sessions.lease(tokens, holder)

    def give_back(self, session: Session) -> None:
        assert self._sessions is not None
        self._sessions.give_back(session)


class DraftLength:
    """How many tokens to draft next: more while the target agrees, fewer when it does not."""

    def __init__(self) -> None:
        self.drafted = self.accepted = 0
        self._length = 4

    def next(self, room: int) -> int:
        return min(self._length, room)

    def report(self, drafted: int, accepted: int) -> None:
        self.drafted += drafted
        self.accepted += accepted
        if accepted < drafted:
            self._length = max(1, (self._length + accepted + 1) // 2)
        else:
            self._length = min(self._length + 2, MAX_DRAFT)
