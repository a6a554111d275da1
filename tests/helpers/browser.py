"""The page in the system's Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
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


_LOCAL = ("file:", "blob:", "data:", "about:")
_TELL_VIOLATIONS = """addEventListener("securitypolicyviolation", (event) =>
    console.error(`${event.violatedDirective}: ${event.blockedURI}`))"""


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=120_000)  # how long what has to come may take on a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_at(
    browser: Any,
    url: str,
    *,
    begins: bool = True,
    scripts: Sequence[str] = (),
    expected: str | None = None,
    **options: Any,
) -> Iterator[Any]:
    """The page after its start, where it begins; nothing may be logged as an error, be refused by
    its policy, or be asked of a network. `scripts` run before its own.
    `expected`: what errors that may be logged have in them."""
    context = browser.new_context(
        viewport={"width": 1300, "height": 900}, color_scheme="dark", **options
    )
    context.set_default_timeout(120_000)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    if url.startswith("file:"):
        context.on(
            "request",
            lambda asked: None if asked.url.startswith(_LOCAL) else wrong.append(asked.url),
        )
    package = find_spec("axe_playwright_python")
    assert package is not None and package.origin is not None
    page.add_init_script(Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    for script in (_TELL_VIOLATIONS, *scripts):
        page.add_init_script(script)
    page.goto(url)
    if begins:
        saying(page, "begins with")
    yield page
    context.close()
    assert [text for text in wrong if expected is None or expected not in text] == []


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


def tell_among_others(page: Any) -> None:
    """Four tokens, then the same in a full batch: the page says that they are identical."""
    for _ in range(4):
        before = page.locator("#story .token").count()
        page.click("#next")
        page.locator(f"#token-{before}").wait_for()
    page.click("#tab-crowd")
    page.click("#crowd button")
    page.locator("#crowd-status", has_text="Identical: 4 tokens").wait_for()
