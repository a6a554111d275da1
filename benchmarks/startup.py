"""From the start of a process to the first token of its story, in milliseconds.

    python benchmarks/startup.py [--rounds 15] [--json benchmarks/results/startup.json]

A fresh interpreter runs `-m pyllama2c MODEL -z TOKENIZER -n 2`; the clock stops at the first byte
of the story. Files are in the page cache. "quantized at opening" is a float32 file with --dtype
int8; "int8 file" was written by `pyllama2c quantize`. Beside them, an interpreter alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

from common import finish, interleaved, model_files, parser, spread, table

from pyllama2c.convert.quantize import quantize_file


def first_byte(command: list[str]) -> float:
    started = perf_counter()
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, bufsize=0) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.read(1)
        seconds = perf_counter() - started
        process.stdout.read()
        complaint = process.stderr.read()
    if not first or process.returncode:
        raise SystemExit(f"{' '.join(command)}: {complaint.decode()[-300:]}")
    return seconds


def main() -> None:
    arguments = parser(__doc__, rounds=15).parse_args()
    with model_files(arguments.shape) as (model, tokenizer):
        int8 = Path(tokenizer).with_name("int8.bin")
        quantize_file(model, int8)
        base = [sys.executable, "-m", "pyllama2c", "-n", "2", "-s", "1"]
        float32 = [*base, str(model), "-z", str(tokenizer)]
        commands = {
            "interpreter alone": [sys.executable, "-c", "print()"],
            "embedded model": base,
            "float32 file": float32,
            "float32 file, not speculative": [*float32, "--no-speculative"],
            "float32 file, quantized at opening": [*float32, "--dtype", "int8"],
            "int8 file": [*base, str(int8), "-z", str(tokenizer)],
        }
        names = list(commands)
        figures = interleaved(names, arguments.rounds, lambda name, _: first_byte(commands[name]))
    rows = {
        name: spread([1e3 * s for s in seconds])
        for name, seconds in zip(names, figures, strict=True)
    }
    lines = [
        [name, f"{ms['median']:.0f}", f"{ms['min']:.0f} to {ms['max']:.0f}"]
        for name, ms in rows.items()
    ]
    result = {"shape": arguments.shape, "rounds": arguments.rounds, "milliseconds": rows}
    finish(arguments, result, table(["first token of", "ms", "range"], lines))


if __name__ == "__main__":
    main()
