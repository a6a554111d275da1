"""The command on a terminal of its own, with somebody who types and reads."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from environment import DATA

# The terminal becomes the command's own, so that Ctrl-C reaches it, which a shell's background
# would have it ignore.
_START = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "pyllama2c", *sys.argv[1:]])
"""
_CODES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]|\x1b[=>]|\r")
_PATIENCE = 600
"""seconds, after which a test is stuck, not slow"""


class Terminal:
    """`home` is the user's folder; `environment` is added to the least that a shell has."""

    def __init__(self, home: Path, *words: object, **environment: str):
        self._leader, terminal = os.openpty()
        kept = {name: os.environ[name] for name in ("PATH", "LD_PRELOAD") if name in os.environ}
        home_is = {"HOME": str(home), "INPUTRC": os.devnull, "LANG": "C.UTF-8", "TERM": "xterm"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, words)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            cwd=DATA,
            env=kept | home_is | environment,
        )
        os.close(terminal)
        self.raw = ""
        """all that was shown, control codes included"""
        self._from = 0

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def read_until(self, text: str) -> str:
        """What is shown next, up to and with `text`, without control codes."""
        while True:
            shown = _CODES.sub("", self.raw[self._from :])
            if text in shown:
                self._from = len(self.raw)
                return shown
            assert self._read(), f"{text!r} was not shown, but {shown!r}"

    def _read(self) -> bool:
        ready, _, _ = select.select([self._leader], [], [], _PATIENCE)
        assert ready, f"nothing follows {self.raw[-200:]!r}"
        try:
            data = os.read(self._leader, 4096)
        except OSError:  # how Linux says that the other side has closed it
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)

    def end(self) -> int:
        """Reads to the end; the exit status."""
        while self._read():
            pass
        return self._process.wait(_PATIENCE)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._leader)
