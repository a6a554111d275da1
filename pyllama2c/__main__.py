"""The command pyllama2c, and python -m pyllama2c."""

import signal
import sys

_ENDED_BY: list[int] = []
"""signals that ask us to end"""


def _end(number: int, _: object) -> None:
    # As an exception: files that are being written are taken away on its way. Some packages make
    # another exception of any that they meet.
    _ENDED_BY.append(number)
    raise SystemExit(128 + number)


def main() -> int:
    """Runs the command line and returns its exit status."""
    # Ctrl-C while the packages are imported ends the process, without a traceback. Where the
    # caller ignores it (a shell's background), so do we.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pyllama2c.cli.main import main as run

    try:
        signal.signal(signal.SIGINT, handler)
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)
        status = run()
    except KeyboardInterrupt:  # before run() looked for it
        return 130
    except Exception:
        if not _ENDED_BY:
            raise
    return 128 + _ENDED_BY[0] if _ENDED_BY else status


if __name__ == "__main__":
    sys.exit(main())
