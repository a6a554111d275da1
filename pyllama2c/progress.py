"""Progress on standard error: messages, and bars for a terminal, not for log files."""

from __future__ import annotations

import sys
from contextlib import suppress

_hidden = False


def hide(hidden: bool) -> None:
    """No bars and messages from now on, or both again."""
    global _hidden
    _hidden = hidden


def watched() -> bool:
    """Whether bars are wanted, and standard error, where they are drawn, is a terminal."""
    return not _hidden and sys.stderr is not None and sys.stderr.isatty()


def announce(text: str) -> None:
    """Prints a message, unless it is hidden like bars or standard error cannot be written."""
    if not _hidden and sys.stderr is not None:
        with suppress(OSError):
            print(f"pyllama2c: {text}", file=sys.stderr, flush=True)
