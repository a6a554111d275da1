"""Many stories side by side: generate_batch with batches of 1, 2, 4 and so on.

    python benchmarks/batch.py [--largest 256] [--json benchmarks/results/batch.json]

Temperature 1, top-p 0.9; as many stories as the batch has room for, of equal length. Includes all
that generate_batch does: memory for the sequences, the prompts (two tokens each: after BOS alone,
whose embedding is zeros here, all tokens are equally likely), sampling, text. "Python" is the share
of the time that is spent outside C's functions.
"""

from __future__ import annotations

from dataclasses import asdict
from time import perf_counter
from typing import Any

from common import DTYPES, ISAS, finish, interleaved, model_files, parser, spread, table

from pyllama2c import Llama
from pyllama2c.engine.session import MAX_ROWS
from pyllama2c.engine.workers import available_cpus
from pyllama2c.generation import batch as batch_module


class TimedLibrary:
    """The C library for generation/batch.py, with a clock around each function."""

    def __init__(self, library: Any):
        self.library, self.seconds = library, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.library, name)
        if not callable(found):
            return found

        def timed(*arguments: Any) -> Any:
            started = perf_counter()
            try:
                return found(*arguments)
            finally:
                self.seconds += perf_counter() - started

        setattr(self, name, timed)
        return timed


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--threads", type=int, default=available_cpus(), metavar="N", help="[all]")
    made.add_argument("--isa", choices=ISAS, default="auto", help="[auto]")
    made.add_argument("--tokens", type=int, default=128, metavar="N", help="of a story [128]")
    made.add_argument("--largest", type=int, default=MAX_ROWS, metavar="N", help=f"[{MAX_ROWS}]")
    arguments = made.parse_args()
    batches = [2**i for i in range(arguments.largest.bit_length())]

    library = TimedLibrary(batch_module.lib)
    batch_module.lib = library

    def tell(case: tuple[Llama, int], number: int) -> tuple[float, float]:
        """Seconds per token, and those of them in Python."""
        llama, batch = case
        library.seconds, started = 0.0, perf_counter()
        stories = list(
            llama.generate_batch(
                [[1, 300 + number]],
                n=batch,
                max_batch=batch,
                max_tokens=arguments.tokens,
                seed=number + 1,
            )
        )
        seconds = perf_counter() - started
        wrong = [story.error for story in stories if story.error]
        if wrong:
            raise SystemExit(f"a story failed: {wrong[0]}")
        n_tokens = sum(len(story.tokens) for story in stories)
        return seconds / n_tokens, (seconds - library.seconds) / n_tokens

    with model_files(arguments.shape) as files:
        options: dict[str, Any] = {"threads": arguments.threads, "isa": arguments.isa}
        llamas = [Llama(*files, dtype=name, speculative=False, **options) for name in DTYPES]
        cases = [(llama, batch) for batch in batches for llama in llamas]
        figures = interleaved(cases, arguments.rounds, tell)
    rows = [
        {
            "dtype": llama.config.dtype,
            "batch": batch,
            "tokens_per_second": spread([1 / s for s, _ in figure]),
            "microseconds_per_token": spread([1e6 * s for s, _ in figure])["median"],
            "python_share": spread([python / s for s, python in figure])["median"],
        }
        for (llama, batch), figure in zip(cases, figures, strict=True)
    ]
    rows.sort(key=lambda row: DTYPES.index(row["dtype"]))
    lines = [
        [
            row["dtype"],
            row["batch"],
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{row['tokens_per_second']['min']:,.0f} to {row['tokens_per_second']['max']:,.0f}",
            f"{row['microseconds_per_token']:,.1f}",
            f"{row['python_share']:.2%}",
        ]
        for row in rows
    ]
    result = {
        "shape": arguments.shape,
        "rounds": arguments.rounds,
        "tokens": arguments.tokens,
        "threads": arguments.threads,
        "isa": llamas[0].isa,
        "sweep_bytes": {llama.config.dtype: llama.sweep_bytes for llama in llamas},
        "config": asdict(llamas[0].config),
        "batch": rows,
    }
    finish(
        arguments, result, table(["dtype", "batch", "tok/s", "range", "us/token", "Python"], lines)
    )


if __name__ == "__main__":
    main()
