"""What the benchmarks share: models in a temporary folder, interleaved rounds, tables, JSON.

Figures are medians over rounds. A round measures every case once, in turn, so that a machine that
becomes slower or faster does so for all of them; the first round warms up and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from pyllama2c import __version__
from pyllama2c.cli.bench import SHAPES, synthetic_files
from pyllama2c.engine.workers import available_cpus

DTYPES = ("float32", "int8", "int4")
ISAS = ("auto", "scalar", "avx2", "avxvnni", "avx512", "neon", "dotprod", "i8mm")
RESULTS = Path(__file__).resolve().parent / "results"

Case = TypeVar("Case")
Figure = TypeVar("Figure")


def parser(description: str | None, rounds: int = 9) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--shape", choices=SHAPES, default="stories15M", help="[stories15M]")
    made.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"[{rounds}]")
    made.add_argument("--json", type=Path, metavar="PATH", help="writes the result there as well")
    return made


def thread_counts() -> list[int]:
    """One, and all that this process may use."""
    return sorted({1, available_cpus()})


@contextmanager
def model_files(shape: str, seq_len: int | None = None) -> Iterator[list[Path]]:
    """[checkpoint, tokenizer] of the synthetic shape, or of one with a context of `seq_len`."""
    if seq_len is not None:
        longer = f"{shape}, context {seq_len}"
        SHAPES[longer] = (*SHAPES[shape][:6], seq_len)
        shape = longer
    with tempfile.TemporaryDirectory() as folder:
        yield list(synthetic_files(shape, Path(folder)))


def interleaved(
    cases: Sequence[Case], rounds: int, measure: Callable[[Case, int], Figure]
) -> list[list[Figure]]:
    """`measure(case, round)` of each case in turn, `rounds` times after one that warms up."""
    if rounds < 1:
        raise SystemExit("--rounds must be 1 or more")
    figures: list[list[Figure]] = [[] for _ in cases]
    for number in range(rounds + 1):
        for case, kept in zip(cases, figures, strict=True):
            figure = measure(case, number)
            if number > 0:
                kept.append(figure)
    return figures


def is_ours(engine: str) -> bool:
    """Whether an engine of peers.py is pyllama2c, in one mode or another."""
    return engine.startswith("pyllama2c")


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def processor() -> str:
    """The processor's name, with the family and model that tell generations apart."""
    try:
        pairs = re.findall(r"^([^\t:]+)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        pairs = []
    facts = dict(reversed(pairs))
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in facts:
        return name
    return f"{name} (family {facts['cpu family']}, model {facts.get('model')})"


def about() -> dict[str, Any]:
    """Where, when and how a result was made."""
    script = os.path.relpath(sys.argv[0], Path(__file__).resolve().parents[1])
    return {
        "machine": f"{processor()}, {available_cpus()} processor(s)",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "pyllama2c": __version__,
        "date": date.today().isoformat(),
        "command": " ".join(["python", script, *sys.argv[1:]]),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell: the first to the left, the others to the right."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{n}}" for cell, n in zip(row[1:], widths[1:], strict=True))
        for row in cells
    )


def finish(arguments: argparse.Namespace, result: Mapping[str, Any], text: str) -> None:
    """The table to standard output; the result and where it was made to --json."""
    print(text)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(about() | dict(result), indent=1) + "\n")
