"""The README's table of engines and scenarios, from benchmarks/results/peers.json.

    python benchmarks/readme_table.py [--write]

Prints it; --write puts it between `<!-- speed table -->` and `<!-- /speed table -->` in README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS, is_ours

from pyllama2c.files.whole import whole_file

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- speed table -->", "<!-- /speed table -->"


def precision(engine: str) -> str:
    """The dtype of an engine's weights, by its name."""
    name = engine.lower()
    if "int4" in name or "q4" in name:
        return "int4"
    return "int8" if any(word in name for word in ("int8", "q8", "runq")) else "float32"


def ours_beside(engine: str, engines: dict[str, Any]) -> str | None:
    """The mode of pyllama2c that an engine is compared with: the default one in its precision."""
    wanted = ("pyllama2c", f"pyllama2c {precision(engine)}")
    return next((name for name in wanted if name in engines), None)


def cell(engine: str, engines: dict[str, Any]) -> str:
    if engine not in engines:
        return ""
    figures, ours = engines[engine], ours_beside(engine, engines)
    speed = figures["tokens_per_second"]
    if is_ours(engine):
        return f"**{speed:,.0f}**"
    if ours is None:
        return f"{speed:,.0f}"
    # From the same rounds where peers.json has it, so that drift of the machine cancels.
    ratio = figures.get("ratio", {}).get(ours) or engines[ours]["tokens_per_second"] / speed
    return f"{speed:,.0f} ({ratio:.{1 if ratio >= 10 else 2}f}x)"


def footnote(peers: dict[str, Any]) -> str:
    """Machine, date and command."""
    where = [peers.get("cpu") or peers.get("machine"), peers.get("isa"), peers.get("shape")]
    if "threads" in peers:
        where.append(f"{peers['threads']} threads")
    if "rounds" in peers:
        where.append(f"medians of {peers['rounds']} rounds")
    where.append(str(peers.get("date", ""))[:10])
    return (
        "In brackets: how many times as fast pyllama2c is with the same kind of weights. "
        + ", ".join(str(fact) for fact in where if fact)
        + f"; `{peers.get('command', 'python benchmarks/peers.py')}`."
    )


def markdown(peers: dict[str, Any]) -> str:
    scenarios, titles = peers["scenarios"], peers.get("title", {})
    engines = list(dict.fromkeys(name for column in scenarios.values() for name in column))
    kinds = ("float32", "int8", "int4")
    engines.sort(key=lambda name: (kinds.index(precision(name)), not is_ours(name)))
    return "\n".join(
        [
            "| tokens per second | " + " | ".join(titles.get(n, n) for n in scenarios) + " |",
            "|---|" + "---:|" * len(scenarios),
            *(
                f"| {name} | "
                + " | ".join(cell(name, column) for column in scenarios.values())
                + " |"
                for name in engines
            ),
            "",
            footnote(peers),
        ]
    )


def put(readme: str, block: str) -> str:
    """The README with the block between the markers, of which each must occur once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise SystemExit(f"README.md needs one {BEGIN} and, behind it, one {END}")
    before, rest = readme.split(BEGIN)
    if END not in rest:
        raise SystemExit(f"README.md has {END} before {BEGIN}")
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, default=RESULTS / "peers.json", metavar="PATH")
    parser.add_argument("--readme", type=Path, default=README, metavar="PATH")
    parser.add_argument("--write", action="store_true", help="into README.md")
    arguments = parser.parse_args()
    if not arguments.peers.exists():
        raise SystemExit(f"{arguments.peers} does not exist: run benchmarks/peers.py first")
    block = markdown(json.loads(arguments.peers.read_text()))
    print(block)
    if arguments.write:
        readme = put(arguments.readme.read_text(), block)
        with whole_file(arguments.readme) as file:
            file.write(readme.encode())


if __name__ == "__main__":
    main()
