"""The command pyllama2c, and python -m pyllama2c."""

import signal
import sys


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
        return run()
    except KeyboardInterrupt:  # before run() looked for it
        return 130


if __name__ == "__main__":
    sys.exit(main())
