"""Memory of a process: after importing, after opening a model, after a story, and at its peak.

    python benchmarks/memory.py [--rounds 3] [--json benchmarks/results/memory.json]

Each case is a fresh interpreter that reads its own /proc/self/smaps_rollup (Linux): Rss counts
every resident page, Pss a page that n processes share as 1/n; the peak is VmHWM. Megabytes of
10^6 bytes. "weights" is what a token reads (the draft's included); a story has the whole context.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from common import finish, interleaved, model_files, parser, table

from pyllama2c import Llama
from pyllama2c.convert.quantize import quantize_file

CHILD = """
import json, sys
from pyllama2c import Llama

def memory():
    fields = {}
    for path in ("/proc/self/smaps_rollup", "/proc/self/status"):
        for line in open(path):
            name, _, value = line.partition(":")
            if name in ("Rss", "Pss", "VmHWM"):
                fields[name] = 1024 * int(value.split()[0])
    return fields

arguments, options = json.loads(sys.argv[1])
steps = {"imported": memory()}
llama = Llama(*arguments, **options)
steps["opened"] = memory()
story = llama.generate(seed=1)
story.read()
steps["told"] = memory()
print(json.dumps({"tokens": len(story.tokens), "weights": llama.sweep_bytes, **steps}))
"""


def child(case: tuple[list[str], dict[str, Any]]) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, json.dumps(case)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.decode()[-500:])
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    arguments = parser(__doc__, rounds=3).parse_args()
    with model_files(arguments.shape) as (model, tokenizer):
        int8 = Path(tokenizer).with_name("int8.bin")
        quantize_file(model, int8)
        with Llama(model, tokenizer, dtype="int8") as llama:
            draft = llama.sweep_bytes
        files = [str(model), str(tokenizer)]
        cases: dict[str, tuple[list[str], dict[str, Any]]] = {
            "embedded model": ([], {}),
            "float32": (files, {"dtype": "float32", "speculative": False}),
            "float32 speculative": (files, {"dtype": "float32", "speculative": True}),
            "int8": (files, {"dtype": "int8"}),
            "int8 file": ([str(int8), str(tokenizer)], {}),
            "int4": (files, {"dtype": "int4"}),
        }
        names = list(cases)
        figures = interleaved(names, arguments.rounds, lambda name, _: child(cases[name]))
    rows = {}
    for name, runs in zip(names, figures, strict=True):
        rows[name] = {
            "weights": runs[0]["weights"] + draft * (name == "float32 speculative"),
            "story_tokens": runs[0]["tokens"],
            **{
                step: {field: median(run[step][field] for run in runs) for field in runs[0][step]}
                for step in ("imported", "opened", "told")
            },
        }
    head = ["MB", "weights", "imported", "opened Rss", "Pss", "after a story Rss", "Pss", "peak"]
    lines = [
        [name]
        + [
            f"{n / 1e6:.1f}"
            for n in (
                row["weights"],
                row["imported"]["Rss"],
                row["opened"]["Rss"],
                row["opened"]["Pss"],
                row["told"]["Rss"],
                row["told"]["Pss"],
                row["told"]["VmHWM"],
            )
        ]
        for name, row in rows.items()
    ]
    result = {"shape": arguments.shape, "rounds": arguments.rounds, "bytes": rows}
    finish(arguments, result, table(head, lines))


if __name__ == "__main__":
    main()
