"""Calls into what recurses without a limit of its own, as llguidance does: rules lead to rules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

_STACK = 256 << 20
"""bytes"""

_stack_size = threading.Lock()  # which is a setting of the process


def on_a_large_stack(function: Callable[[], _T]) -> _T:
    """Its result, or what it raises."""
    result: list[_T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="pyllama2c-grammar", daemon=True)
    with _stack_size:
        before = threading.stack_size(_STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if raised:
        raise raised[0]
    return result[0]
