"""Tokens per second of one story, and what a token costs further along in a long context.

    python benchmarks/decode.py [--isa avx2 scalar] [--json benchmarks/results/decode.json]
    python benchmarks/decode.py --positions 4096 --json benchmarks/results/positions.json

Temperature 1, top-p 0.9; sampling, text and the Python generator are included. Weights are the
bytes that tokens read, the draft's as well as the model's; without a draft, beside what the same
threads read of one long matrix in the same round. With --positions the shape gets a context of that
length, and the figure is microseconds a token at positions 16, 32, 64 and so on: the median over
the 8 before each.
"""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from common import DTYPES, ISAS, finish, interleaved, model_files, parser, spread, table
from common import thread_counts as all_thread_counts

from pyllama2c import Llama
from pyllama2c.cli.bench import SHAPES, read_bandwidth

WINDOW = 8
"""tokens timed at a position"""


class Mode(NamedTuple):
    dtype: str
    speculative: bool

    def __str__(self) -> str:
        return self.dtype + " speculative" * self.speculative


class Case(NamedTuple):
    name: Mode
    llama: Llama
    draft_bytes: int
    """of the int8 copy's weights that a drafted token reads"""


def open_cases(files: list[Any], modes: list[Mode], threads: list[int], isas: list[str]) -> Any:
    with Llama(*files, dtype="int8") as int8:
        draft_bytes = int8.sweep_bytes
    return [
        Case(
            mode,
            Llama(*files, dtype=mode.dtype, speculative=mode.speculative, threads=n, isa=isa),
            draft_bytes * mode.speculative,
        )
        for isa in isas
        for n in threads
        for mode in modes
    ]


def tell(case: Case, number: int, tokens: int) -> dict[str, Any]:
    """One story; the same one in every case of a round."""
    story = case.llama.generate([1], max_tokens=tokens, seed=number + 1)
    next(story)
    started = perf_counter()
    for _ in story:
        pass
    seconds = perf_counter() - started
    timed, stats = len(story.tokens) - 1, story.stats
    sweeps = (timed - stats.accepted_tokens) * case.llama.sweep_bytes
    weights = (sweeps + stats.drafted_tokens * case.draft_bytes) / seconds
    bandwidth = read_bandwidth(case.llama.sweep_bytes, case.llama.threads, 0.1)
    return {
        "tokens_per_second": timed / seconds,
        "weights_gb_per_second": weights / 1e9,
        "share_of_read_bandwidth": weights / bandwidth,
        "drafted": stats.drafted_tokens,
        "accepted": stats.accepted_tokens,
        "story": story.tokens,
    }


def measure_stories(cases: list[Case], rounds: int, tokens: int) -> list[dict[str, Any]]:
    figures = interleaved(cases, rounds, lambda case, number: tell(case, number, tokens))
    stories: dict[tuple[str, int], list[int]] = {}
    rows = []
    for case, runs in zip(cases, figures, strict=True):
        for number, run in enumerate(runs):
            same = stories.setdefault((case.name.dtype, number), run["story"])
            if same != run["story"]:
                raise SystemExit(f"{case.name}: another story than {case.name.dtype} before")
        drafted = sum(run["drafted"] for run in runs)
        rows.append(
            {
                "mode": str(case.name),
                "dtype": case.name.dtype,
                "speculative": case.name.speculative,
                "threads": case.llama.threads,
                "isa": case.llama.isa,
                "tokens_per_second": spread([run["tokens_per_second"] for run in runs]),
                "weights_gb_per_second": median(run["weights_gb_per_second"] for run in runs),
                "share_of_read_bandwidth": None
                if case.name.speculative
                else median(run["share_of_read_bandwidth"] for run in runs),
                "accepted_share": sum(run["accepted"] for run in runs) / drafted
                if drafted
                else None,
            }
        )
    return rows


def stories_table(rows: list[dict[str, Any]]) -> str:
    head = ["mode", "isa", "threads", "tok/s", "range", "weights", "of bandwidth", "accepted"]
    lines = []
    for row in rows:
        speed, of_bandwidth = row["tokens_per_second"], row["share_of_read_bandwidth"]
        accepted = row["accepted_share"]
        lines.append(
            [
                row["mode"],
                row["isa"],
                row["threads"],
                f"{speed['median']:,.0f}",
                f"{speed['min']:,.0f} to {speed['max']:,.0f}",
                f"{row['weights_gb_per_second']:.1f} GB/s",
                *("" if share is None else f"{share:.0%}" for share in (of_bandwidth, accepted)),
            ]
        )
    return table(head, lines)


def at_positions(case: Case, ids: list[int], positions: list[int]) -> list[float]:
    """Seconds per token at each position; what precedes it is cached by then."""
    seconds = []
    for position in positions:
        story = case.llama.generate(ids[: position - WINDOW], max_tokens=WINDOW + 1, seed=1)
        next(story)
        times = [perf_counter()]
        for _ in story:
            times.append(perf_counter())
        steps = np.diff(times)
        if len(steps) != WINDOW:
            raise SystemExit(f"{len(steps)} tokens at position {position}, not {WINDOW}")
        seconds.append(float(np.median(steps)))
    return seconds


def measure_positions(cases: list[Case], rounds: int, longest: int) -> dict[str, Any]:
    positions = [2**i for i in range(4, longest.bit_length()) if 2**i <= longest]
    vocabulary = cases[0].llama.config.vocab_size
    ids = np.random.default_rng(7).integers(3, vocabulary, longest).tolist()
    figures = interleaved(cases, rounds, lambda case, _: at_positions(case, ids, positions))
    return {
        "positions": {
            str(case.name): {
                str(p): 1e6 * median(run[i] for run in runs) for i, p in enumerate(positions)
            }
            for case, runs in zip(cases, figures, strict=True)
        },
        "threads": cases[0].llama.threads,
        "isa": cases[0].llama.isa,
        "sweep_bytes": {str(case.name): case.llama.sweep_bytes for case in cases},
        "config": asdict(cases[0].llama.config),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--threads", type=int, nargs="+", metavar="N", help="[1 and all]")
    made.add_argument("--isa", nargs="+", choices=ISAS, default=["auto"], help="[auto]")
    made.add_argument("--tokens", type=int, metavar="N", help="of a story [the whole context]")
    made.add_argument("--positions", type=int, metavar="N", help="up to this context, 16 or more")
    arguments = made.parse_args()
    threads = arguments.threads or all_thread_counts()
    result: dict[str, Any] = {"shape": arguments.shape, "rounds": arguments.rounds}
    plain = [Mode(dtype, False) for dtype in DTYPES]
    if arguments.positions is None:
        tokens = arguments.tokens or SHAPES[arguments.shape][6]
        modes = [plain[0], Mode("float32", True), *plain[1:]]
        with model_files(arguments.shape) as files:
            cases = open_cases(files, modes, threads, arguments.isa)
            rows = measure_stories(cases, arguments.rounds, tokens)
        finish(arguments, result | {"tokens": tokens, "decode": rows}, stories_table(rows))
        return
    if arguments.positions < 16:
        raise SystemExit("--positions must be 16 or more")
    with model_files(arguments.shape, arguments.positions) as files:
        cases = open_cases(files, plain, threads[-1:], arguments.isa[:1])
        result |= measure_positions(cases, arguments.rounds, arguments.positions)
    columns = result["positions"]
    rows = [[p, *(f"{columns[name][p]:,.0f}" for name in columns)] for p in columns["float32"]]
    finish(arguments, result, table(["position", *(f"{name} us" for name in columns)], rows))


if __name__ == "__main__":
    main()
