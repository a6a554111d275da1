"""Links of README and docs: files exist, and a line anchor stands on the line that it names.

`python tests/test_docs.py` moves the anchors to where their text is now.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pyllama2c import Llama

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("*.md"))]
ANCHOR = re.compile(r"\[`([^`]+)`\]\(([^)#\s]+)#L(\d+)\)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
MUST_SHOW = {
    "forward.c": "&w->wq &w->wk &w->wv rotate store_kv swiglu &w->w2 m->classifier rmsnorm",
    "attention.c": "attend kernels->softmax weighted_sum per_kv",
    "sampler.c": "pick_prefix random_f32 l2c_sampler_pick",
}


def lines_with(text: str, source: Path) -> list[int]:
    """Where the text stands in code; for a name that is defined there, the definition alone."""
    lines = source.read_text(encoding="utf-8").splitlines()
    found = [i for i, line in enumerate(lines, 1) if text in line and not line.startswith(" *")]
    definition = re.compile(rf"^(?:\}} )?(?:\w+ )*(?:\w+ )?\*?{re.escape(text)}(?:\(.*|;)$")
    if re.fullmatch(r"\w+", text):
        defined = [i for i in found if definition.match(lines[i - 1])]
        found = defined or [i for i in found if re.search(rf"\b{text}\b", lines[i - 1])]
    return found


def anchors() -> Iterator[tuple[Path, str, Path, int]]:
    for page in PAGES:
        for text, target, number in ANCHOR.findall(page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield page, text, (page.parent / target).resolve(), int(number)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in LINK.findall(prose):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_anchors_stand_on_their_lines() -> None:
    stale = []
    for page, text, source, number in anchors():
        places = lines_with(text, source) if source.is_file() else []
        if number not in places:
            where = f"on {places}" if places else "nowhere"
            stale.append(f"{page.name}: `{text}` is {where} in {source.name}, not on {number}")
    assert not stale, "\n".join([*stale, "`python tests/test_docs.py` moves them"])
    assert len(list(anchors())) >= 20


def test_the_reading_misses_nothing() -> None:
    shown = {(source.name, text) for _, text, source, _ in anchors()}
    for name, texts in MUST_SHOW.items():
        for text in texts.split():
            assert (name, text) in shown


@pytest.mark.parametrize("folder", ["pyllama2c", "csrc"])
def test_the_architecture_names_every_part(folder: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.search(rf"^## {folder}$(.*?)^## ", page, re.M | re.S)
    assert table
    named: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", table[1], re.M):
        names = re.findall(r"`([^`]+)`", row)
        stems = [name[:-2] for name in names if name.endswith(".c")]
        named |= {*names, *(f"{stem}.h" for stem in stems if "`.h`" in row)}
    parts = [
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / folder).iterdir()
        if path.suffix in {".py", ".c", ".h"} or (path.is_dir() and any(path.glob("*.*")))
        if not path.name.startswith("__")
    ]
    missing = [part for part in parts if not any(fnmatch(part, name) for name in named)]
    assert len(parts) > 15 and not missing


def facts_of(name: str) -> tuple[list[str], list[str], Counter[str]]:
    """A README's commands and code, what it links to, and every figure of its text."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("280 万", "2.8 million")
    code = re.findall(r"^```.*?^```|<!-- speed table -->.*<!-- /speed|`[^`\n]+`", text, re.M | re.S)
    prose = re.sub(r"<!-- speed table -->.*<!-- /speed|^```.*?^```", "", text, flags=re.M | re.S)
    links = [link for link in LINK.findall(prose) if not link.startswith("README")]
    prose = re.sub(r"\]\([^)]*\)", "", prose)
    return (
        sorted(re.sub(r" *# .*", "", each) for each in code),
        links,
        Counter(re.findall(r"(?<![A-Za-z\d.])\d[\d.,]*(?<![.,])", prose)),
    )


def test_the_japanese_readme_says_the_same() -> None:
    code, links, figures = facts_of("README.md")
    japanese = facts_of("README.ja.md")
    assert japanese[0] == code and japanese[1] == links
    # It says again what the table's English heading says, and English spells "two" out.
    more = Counter({"2": 2, "150": 1, "1": 1, "32": 1, "64": 1, "200": 1})
    assert not figures - japanese[2] and not japanese[2] - figures - more


def test_the_cards_samples_are_unedited() -> None:
    card = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    samples = re.findall(r"^Seed (\d+) \(.*\):\n\n((?:>.*\n)+)", card, re.M)
    assert [int(seed) for seed, _ in samples] == list(range(1, 11))
    with Llama() as llama:
        for seed, quoted in samples:
            text = llama.generate(temperature=0.8, seed=int(seed)).read().strip()
            shown = [re.sub("^> ?", "", line) for line in quoted.splitlines()]
            assert shown == [line.rstrip() for line in text.split("\n")]


def repair(page: Path) -> None:
    def moved(match: re.Match[str]) -> str:
        text, target, number = match.groups()
        if "://" in target:
            return match[0]
        places = lines_with(text, (page.parent / target).resolve())
        if not places:
            raise SystemExit(f"{page.name}: `{text}` is nowhere in {target}")
        nearest = min(places, key=lambda place: abs(place - int(number)))
        return f"[`{text}`]({target}#L{nearest})"

    page.write_text(ANCHOR.sub(moved, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    for each in PAGES:
        repair(each)
