"""Progress on standard error: messages, and bars for a terminal, not for log files."""

from __future__ import annotations

import sys
from contextlib import suppress


def watched() -> bool:
    """Whether standard error, where bars are drawn, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def announce(text: str) -> None:
    """Prints a message, if standard error can be written."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"pyllama2c: {text}", file=sys.stderr, flush=True)
