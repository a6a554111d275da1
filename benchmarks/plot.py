"""Draws docs/speed.svg and docs/scaling.svg from the JSON files in benchmarks/results.

    pip install '.[benchmark]' && python benchmarks/plot.py

speed.svg: tokens per second of every engine, a panel per scenario (peers.json). scaling.svg:
microseconds a token against position (positions.json) and batch size (batch.json), and thin lines
for this model:

    time = max(weight bytes / batch / bandwidth, operations / rate) + cache bytes / cache rate

Its rates are fitted to the first and the last measurement of each curve alone, and stand in the
legend; what lies between is prediction. The same files give the same drawing, byte by byte.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from common import RESULTS, is_ours
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
OURS, OTHERS = "#c2410c", "#94a3b8"
COLOURS = {"float32": "#1d4ed8", "int8": "#c2410c", "int4": "#047857"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pyllama2c",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    lines = path.read_text().splitlines()  # matplotlib leaves blanks at the ends of some
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines))
    plt.close(figure)
    print(path)


def draw_speed(peers: dict[str, Any], path: Path) -> None:
    """A panel per scenario, the fastest engine on top."""
    scenarios = peers["scenarios"]
    counts = [max(1, len(engines)) for engines in scenarios.values()]
    figure, panels = plt.subplots(
        len(scenarios),
        1,
        figsize=(7.5, 0.5 * len(counts) + 0.24 * sum(counts)),
        layout="constrained",
        gridspec_kw={"height_ratios": [n + 1 for n in counts]},
        squeeze=False,
    )
    for axes, (scenario, engines) in zip(panels[:, 0], scenarios.items(), strict=True):
        speeds = {name: figures["tokens_per_second"] for name, figures in engines.items()}
        names = sorted(speeds, key=lambda name: speeds[name])
        bars = axes.barh(
            names,
            [speeds[name] for name in names],
            color=[OURS if is_ours(name) else OTHERS for name in names],
            height=0.75,
        )
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        title = peers.get("title", {}).get(scenario, scenario)
        axes.set_title(f"{title}, tokens per second", loc="left", fontsize=9, weight="bold")
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12, y=0.02)
    save(figure, path)


def cache_bytes(config: dict[str, Any]) -> int:
    """Bytes of keys and values per position, which every later token of the story reads."""
    return 2 * 4 * config["n_layers"] * config["n_kv_heads"] * config["head_size"]


def macs(config: dict[str, Any]) -> int:
    """Multiply-accumulates of one token with the model's matrices."""
    dim, kv = config["dim"], config["n_kv_heads"] * config["head_size"]
    layer = 2 * dim * dim + 2 * dim * kv + 3 * dim * config["hidden_dim"]
    return int(config["n_layers"] * layer + dim * config["vocab_size"])


def draw_positions(axes: Axes, result: dict[str, Any]) -> None:
    """time(p) = weights / bandwidth + p * cache bytes / cache rate"""
    for dtype, curve in result["positions"].items():
        positions, times = [int(p) for p in curve], list(curve.values())
        first, last = positions[0], positions[-1]
        slope = max(0.0, (times[-1] - times[0]) / (last - first)) if last > first else 0.0
        base = times[0] - slope * first
        bandwidth = result["sweep_bytes"][dtype] / base / 1e3
        label = f"{dtype}: weights at {bandwidth:.1f} GB/s"
        if slope:
            label += f", cache at {cache_bytes(result['config']) / slope / 1e3:.1f} GB/s"
        axes.plot(positions, times, "o", markersize=4, color=COLOURS[dtype], label=label)
        dense = [first * (last / first) ** (i / 60) for i in range(61)]
        axes.plot(dense, [base + slope * p for p in dense], linewidth=0.8, color=COLOURS[dtype])
    axes.set_xlabel(f"position ({result['shape']}, {result['threads']} threads)")


def cache_time(result: dict[str, Any], positions: dict[str, Any] | None, dtype: str) -> float:
    """Microseconds per token of a batch for reading the cache, at the other panel's rate."""
    curve = (positions or {}).get("positions", {}).get(dtype, {})
    if len(curve) < 2 or positions is None:
        return 0.0
    at, times = [int(p) for p in curve], list(curve.values())
    of_a_byte = (times[-1] - times[0]) / (at[-1] - at[0]) / cache_bytes(positions["config"])
    return max(0.0, of_a_byte) * cache_bytes(result["config"]) * result["tokens"] / 2


def draw_batches(axes: Axes, result: dict[str, Any], positions: dict[str, Any] | None) -> None:
    """time(b) = max(weights / b / bandwidth, operations / rate) + cache"""
    for dtype, sweep in result["sweep_bytes"].items():
        rows = [row for row in result["batch"] if row["dtype"] == dtype]
        batches = [row["batch"] for row in rows]
        times = [row["microseconds_per_token"] for row in rows]
        cache = cache_time(result, positions, dtype)
        if cache >= times[-1]:  # read faster here than there: its share is unknown
            cache = 0.0
        reading, computing = batches[0] * (times[0] - cache), times[-1] - cache
        label = (
            f"{dtype}: {sweep / reading / 1e3:.1f} GB/s, "
            f"{macs(result['config']) / computing / 1e3:.1f} GMAC/s"
        )
        if cache:
            label += f", cache {cache:.0f} \N{MICRO SIGN}s"
        axes.plot(batches, times, "o", markersize=4, color=COLOURS[dtype], label=label)
        dense = [batches[0] * (batches[-1] / batches[0]) ** (i / 60) for i in range(61)]
        model = [max(reading / b, computing) + cache for b in dense]
        axes.plot(dense, model, linewidth=0.8, color=COLOURS[dtype])
    axes.set_xlabel(f"stories side by side ({result['shape']}, {result['threads']} threads)")


def draw_scaling(
    positions: dict[str, Any] | None, batch: dict[str, Any] | None, path: Path
) -> None:
    count = (positions is not None) + (batch is not None)
    figure, panels = plt.subplots(
        1, count, figsize=(4.6 * count, 3.8), layout="constrained", squeeze=False
    )
    if positions is not None:
        draw_positions(panels[0, 0], positions)
    if batch is not None:
        draw_batches(panels[0, -1], batch, positions)
    for axes in panels[0]:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:,.0f}" if f"{y:.6g}"[0] in "25" else "")
        axes.tick_params(which="both", labelsize=8)
        axes.grid(axis="y", which="major", linewidth=0.3)
        axes.set_ylabel("microseconds a token")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
        axes.legend(loc="upper left")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER")
    arguments = parser.parse_args()

    def load(name: str) -> dict[str, Any] | None:
        path = arguments.results / name
        if path.exists():
            return json.loads(path.read_text())  # type: ignore[no-any-return]
        print(f"{path} does not exist: skipped")
        return None

    with plt.rc_context(STYLE):
        peers, positions, batch = map(load, ("peers.json", "positions.json", "batch.json"))
        if peers is not None:
            draw_speed(peers, arguments.docs / "speed.svg")
        if positions is not None or batch is not None:
            draw_scaling(positions, batch, arguments.docs / "scaling.svg")


if __name__ == "__main__":
    main()
