"""Lines that a user types: at a terminal with editing and a history, elsewhere as they come."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from types import ModuleType

from pyllama2c.cli.streams import LABEL, coloured, say

_MOST = 1 << 20
"""bytes of the history that are read: its newest lines"""


def history_path() -> Path:
    from platformdirs import user_state_path

    return user_state_path("pyllama2c", appauthor=False) / "chat_history"


class TypedLines:
    """Standard input, line by line. `is_terminal`: somebody types them, and reads what is told."""

    def __init__(self) -> None:
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline = _readline_with_history() if self.is_terminal else None

    def ask(self, label: str, *, remember: bool = True) -> str | None:
        """The next line, without its end; None at the end of input."""
        if self._readline is None:
            say(coloured(label, LABEL, sys.stderr), end="")
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        try:
            # Between \1 and \2 is what takes no room on the line.
            line = input(coloured(label, LABEL, sys.stdout, before="\1", after="\2"))
        except EOFError:
            return None
        if remember and line.strip():
            self._remember(line)
        return line

    def _remember(self, line: str) -> None:
        assert self._readline is not None
        n = self._readline.get_current_history_length()
        if n and self._readline.get_history_item(n) == line:
            return
        self._readline.add_history(line)
        try:
            with os.fdopen(_open_history(), "ab") as file:
                file.write(" ".join(line.splitlines()).encode(errors="replace") + b"\n")
        except OSError:  # a home that cannot be written: the lines of this chat are all there are
            pass


def _readline_with_history() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # a Python without it: the terminal's own editing
        return None
    readline.set_auto_history(False)
    readline.clear_history()
    try:
        with os.fdopen(_open_history(), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST))
            lines = file.read(_MOST).decode(errors="replace").split("\n")
    except OSError:
        return readline
    for line in lines[size > _MOST :]:  # the first may be cut
        if line:
            readline.add_history(line)
    return readline


def _open_history() -> int:
    """A descriptor of the history, which only its owner may read."""
    path = history_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    how = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)
    fd = os.open(path, how | getattr(os, "O_BINARY", 0), 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a file")
    if sys.platform != "win32":  # where a user's folder is the user's
        os.fchmod(fd, 0o600)
    return fd
