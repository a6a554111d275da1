"""The page as one file, opened from the disk in Chromium, offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import check_accessible, chromium, needs_browser, page_at, saying, story_of, tell
from environment import real_file

from pyllama2c import Llama
from pyllama2c.serve.page_file import page_file

PROMPT = "Once upon a time"
KNOBS = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@needs_browser
def test_a_story_from_the_disk(browser: Any, story: Path, storyteller: Llama) -> None:
    asked: list[str] = []
    with page_at(browser, story.as_uri(), offline=True) as page:
        page.on("request", lambda request: asked.append(request.url))
        tell(page)
        assert story_of(page) == PROMPT + storyteller.generate(PROMPT, seed=7).read()
        page.locator("#story .token").nth(15).click()
        assert "That is why." in page.inner_text("#why")
        check_accessible(page)
        page.fill("#temperature", "2")
        page.locator("#why .approximate strong", has_text="“").wait_for()
        page.click("text=Turn them back")
        page.click("#tab-attention")
        page.locator("#arcs-box path").first.wait_for(state="attached")
        page.click("#tab-steps")
        assert page.inner_text("#steps pre").strip()
        page.click("#copy")
        saying(page, "link")
        link = page.url
        page.goto("about:blank")
        page.goto(link)
        saying(page, "Replayed: identical.")
    assert all(url.startswith(("file:", "blob:null/", "about:")) for url in asked)


@needs_browser
def test_among_63_others_from_the_disk(browser: Any, story: Path) -> None:
    with page_at(browser, story.as_uri(), offline=True) as page:
        for _ in range(4):
            before = page.locator("#story .token").count()
            page.click("#next")
            page.locator(f"#token-{before}").wait_for()
        page.click("#tab-crowd")
        page.click("#crowd button")
        page.locator("#crowd-status", has_text="Identical: 4 tokens").wait_for()


@needs_browser
@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        *(("stories260K.bin", dtype) for dtype in ("float32", "int8", "int4")),
        *((None, dtype) for dtype in ("int8", "int4")),
    ],
)
def test_logits_in_a_browser(
    browser: Any, model: str | None, dtype: Any, kv_dtype: Any, tmp_path: Path
) -> None:
    path = real_file(model) if model else None
    tokenizer = real_file("tok512.bin") if model else None
    with Llama(path, tokenizer, dtype=dtype, kv_dtype=kv_dtype, speculative=False) as llama:
        html = tmp_path / "page.html"
        html.write_bytes(page_file(llama))
        tokens = [(7919 * i + 1) % llama.config.vocab_size for i in range(200)]
        logits = llama.logits(tokens)
    ask_for_logits = """async ([ids, sampling]) => {
        const { logits } = await storyEngine.next({ ids }, { seed: "1", sampling });
        return [...new Uint8Array(logits.buffer)];
    }"""
    with page_at(browser, html.as_uri(), offline=True) as page:
        for n in (1, 70, 200, 65):
            answer = page.evaluate(ask_for_logits, [tokens[:n], KNOBS])
            assert bytes(answer) == logits[n - 1].tobytes()
