"""How long an event loop is kept waiting: a ticker of 1 ms beside async stories, and beside none.

    python benchmarks/async_stories.py [--stories 8] [--seconds 1] [--json PATH]

A tick late by more than the others is one that somebody else's step delayed: the interpreter's
lock, or a processor that is not free. Stories that end are begun anew.
"""

from __future__ import annotations

import asyncio
from statistics import median
from time import perf_counter
from typing import Any

from common import finish, interleaved, model_files, parser, table

from pyllama2c import Llama

TICK = 0.001


async def ticks(seconds: float) -> list[float]:
    """Milliseconds from one tick to the next, which are to be 1."""
    intervals = []
    last = started = perf_counter()
    while last - started < seconds:
        await asyncio.sleep(TICK)
        now = perf_counter()
        intervals.append(1000 * (now - last))
        last = now
    return intervals


async def tell(llama: Llama, seed: int) -> int:
    """Story after story until it is cancelled, piece by piece."""
    count = 0
    try:
        while True:
            async for _ in llama.generate(seed=seed):
                count += 1
            seed += 1000
    except asyncio.CancelledError:
        return count


async def measure(llama: Llama, stories: int, seconds: float) -> tuple[list[float], int]:
    tasks = [asyncio.create_task(tell(llama, seed)) for seed in range(1, stories + 1)]
    await asyncio.sleep(0.1)
    intervals = await ticks(seconds)
    for task in tasks:
        task.cancel()
    return intervals, sum(await asyncio.gather(*tasks))


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--stories", type=int, default=8, metavar="N", help="[8]")
    made.add_argument("--seconds", type=float, default=1.0, help="of each measurement [1]")
    arguments = made.parse_args()
    counts = [0, arguments.stories]
    with model_files(arguments.shape) as files, Llama(*files) as llama:

        def ticker(stories: int, _: int) -> tuple[list[float], int]:
            return asyncio.run(measure(llama, stories, arguments.seconds))

        figures = interleaved(counts, arguments.rounds, ticker)
    rows: list[dict[str, Any]] = []
    for stories, rounds in zip(counts, figures, strict=True):
        ordered = sorted(interval for intervals, _ in rounds for interval in intervals)
        pieces = sum(count for _, count in rounds)
        rows.append(
            {
                "stories": stories,
                "median_ms": median(ordered),
                "p99_ms": ordered[len(ordered) * 99 // 100],
                "longest_ms": ordered[-1],
                "ticks": len(ordered),
                "pieces_per_second": pieces / arguments.seconds / arguments.rounds,
            }
        )
    cells = [
        [
            row["stories"],
            *(f"{row[name]:.2f}" for name in ("median_ms", "p99_ms", "longest_ms")),
            f"{row['pieces_per_second']:,.0f}",
        ]
        for row in rows
    ]
    head = ["stories", "median ms", "99% ms", "longest ms", "pieces/s"]
    finish(arguments, {"ticker": rows}, table(head, cells))


if __name__ == "__main__":
    main()
