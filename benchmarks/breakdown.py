"""Where a token's time goes: forward pass, sampling, text, and the rest of Python.

    python benchmarks/breakdown.py [--threads 1] [--json benchmarks/results/breakdown.json]

One story, no speculation. The parts are timed within the same tokens as the whole, so that drift of
the machine between runs does not matter: the two C functions, Session's methods feed and sample
around them, and the text of a token. The cost of the timers is measured and subtracted. "generator
over C" is all that is outside the C functions, as a share of what is inside. The same story is also
timed as a whole, without timers in it.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from common import finish, interleaved, model_files, parser, table
from common import thread_counts as all_thread_counts

from pyllama2c import Llama
from pyllama2c._ffi import lib
from pyllama2c.cli.bench import SHAPES
from pyllama2c.engine import session as session_module
from pyllama2c.engine.session import Session
from pyllama2c.generation.text import StoryText

PARTS = ("forward", "sample", "feed()", "sample()", "text")


class Timed:
    """A callable with a clock around it."""

    def __init__(self, call: Callable[..., Any]):
        self.call, self.seconds = call, 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        started = perf_counter()
        try:
            return self.call(*arguments, **options)
        finally:
            self.seconds += perf_counter() - started

    def method(self) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            return self(*arguments, **options)

        return timed


class TimedLibrary:
    """The C library for engine/session.py, two of its functions with a clock."""

    def __init__(self) -> None:
        self.l2c_session_forward = Timed(lib.l2c_session_forward)
        self.l2c_session_sample = Timed(lib.l2c_session_sample)

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


class Clocks:
    """Replaces the timed functions, and restores them."""

    def __enter__(self) -> dict[str, Timed]:
        library = TimedLibrary()
        self.kept = Session.feed, Session.sample, StoryText.feed
        feed, sample, text = map(Timed, self.kept)
        session_module.lib = library  # type: ignore[assignment]
        Session.feed, Session.sample = feed.method(), sample.method()  # type: ignore[method-assign]
        StoryText.feed = text.method()  # type: ignore[method-assign]
        clocks = (library.l2c_session_forward, library.l2c_session_sample, feed, sample, text)
        return dict(zip(PARTS, clocks, strict=True))

    def __exit__(self, *exception: object) -> None:
        Session.feed, Session.sample, StoryText.feed = self.kept  # type: ignore[method-assign]
        session_module.lib = lib


def cost_of_a_clock() -> tuple[float, float]:
    """Seconds that a clock shows for a call of an empty function, and that it adds to the whole."""

    def nothing() -> None:
        pass

    shown, taken = [], []
    for _ in range(7):
        clock, count = Timed(nothing), 20000
        started = perf_counter()
        for _ in range(count):
            clock()
        middle = perf_counter()
        for _ in range(count):
            nothing()
        bare = perf_counter() - middle
        shown.append((clock.seconds - bare) / count)
        taken.append((middle - started - bare) / count)
    return median(shown), median(taken)


def tell(llama: Llama, seed: int, tokens: int, clocks: dict[str, Timed]) -> dict[str, float]:
    """Microseconds per token, the first excluded: by each clock, and as a whole."""
    story = llama.generate([1], max_tokens=tokens, seed=seed)
    next(story)
    for clock in clocks.values():
        clock.seconds = 0.0
    started = perf_counter()
    for _ in story:
        pass
    whole = perf_counter() - started
    times = {name: clock.seconds for name, clock in clocks.items()} | {"whole": whole}
    return {name: 1e6 * seconds / (len(story.tokens) - 1) for name, seconds in times.items()}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--threads", type=int, nargs="+", metavar="N", help="[1 and all]")
    made.add_argument("--tokens", type=int, metavar="N", help="of a story [the whole context]")
    arguments = made.parse_args()
    tokens = arguments.tokens or SHAPES[arguments.shape][6]
    shown, taken = (1e6 * seconds for seconds in cost_of_a_clock())

    def measure(llama: Llama, number: int) -> dict[str, float]:
        bare = tell(llama, number + 1, tokens, {})["whole"]
        with Clocks() as clocks:
            times = tell(llama, number + 1, tokens, clocks)
        # The clocks of the two C functions are within those of feed() and sample().
        forward, sample, text = (times[name] - shown for name in ("forward", "sample", "text"))
        methods = times["feed()"] + times["sample()"] - 2 * (shown + taken) - forward - sample
        whole = times["whole"] - len(PARTS) * taken
        return {
            "forward pass": forward,
            "sampling": sample,
            "Session's methods": methods,
            "text": text,
            "rest of the generator": whole - forward - sample - methods - text,
            "whole": whole,
            "whole, without timers": bare,
            "generator over C": (whole - forward - sample) / (forward + sample),
        }

    with model_files(arguments.shape) as files:
        cases = [
            Llama(*files, dtype=dtype, speculative=False, threads=threads)
            for threads in arguments.threads or all_thread_counts()
            for dtype in ("float32", "int8")
        ]
        figures = interleaved(cases, arguments.rounds, measure)
    rows = [
        {
            "dtype": llama.config.dtype,
            "threads": llama.threads,
            "isa": llama.isa,
            "microseconds": {
                part: median(run[part] for run in runs)
                for part in runs[0]
                if part != "generator over C"
            },
            "generator_over_c": median(run["generator over C"] for run in runs),
        }
        for llama, runs in zip(cases, figures, strict=True)
    ]
    head = ["us a token", *(f"{row['dtype']}, {row['threads']} thr." for row in rows)]
    lines: list[list[str]] = [
        [part, *(f"{row['microseconds'][part]:,.1f}" for row in rows)]
        for part in rows[0]["microseconds"]
    ]
    lines.append(["generator over C", *(f"{row['generator_over_c']:.2%}" for row in rows)])
    result = {
        "shape": arguments.shape,
        "rounds": arguments.rounds,
        "tokens": tokens,
        "clock_microseconds": taken,
        "breakdown": rows,
    }
    finish(arguments, result, table(head, lines))


if __name__ == "__main__":
    main()
