"""Renders one chat template in a process of its own, whose time and memory the kernel limits.

A template comes with a model file, from anybody. Jinja's sandbox keeps it away from Python
(CVE-2024-34359 is what happens without), but not from `"a" * 10**10` or nested loops. A process
can be ended whatever it is doing. This file runs as a script, without the package: JSON comes on
standard input and goes to standard output.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any, NoReturn

MEGABYTE = 1 << 20


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _render(request: dict[str, Any]) -> str:
    from datetime import datetime

    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: object) -> NoReturn:
        raise TemplateError(str(message))

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    # Not optimized: nothing of a template is computed while it is compiled. As in transformers,
    # a block takes its line's spaces with it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    names = {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(request["template"]).render(**request["names"], **names)


def main() -> None:
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CPU, request["seconds"])
    _limit(resource.RLIMIT_AS, request["megabytes"] * MEGABYTE)
    answer: dict[str, str]
    try:
        text = _render(request)
        if len(text) > request["characters"]:
            answer = {"error": f"its text has {len(text)} characters"}
        else:
            answer = {"text": text}
    except ModuleNotFoundError as error:
        answer = {"missing": str(error)}
    except MemoryError:
        answer = {"error": f"it needs more than {request['megabytes']} MB"}
    except RecursionError:
        answer = {"error": "it is nested too deeply"}
    except Exception as error:  # whatever a template provokes is what is wrong with it
        answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
