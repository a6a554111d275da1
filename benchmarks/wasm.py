"""Tokens per second of the WebAssembly engine in Node, beside native kernels: scalar and best.

    python benchmarks/wasm.py [MODEL...] [--json benchmarks/results/wasm.json]
    python benchmarks/wasm.py MODEL --program engine.wasm

One thread everywhere, and the same stories: temperature 1, top-p 0.9. With --program, also the last
"N tok/s" that a program compiled to wasm32-wasi prints when it is started with the model's path.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from common import finish, interleaved, parser, spread, table

from pyllama2c import Llama, wasm

HERE = Path(__file__).resolve().parent
WASI = HERE.parent / "tests" / "wasm" / "run_wasi.mjs"


class Case(NamedTuple):
    llama: Llama
    kernels: str


def native(llama: Llama, seed: int) -> tuple[float, list[int]]:
    story = llama.generate([1], max_tokens=250, seed=seed)
    next(story)
    started = perf_counter()
    for _ in story:
        pass
    return (len(story.tokens) - 1) / (perf_counter() - started), story.tokens


def in_node(node: subprocess.Popen[str], request: dict[str, object]) -> tuple[float, list[int]]:
    assert node.stdin is not None and node.stdout is not None
    node.stdin.write(json.dumps(request) + "\n")
    node.stdin.flush()
    answer = json.loads(node.stdout.readline())
    return (len(answer["ids"]) - 1) / answer["seconds"], answer["ids"]


def main() -> None:
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("models", nargs="*", metavar="MODEL", help="[the embedded one]")
    arguments.add_argument("--program", type=Path, metavar="PATH", help="a module that uses WASI")
    given = arguments.parse_args()
    cases = []
    for model in given.models or [None]:
        for isa in ("auto", "scalar"):
            llama = Llama(model and Path(model).resolve(), isa=isa, threads=1, speculative=False)
            cases.append(Case(llama, llama.isa))
        cases += [Case(llama, "WebAssembly"), *[Case(llama, "program")] * bool(given.program)]
    stories: dict[tuple[str, int], list[int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "engine.wasm"
        module.write_bytes(wasm.load())
        node = subprocess.Popen(
            ["node", HERE / "wasm.mjs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

        def measure(case: Case, number: int) -> float:
            key = (case.llama.path, number)
            if case.kernels == "program":
                command = ["node", "--no-warnings", WASI, given.program, "/", case.llama.path]
                told = subprocess.run(command, capture_output=True, text=True).stdout
                *_, speed = re.findall(r"([\d.]+) tok/s", told)
                return float(speed)
            if case.kernels == "WebAssembly":
                wanted = {"seed": number + 1, "tokens": len(stories[key]), "top_p": 0.9}
                wanted |= {"module": str(module), "model": case.llama.path, "temperature": 1.0}
                rate, story = in_node(node, wanted)
            else:
                rate, story = native(case.llama, number + 1)
            if stories.setdefault(key, story) != story:
                raise SystemExit(f"{case.kernels}: another story than before")
            return rate

        figures = interleaved(cases, given.rounds, measure)
        node.communicate("")
    rows = [
        {"model": Path(case.llama.path).name, "kernels": case.kernels} | spread(speeds)
        for case, speeds in zip(cases, figures, strict=True)
    ]
    lines = [
        [row["model"], row["kernels"], *(f"{row[name]:,.0f}" for name in ("median", "min", "max"))]
        for row in rows
    ]
    finish(given, {"rows": rows}, table(["model", "kernels", "tok/s", "least", "most"], lines))


if __name__ == "__main__":
    main()
