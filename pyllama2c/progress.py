"""Progress bars: for a terminal, not for log files."""

from __future__ import annotations

import sys


def watched() -> bool:
    """Whether standard error, where bars are drawn, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
