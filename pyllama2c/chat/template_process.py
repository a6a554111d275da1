"""The process that renders chat templates. It is started on first use and kept, as starting takes
longer than rendering; after a template that exceeded its limits, a new one is started."""

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

# How a process ends that took more time than it was given.
if sys.platform == "win32":
    _OUT_OF_TIME = 1816  # ERROR_NOT_ENOUGH_QUOTA
else:
    _OUT_OF_TIME = -signal.SIGPROF

_WORKER = Path(__file__).resolve().with_name("template_worker.py")


class ProcessEndedError(Exception):
    """The worker ended instead of answering."""


class LimitError(ProcessEndedError):
    """It ended because the request exceeded a limit."""


class TemplateProcess:
    """A worker, which answers one request at a time: threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []

    def ask(self, request: dict[str, Any], megabytes: int, timeout: float) -> dict[str, Any]:
        """The answer to a request (see template_worker); ProcessEndedError without one.

        A request may take request["seconds"] of CPU time, and `timeout` seconds of wall-clock time.
        """
        path = [os.path.abspath(entry) for entry in sys.path if entry]
        settings = json.dumps({"path": path, "megabytes": megabytes})
        command = [sys.executable, "-I", "-S", "-W", "ignore", str(_WORKER), settings]
        with self._lock:
            if self._process is not None and self._command == command:
                try:
                    return self._exchange(self._process, request, timeout)
                except LimitError:
                    raise
                except ProcessEndedError:
                    pass  # for another reason, perhaps long ago (out of memory): try again
            self.stop()
            self._command, self._process = command, _start(command)
            return self._exchange(self._process, request, timeout)

    def _exchange(
        self, process: subprocess.Popen[bytes], request: dict[str, Any], timeout: float
    ) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout, give_up)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            # Of a worker that has ended: a broken pipe, or on Windows EINVAL as well.
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except BaseException:  # Ctrl-C: nobody will read the pending answer
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
            raise LimitError(f"it takes more than {timeout:g} seconds")
        if status == _OUT_OF_TIME:
            raise LimitError(f"it takes more than {request['seconds']:g} seconds of CPU time")
        raise ProcessEndedError(f"its process ended with {status} {reason}".rstrip())

    def stop(self) -> str:
        """Ends the worker, if any; returns the last line of its standard error."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        process.wait()
        assert process.stderr is not None
        lines = process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):  # of input that it no longer reads
                pipe.close()
        return " ".join(lines)[:200]

    def forget(self) -> None:
        """In a forked child: the worker is the parent's, which may be using it right now."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout, process.stderr):
            # Not the buffered file, which would write out what the parent has buffered.
            pipe.raw.close()  # type: ignore[union-attr]
        process.returncode = 0  # not our child to wait for


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # In a session of its own, so that Ctrl-C in the terminal does not reach it.
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:
        flags = 0
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        start_new_session=True,
        creationflags=flags,
    )


PROCESS = TemplateProcess()
"""the only one; it ends with this process, at the latest when its standard input closes"""

atexit.register(PROCESS.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.forget)
