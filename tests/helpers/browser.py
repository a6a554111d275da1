"""The page in the system's Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

needs_browser = pytest.mark.skipif(
    _CHROMIUM is None or not all(map(find_spec, ("playwright", "axe_playwright_python"))),
    reason="needs Chromium (Debian: apt install chromium), and the Python packages playwright and "
    "axe-playwright-python",
)


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=120_000)  # how long what has to come may take on a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_at(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """The page after its start; nothing may be logged as an error, nor be refused."""
    context = browser.new_context(
        viewport={"width": 1300, "height": 900}, color_scheme="dark", **options
    )
    context.set_default_timeout(120_000)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    package = find_spec("axe_playwright_python")
    assert package is not None and package.origin is not None
    page.add_init_script(Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    page.goto(url)
    saying(page, "begins with")
    yield page
    context.close()
    assert wrong == []


def saying(page: Any, text: str) -> str:
    """What the status says, once it says `text`."""
    from playwright.sync_api import expect

    status = page.locator("#status")
    expect(status).to_contain_text(text)
    return str(status.inner_text())


def story_of(page: Any) -> str:
    """The story's text, without marks of its beginning and end."""
    text = "".join(page.locator("#story .token").all_text_contents())
    return text.replace("⟨start⟩", "").replace("⟨end⟩", "")


def check_accessible(page: Any) -> None:
    found = page.evaluate("() => axe.run(document)")
    assert [violation["id"] for violation in found["violations"]] == []
    assert len(found["passes"]) > 20


def tell(page: Any) -> None:
    page.click("#tell")
    saying(page, "on. The model's odds")
