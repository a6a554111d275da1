"""Standard streams of the commands, which may be closed, full, or read by nobody."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

# Control characters, by which a model could control the terminal; run.c drops them, too.
_CONTROL = dict.fromkeys([*range(9), *range(14, 32), 127, *range(128, 160)])

_quiet = False

# Colours, as ANSI's numbers: few, so that what the user wrote is told from what the model did.
PROMPT, LABEL, ERROR = "1", "36", "31"  # bold, cyan, red


def coloured(text: str, colour: str, stream: TextIO, before: str = "", after: str = "") -> str:
    """The text in a colour, where the stream is a terminal that shows some and the user has no
    objection (https://no-color.org). `before` and `after` enclose each code."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "dumb")
    if plain or not text or not stream.isatty():
        return text
    start, end = (f"{before}\x1b[{code}m{after}" for code in (colour, "0"))
    return start + text + end


def open_closed() -> None:
    """Opens streams that the shell closed (`>&-`), lest the next file take their number: an input
    at its end, an output that cannot be written, messages that nobody sees."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is the one that open gives
            # Writing to /dev/stdout then fails, where /dev/null would lose what is written.
            name = "/dev/full" if number == 1 and os.path.exists("/dev/full") else os.devnull
            os.open(name, os.O_WRONLY if number == 2 else os.O_RDONLY)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # still a BrokenPipeError, if it is one: by its number
        raise OSError(error.errno, error.strerror, "standard output") from error


def harmless(text: str) -> str:
    """A text of somebody else's, without characters that control the terminal."""
    return text.translate(_CONTROL)


def write(text: str, colour: str | None = None) -> None:
    """Story text, flushed at once."""
    text = harmless(text)
    with _named():
        sys.stdout.write(text if colour is None else coloured(text, colour, sys.stdout))
        sys.stdout.flush()


def show(text: object) -> None:
    """A command's result. What cannot be written is the command's error, not Python's at exit."""
    with _named():
        print(text, flush=True)


def be_quiet(quiet: bool) -> None:
    """Whether nothing but errors goes to standard error."""
    global _quiet
    _quiet = quiet


def say(text: str, end: str = "\n") -> None:
    """A message on standard error, unless it shall be quiet."""
    if not _quiet:
        complain(text, end)


def complain(text: str, end: str = "\n") -> None:
    """An error on standard error; where that cannot be written, none."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def give_up_stdout() -> None:
    """Drops buffered output that cannot be written, or Python would fail on it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
