"""How long an event loop is kept waiting: a ticker of 1 ms beside async stories, and beside none.

    python benchmarks/async_stories.py [--stories 8] [--seconds 3] [--json FILE]

A tick late by more than the others is one that somebody else's step delayed: the interpreter's
lock, or a processor that is not free. Stories that end are begun anew.
"""

from __future__ import annotations

import asyncio
from statistics import median
from time import perf_counter
from typing import Any

from common import finish, parser, table

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
    made = parser(__doc__, rounds=1)
    made.add_argument("--stories", type=int, default=8, metavar="N", help="[8]")
    made.add_argument("--seconds", type=float, default=3.0, help="of each measurement [3]")
    made.add_argument("--model", help="[the embedded storyteller]")
    arguments = made.parse_args()
    rows: list[dict[str, Any]] = []
    with Llama(arguments.model) as llama:
        for stories in (0, arguments.stories):
            intervals, pieces = asyncio.run(measure(llama, stories, arguments.seconds))
            ordered = sorted(intervals)
            rows.append(
                {
                    "stories": stories,
                    "median_ms": median(ordered),
                    "p99_ms": ordered[len(ordered) * 99 // 100],
                    "longest_ms": ordered[-1],
                    "ticks": len(ordered),
                    "pieces_per_second": pieces / arguments.seconds,
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
