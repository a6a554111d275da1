"""Progress bars: for a terminal, not for log files."""

from __future__ import annotations

import sys

_hidden = False


def hide(hidden: bool) -> None:
    """No bars from now on, or bars again."""
    global _hidden
    _hidden = hidden


def watched() -> bool:
    """Whether bars are wanted, and standard error, where they are drawn, is a terminal."""
    return not _hidden and sys.stderr is not None and sys.stderr.isatty()
