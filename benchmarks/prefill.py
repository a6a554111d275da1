"""How fast a prompt is read: prompt tokens over the time until the first token of the story.

    python benchmarks/prefill.py [--prompts 16 64 200 250] [--json benchmarks/results/prefill.json]

Every prompt is new, so that no cache holds any of it (checked). The classifier for the last token
and the sampling of the first new one are included.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from common import DTYPES, ISAS, finish, interleaved, model_files, parser, spread, table
from common import thread_counts as all_thread_counts

from pyllama2c import Llama


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--threads", type=int, nargs="+", metavar="N", help="[1 and all]")
    made.add_argument("--isa", choices=ISAS, default="auto", help="[auto]")
    made.add_argument("--prompts", type=int, nargs="+", default=[16, 64, 200, 250], metavar="N")
    arguments = made.parse_args()
    rng = np.random.default_rng(7)

    def read(case: tuple[Llama, int], number: int) -> float:
        llama, length = case
        ids = rng.integers(3, llama.config.vocab_size, length).tolist()
        story = llama.generate(ids, max_tokens=1, seed=number + 1)
        started = perf_counter()
        next(story)
        seconds = perf_counter() - started
        if story.stats.cached_tokens:
            raise SystemExit(f"{story.stats.cached_tokens} tokens of the prompt were cached")
        return length / seconds

    with model_files(arguments.shape) as files:
        cases = [
            (llama, length)
            for threads in arguments.threads or all_thread_counts()
            for dtype in DTYPES
            for llama in [
                Llama(*files, dtype=dtype, speculative=False, threads=threads, isa=arguments.isa)
            ]
            for length in arguments.prompts
        ]
        figures = interleaved(cases, arguments.rounds, read)
    rows: list[dict[str, Any]] = [
        {
            "dtype": llama.config.dtype,
            "threads": llama.threads,
            "isa": llama.isa,
            "prompt": length,
            "tokens_per_second": spread(speeds),
        }
        for (llama, length), speeds in zip(cases, figures, strict=True)
    ]
    lines = [
        [
            row["dtype"],
            row["threads"],
            row["prompt"],
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{row['tokens_per_second']['min']:,.0f} to {row['tokens_per_second']['max']:,.0f}",
        ]
        for row in rows
    ]
    result = {"shape": arguments.shape, "rounds": arguments.rounds, "prefill": rows}
    finish(arguments, result, table(["dtype", "threads", "prompt", "tok/s", "range"], lines))


if __name__ == "__main__":
    main()
