"""The page's files, what it asks for over HTTP, and the page itself in a browser."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from browser import (
    check_accessible,
    chromium,
    needs_browser,
    page_at,
    saying,
    story_of,
    tell,
    tell_among_others,
)
from http_server import Running, serving

from pyllama2c import Llama

FOLDER = files("pyllama2c.serve") / "page"
ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def test_the_pages_size() -> None:
    assert sum(len(read(f"{name}").encode()) for name in ("index.html", "page.js", "page.css")) <= (
        100_000
    )


def test_nothing_is_inline_or_from_elsewhere() -> None:
    html = read("index.html")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
    assert re.findall(r"<script([^>]*)>(.*?)</script>", html) == [
        (' src="page.js" type="module"', "")
    ]
    for text in (html, read("page.js"), read("page.css")):
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "innerHTML" not in read("page.js") and "eval(" not in read("page.js")


def test_excerpts_are_the_sources_lines() -> None:
    """`python csrc/cut_excerpts.py` cuts them anew."""
    cut = runpy.run_path(str(ROOT / "csrc" / "cut_excerpts.py"))
    assert read("excerpts.json") == cut["excerpts"]()
    used = set(re.findall(r'"(\w+)", \(', read("page.js"))) | {"by_id", "by_probability", "largest"}
    assert set(cut["EXCERPTS"]) <= used | {"line"}


def test_files_and_their_headers(server: Running) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/excerpts.json", "application/json"),
    ):
        answer = server.http.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_no_key_and_its_questions_do(storyteller: Llama) -> None:
    with serving(storyteller, key="secret") as server:
        assert server.http.get("/").status_code == 200
        assert server.http.get("/api/model").status_code == 401
        assert server.post("/api/next", ids=[1], seed=1).status_code == 401
        headers = {"authorization": "Bearer secret"}
        answer = server.http.post("/api/next", json={"ids": [1], "seed": 1}, headers=headers)
        assert answer.status_code == 200


def test_what_the_page_asks(server: Running, storyteller: Llama) -> None:
    model = server.http.get("/api/model").json()
    assert model["fingerprint"] == str(storyteller._engine.fingerprint)
    begun = server.ok("/api/tokens", text="Once")
    first = server.ok("/api/next", node=begun["node"], seed="5")
    assert first == server.ok("/api/next", ids=[t["id"] for t in begun["tokens"]], seed="5")
    looked = server.ok("/api/attention", node=first["node"])
    assert looked["position"] == len(begun["tokens"])


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"ids": [1], "seed": -1}, "seed", "invalid_value"),
        ({"ids": [1, 99999], "seed": 1}, None, "invalid_value"),
        ({"ids": "x", "seed": 1}, "ids", "invalid_value"),
        ({"node": "x", "seed": 1}, "node", "invalid_value"),
        ({"ids": [1] * 600, "seed": 1}, None, "context_length_exceeded"),
    ],
)
def test_wrong_questions(server: Running, body: Any, param: str | None, code: str) -> None:
    answer = server.http.post("/api/next", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_penalties_beyond_float32(server: Running) -> None:
    sampling = {"repetition_penalty": 1.2e-38, "temperature": 1e-44, "frequency_penalty": -3e38}
    body = {"ids": [1, 437, 437], "seed": 1, "sampling": sampling, "n_prompt": 1}
    answer = server.post("/api/next", **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "non_finite_logits"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"ids": [NaN]}', b"1", b"\xff"])
def test_bodies_that_are_no_questions(server: Running, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/api/next", "/api/tokens", "/api/attention"):
        assert server.http.post(path, content=body, headers=headers).status_code == 400


# ---- In a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    with page_at(browser, server.url) as opened:
        yield opened


@needs_browser
def test_telling_asking_and_forking(page: Any, storyteller: Llama) -> None:
    tell(page)
    prompt = "Once upon a time"
    story = storyteller.generate(prompt, seed=7)
    assert story_of(page) == prompt + story.read()
    lines = page.locator("#story :is(.s1, .s2, .s3)").evaluate_all(
        "(tokens) => tokens.map((each) => getComputedStyle(each).textDecorationStyle)"
    )
    assert set(lines) == {"dotted", "dashed", "solid"}  # for who does not see the tints

    chosen = page.locator("#story .token").nth(15)
    chosen.click()
    check_accessible(page)
    assert "That is why." in page.inner_text("#why")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#story [aria-selected=true]").get_attribute("id") == "token-14"
    page.keyboard.press("ArrowRight")

    page.fill("#temperature", "2")
    assert "approximate" in page.inner_text("#why .approximate")
    page.locator("#why .approximate strong", has_text="“").wait_for()
    check_accessible(page)
    page.click("text=Turn them back")

    page.click("#why tbody tr:nth-child(3) button")
    assert "in place of" in saying(page, "A new branch")
    page.click("#next")
    page.click("#tab-branches")
    assert page.locator("#branches [role=treeitem]").count() == 2
    assert page.locator("#branches article").count() == 2
    for path in page.locator("#branches [role=treeitem]").all_inner_texts():
        assert re.search(r"odds for these \d+ tokens: \d", path)
    check_accessible(page)
    page.click("#back")
    saying(page, "Took back")

    page.click("#copy")
    saying(page, "link")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    saying(page, "Replayed: identical.")
    assert page.locator("#branches").is_hidden()
    page.goto("about:blank")
    page.goto(link[:-9])
    page.locator("#alert", has_text="damaged").wait_for()


@needs_browser
def test_looking_and_stepping(page: Any) -> None:
    for _ in range(3):
        before = page.locator("#story .token").count()
        page.click("#next")
        page.locator(f"#token-{before}").wait_for()
    page.click("#tab-attention")
    page.locator("#arcs-box path").first.wait_for(state="attached")
    page.click("[aria-label='Layer 2, head 3']")
    page.locator("caption", has_text="head 3 of layer 2").wait_for()
    check_accessible(page)
    page.focus("#tab-attention")
    page.keyboard.press("ArrowRight")
    for i in range(12):
        page.locator(f"#steps h3:has-text('{i + 1} of 12')").wait_for()
        assert page.inner_text("#steps pre").strip()
        if i in (0, 5, 11):
            check_accessible(page)
        if i < 11:
            page.click("#stage-on")


@needs_browser
def test_among_others(page: Any) -> None:
    tell_among_others(page)
    check_accessible(page)


@needs_browser
def test_a_server_with_a_key(browser: Any, storyteller: Llama) -> None:
    with serving(storyteller, key="secret") as server:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(server.url)
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        saying(page, "begins with")
        assert page.evaluate("() => localStorage.length + sessionStorage.length") == 0
        assert "secret" not in page.url
        page.close()
