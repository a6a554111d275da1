"""pyllama2c beside llama2.c's run binaries, on the same weights, in one interleaved run.

    python benchmarks/llama2c.py --run fast=path/to/run --run omp=path/to/runomp [--json]

Every round tells one story of the same length with each engine in turn: temperature 1, top-p 0.9,
sampling and decoding included. Build the binaries as llama2.c's Makefile does; those built with
OpenMP take `--threads` through OMP_NUM_THREADS. Figures are tokens per second as run.c prints them
(from the first token on); ratios are taken round by round, so that drift of the machine cancels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from pyllama2c import Llama
from pyllama2c.bench import SHAPES, read_bandwidth, synthetic_files


def tell(command: list[str], steps: int, seed: int, threads: int) -> float:
    """One story by a fresh process, which is what each engine gets; its own tok/s."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [*command, "-n", str(steps), "-s", str(seed)]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    match = re.search(rb"achieved tok/s: ([\d.]+)", done.stderr)
    if match is None:
        raise SystemExit(f"{command[0]} did not report tok/s: {done.stderr[-200:]!r}")
    return float(match.group(1))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    engines = dict(name.split("=", 1) for name in arguments.run)
    figures: dict[str, list[float]] = {}
    bandwidth: dict[int, list[float]] = {n: [] for n in arguments.threads}
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = synthetic_files(arguments.shape, Path(folder))
        steps = SHAPES[arguments.shape][6] - 1
        files = [str(model), "-z", str(tokenizer)]
        with Llama(model) as llama:
            sweep = llama.sweep_bytes
        for seed in range(1, arguments.rounds + 1):
            for threads in arguments.threads:
                commands = {name: [path, *files] for name, path in engines.items()}
                python = [sys.executable, "-m", "pyllama2c", *files, "--threads", str(threads)]
                for name, command in (commands | {"pyllama2c": python}).items():
                    speed = tell(command, steps, seed, threads)
                    figures.setdefault(f"{name}, {threads} thread(s)", []).append(speed)
                bandwidth[threads].append(read_bandwidth(sweep, threads))
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "shape": arguments.shape,
        "rounds": arguments.rounds,
        "tokens_per_second": {name: median(values) for name, values in figures.items()},
        "ratio_to": {},
        "share_of_read_bandwidth": {},
    }
    for threads in arguments.threads:
        mine = figures[f"pyllama2c, {threads} thread(s)"]
        shares = [s * sweep / b for s, b in zip(mine, bandwidth[threads], strict=True)]
        result["share_of_read_bandwidth"][f"{threads} thread(s)"] = median(shares)
        for name in engines:
            key = f"{name}, {threads} thread(s)"
            ratios = [a / b for a, b in zip(mine, figures[key], strict=True)]
            result["ratio_to"][key] = median(ratios)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--shape", choices=SHAPES, default="stories15M")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, speed in result["tokens_per_second"].items():
        ratio = result["ratio_to"].get(name)
        beside = f"   pyllama2c is {ratio:.2f} times as fast" if ratio else ""
        print(f"{name:28} {speed:9.1f} tok/s{beside}")
    for name, share in result["share_of_read_bandwidth"].items():
        print(f"pyllama2c, {name}: {share:.0%} of the read bandwidth measured beside it")


if __name__ == "__main__":
    main()
