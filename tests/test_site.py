"""The documentation as a site: it builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import pyllama2c

ROOT = Path(__file__).resolve().parents[1]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason=f"{module} (the extra `docs`) is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return folder


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag in LOADED and LOADED[tag] in found:
            self.loaded.append(found[LOADED[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.ids.add(found.get("id", ""))


def read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > 50
    for path in pages:
        outside = [each for each in read(path).loaded if re.match(r"(\w+:)?//", each)]
        assert not outside, path
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*['\"]?(\w+:)?//", text), path
    # Its script would load Mermaid, and a repository's figures, for pages that have them.
    text = (site / "how-it-works.html").read_text(encoding="utf-8")
    assert 'class="mermaid"' not in text and "data-md-component=source" not in text


def test_links_into_the_engine_lead_to_lines(site: Path) -> None:
    links = [each for each in read(site / "how-it-works.html").links if "#__codelineno" in each]
    assert len(links) > 40
    pages: dict[str, _Page] = {}
    for link in links:
        name, anchor = link.split("#")
        page = pages.setdefault(name, read(site / name))
        assert anchor in page.ids, link


def test_the_reference_has_every_public_name(site: Path) -> None:
    ids = read(site / "api.html").ids
    for name in pyllama2c.__all__:
        assert {f"pyllama2c.{name}", f"pyllama2c.errors.{name}"} & ids, name
