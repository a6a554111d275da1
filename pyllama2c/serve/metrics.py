"""Counters, gauges and histograms, in Prometheus's text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

PREFIX = "pyllama2c:"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, *_SECONDS[:12])

_HELP = {
    "requests_total": "Answers by route and status.",
    "prompt_tokens_total": "Tokens of prompts.",
    "prompt_tokens_cached_total": "Of those, tokens found in the cache.",
    "tokens_predicted_total": "Tokens sampled.",
    "requests_cancelled_total": "Requests whose client went away or did not read.",
    "requests_rejected_total": "Requests refused because too many waited.",
    "requests_processing": "Requests under way.",
    "requests_deferred": "Requests that wait for a slot.",
    "time_to_first_token_seconds": "From request to first streamed token.",
    "first_token_sweeps": "Sweeps of the engine from request to first streamed token.",
    "time_per_output_token_seconds": "Mean time of a streamed story's tokens after the first.",
    "queue_seconds": "From request to its beginning.",
    "e2e_seconds": "From request to the end of its answer.",
    "sweep_rows": "Tokens fed in a sweep.",
}


class Histogram:
    def __init__(self, bounds: Sequence[float]):
        self._bounds, self._counts = bounds, [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        total, out = 0, []
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            out.append(f'{PREFIX}{name}_bucket{{le="{bound}"}} {total}')
        return [*out, f"{PREFIX}{name}_sum {self._sum:.9g}", f"{PREFIX}{name}_count {total}"]


class Metrics:
    """Counted by the event loop; those of sweeps and tokens by the engine thread."""

    def __init__(self) -> None:
        self._counters: Counter[str] = Counter()
        self._requests: Counter[tuple[str, int]] = Counter()
        self.time_to_first_token_seconds = Histogram(_SECONDS)
        self.first_token_sweeps = Histogram((1, 2, 3, 4, 5, 6, 8, 10, 16, 32, 64, 128))
        self.time_per_output_token_seconds = Histogram(_TOKEN_SECONDS)
        self.queue_seconds = Histogram(_SECONDS)
        self.e2e_seconds = Histogram(_SECONDS)
        self.sweep_rows = Histogram((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024))

    def add(self, name: str, n: int = 1) -> None:
        self._counters[name] += n

    def answered(self, route: str, status: int) -> None:
        self._requests[route, status] += 1

    def text(self, gauges: Mapping[str, int]) -> str:
        lines: list[str] = []
        for name, text in _HELP.items():
            histogram = getattr(self, name, None)
            kind = "counter" if name.endswith("_total") else "gauge"
            if histogram is not None:
                kind = "histogram"
            lines += [f"# HELP {PREFIX}{name} {text}", f"# TYPE {PREFIX}{name} {kind}"]
            if histogram is not None:
                lines += histogram.lines(name)
            elif name == "requests_total":
                # A copy: the engine thread counts while this is written.
                for (route, status), n in sorted(self._requests.copy().items()):
                    lines.append(f'{PREFIX}{name}{{route="{route}",status="{status}"}} {n}')
            else:
                lines.append(f"{PREFIX}{name} {gauges.get(name, self._counters[name])}")
        return "\n".join(lines) + "\n"
