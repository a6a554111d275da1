"""The process that renders chat templates: started when one is to be rendered, and kept, since a
start takes longer than a rendering. Where a template was too much for it, it is started anew."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).resolve().with_name("template_worker.py")


class ProcessEndedError(Exception):
    """The worker ended instead of answering."""


class LimitError(ProcessEndedError):
    """It did so because the request was too much."""


class TemplateProcess:
    """A worker, which answers one request at a time: threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []

    def ask(self, request: dict[str, Any], megabytes: int, patience: float) -> dict[str, Any]:
        """The answer to a request (see template_worker); ProcessEndedError without one.

        A request has request["seconds"] of the processor, and `patience` seconds by the clock.
        """
        path = [os.path.abspath(entry) for entry in sys.path if entry]
        settings = json.dumps({"path": path, "megabytes": megabytes})
        command = [sys.executable, "-I", "-S", "-W", "ignore", str(_WORKER), settings]
        with self._lock:
            if self._process is not None and self._command == command:
                try:
                    return self._exchange(self._process, request, patience)
                except LimitError:
                    raise
                except ProcessEndedError:
                    pass  # by something else, maybe long ago (as memory ran out): once more
            self.stop()
            self._command, self._process = command, _start(command)
            return self._exchange(self._process, request, patience)

    def _exchange(
        self, process: subprocess.Popen[bytes], request: dict[str, Any], patience: float
    ) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(patience, give_up)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except BaseException:  # Ctrl-C: the answer that is under way is nobody's
            self.stop()
            raise
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        status = process.wait()
        reason = self.stop()
        if late.is_set():
            raise LimitError(f"it takes more than {patience:g} seconds")
        if status == -signal.SIGPROF:
            raise LimitError(f"it takes more than {request['seconds']:g} seconds of the processor")
        raise ProcessEndedError(f"its process ended with {status} {reason}".rstrip())

    def stop(self) -> str:
        """Ends the worker, where there is one; returns what it last said on standard error."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        process.wait()
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what it no longer reads
                pipe.close()
        return " ".join(said)[:200]

    def forget(self) -> None:
        """In a forked child: the worker is the parent's, which may be using it right now."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout, process.stderr):
            # Not the buffer around it: what is in there is the parent's, too.
            pipe.raw.close()  # type: ignore[union-attr]
        process.returncode = 0  # nobody's to wait for


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # A session of its own: the terminal's Ctrl-C is not meant for it.
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        start_new_session=True,
    )


PROCESS = TemplateProcess()
"""this process's; it ends with us, at the latest when its standard input does"""

atexit.register(PROCESS.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.forget)
