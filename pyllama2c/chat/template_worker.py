"""Renders chat templates in a process of its own, whose time and memory the system limits.

A template comes with a model file and is untrusted. Jinja's sandbox keeps it away from Python
(CVE-2024-34359 is what happens without one), but not from `"a" * 10**10` or nested loops. A process
can be killed whatever it is doing. This file runs as a script, without the package: each line of
standard input is a request in JSON, each line of standard output its answer.
"""

from __future__ import annotations

import functools
import json
import os
import struct
import sys
from datetime import datetime
from types import CodeType
from typing import Any, NoReturn

MEGABYTE = 1 << 20


if sys.platform == "win32":
    import ctypes

    _TIME, _ONE_PROCESS, _MEMORY, _NO_DIALOG, _ENDS_WITH_JOB = 0x2, 0x8, 0x100, 0x400, 0x2000
    _FLAGS = _TIME | _ONE_PROCESS | _MEMORY | _NO_DIALOG | _ENDS_WITH_JOB
    _EXTENDED_LIMITS = 9
    _LIMITS = struct.Struct("<qqI4xQQI4xQII6Q4Q")  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION

    class _Limits:
        """A job object of this process alone."""

        def __init__(self, megabytes: int) -> None:
            self._bytes = megabytes * MEGABYTE
            self._windows = windows = ctypes.WinDLL("kernel32", use_last_error=True)
            windows.CreateJobObjectW.restype = windows.GetCurrentProcess.restype = ctypes.c_void_p
            windows.AssignProcessToJobObject.argtypes = [ctypes.c_void_p] * 2
            windows.SetInformationJobObject.argtypes = [
                *(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
            ]
            self._job = self._succeeds(windows.CreateJobObjectW(None, None))
            self.begin(60)  # more than the way to the first request takes
            process = windows.GetCurrentProcess()
            self._succeeds(windows.AssignProcessToJobObject(self._job, process))

        def _succeeds(self, result: int | None) -> int:
            if not result:
                raise ctypes.WinError(ctypes.get_last_error())
            return result

        def begin(self, seconds: float) -> None:
            """So much time from now on: the system ends the process past that."""
            end = int((os.times().user + seconds) * 1e7)
            limits = _LIMITS.pack(end, 0, _FLAGS, 0, 0, 1, 0, 0, 0, *[0] * 6, self._bytes, 0, 0, 0)
            set_limits = self._windows.SetInformationJobObject
            self._succeeds(set_limits(self._job, _EXTENDED_LIMITS, limits, len(limits)))

        def end(self) -> None:
            """Nothing: waiting takes no time."""

else:
    import resource
    import signal

    class _Limits:
        """This process's resource limits, and a timer whose signal ends it."""

        def __init__(self, megabytes: int) -> None:
            self._limit(resource.RLIMIT_CORE, 0)
            self._limit(resource.RLIMIT_FSIZE, 0)
            self._limit(resource.RLIMIT_AS, megabytes * MEGABYTE)
            # The parent may have blocked or ignored it, which is inherited.
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})

        def _limit(self, kind: int, value: int) -> None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))

        def begin(self, seconds: float) -> None:
            signal.setitimer(signal.ITIMER_PROF, seconds)

        def end(self) -> None:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _raise_exception(message: object) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment(mark: str) -> Any:
    """As in transformers, which templates are written for."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks the assistant's text for training: just its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = nodes.CallBlock(self.call_method("_body"), [], [], body)
            return call.set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        text = json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return text.replace(json.dumps(mark)[1:-1], mark)  # the caller removes it

    # Not optimized, so that compiling evaluates nothing of the template. As in transformers, a
    # block removes the white space of its line.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> CodeType:
    code: CodeType = _environment("").compile(source)
    return code


def _render(request: dict[str, Any]) -> str:
    # A new environment each time, so that no template can affect another.
    environment = _environment(request["mark"])
    code = _compiled(request["template"])
    names = environment.make_globals(None)
    template = environment.template_class.from_code(environment, code, names)
    text: str = template.render(**request["names"])
    return text


def _answer(line: str, limits: _Limits, megabytes: int) -> tuple[str, bool]:
    """The answer in JSON, and whether the process may go on after it.

    It has a `text` or an `error`; `limit` means that the template exceeded a limit.
    """
    try:
        request = json.loads(line)
        limits.begin(request["seconds"])
        text = _render(request)
        if len(text) <= request["characters"]:
            return json.dumps({"text": text}), True
        answer = {"error": f"its text has {len(text)} characters", "limit": True}
    except ModuleNotFoundError as error:
        answer = {"missing": str(error)}
    except MemoryError:
        answer = {"error": f"it needs more than {megabytes} MB", "limit": True}
    except RecursionError:
        answer = {"error": "it is nested too deeply", "limit": True}
    except Exception as error:  # whatever a template raises is its own error
        return json.dumps({"error": f"{type(error).__name__}: {str(error)[:500]}"}), True
    finally:
        limits.end()
    return json.dumps(answer), False


def main() -> None:
    settings = json.loads(sys.argv[1])
    sys.path[:] = settings["path"]
    limits = _Limits(settings["megabytes"])
    for line in sys.stdin:
        answer, may_go_on = _answer(line, limits, settings["megabytes"])
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
        if not may_go_on:
            break


if __name__ == "__main__":
    main()
