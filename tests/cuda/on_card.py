"""Runs the items of card_checks or card_speeds, each in a process with a time limit of its own.

    python tests/cuda/on_card.py check|speed [ITEM ...]

on_card.sh is what calls this on a card. $OUT/check.json or speed.json is written anew after every
item, so that what was found stays whatever happens next; an item that fails or hangs is noted, and
the next one begins. $ON_CARD_SCALE (1) scales all counts: 0.001 rehearses on the fake driver;
$ON_CARD_PATIENCE (1) scales all limits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CARRIED = Path(os.environ.get("ON_CARD_FILES", ROOT / "build" / "card"))
"""what on_card.sh pack made: models, decode_launches, linear_launches"""

Result = dict[str, Any]
"""ok: a bool; summary: a line; and figures"""


@dataclass(frozen=True)
class Item:
    run: Callable[[], Result]
    limit: float
    """seconds, at most"""


SCALE = float(os.environ.get("ON_CARD_SCALE", "1"))
PATIENCE = float(os.environ.get("ON_CARD_PATIENCE", "1"))


def scaled(n: int) -> int:
    return max(1, round(n * SCALE))


def items(command: str) -> tuple[dict[str, Item], float]:
    """Those of a command, in order, and the seconds of them all."""
    if command == "check":
        from card_checks import ITEMS, SECONDS
    else:
        from card_speeds import ITEMS, SECONDS
    return ITEMS, SECONDS * PATIENCE


def attempt(command: str, name: str, limit: float) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer", Path(folder) / "log"
        with log.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, __file__, "--item", command, name, str(answer)],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = child.wait(limit)
                ended = f"exit code {code}" if code else "no answer"
            except subprocess.TimeoutExpired:
                ended = f"still running after {limit:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # with whatever it started
                child.wait()
        tail = log.read_text(errors="replace")[-1500:]
        if answer.is_file():
            found: Result = json.loads(answer.read_text())
            return found if found["ok"] else found | {"log": tail}
    last = tail.strip().splitlines()[-1:] or [""]
    return {"ok": False, "summary": f"{ended}: {last[0][:120]}", "log": tail}


def run_all(command: str, wanted: list[str]) -> int:
    out = Path(os.environ.get("OUT", "on_card"))
    out.mkdir(parents=True, exist_ok=True)
    known, left = items(command)
    found: dict[str, Result] = {}
    for name in wanted or known:
        limit = min(known[name].limit * PATIENCE, left)
        started = time.monotonic()
        if limit < 2:
            found[name] = {"ok": False, "summary": "no time was left"}
        else:
            found[name] = attempt(command, name, limit)
        seconds = time.monotonic() - started
        left -= seconds
        found[name]["seconds"] = round(seconds, 2)
        (out / f"{command}.json").write_text(json.dumps(found, indent=1) + "\n")
        verdict = "ok  " if found[name]["ok"] else "FAIL"
        print(f"{verdict} {seconds:6.1f} s  {name:20} {found[name]['summary']}", flush=True)
    return 0 if all(result["ok"] for result in found.values()) else 1


def main() -> int:
    arguments = sys.argv[1:]
    sys.path[:0] = [str(HERE), str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]
    if arguments[:1] == ["--item"]:
        _, command, name, answer = arguments
        result = items(command)[0][name].run()
        Path(answer).write_text(json.dumps(result))
        return 0
    if not arguments or arguments[0] not in ("check", "speed"):
        sys.exit(__doc__)
    known = items(arguments[0])[0]
    unknown = [name for name in arguments[1:] if name not in known]
    if unknown:
        sys.exit(f"no item {unknown[0]!r}; known: {', '.join(known)}")
    return run_all(arguments[0], arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
