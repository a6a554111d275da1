"""The page as one file, opened from the disk in Chromium, offline."""

from __future__ import annotations

from collections.abc import Iterator
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
from environment import real_file
from goldens import cases
from tokenizer_keys import NORMAL, USER_DEFINED, chat_model, sentencepiece_keys

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
    with page_at(browser, story.as_uri(), offline=True) as page:
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


@needs_browser
def test_two_pages_at_once_and_seeds_that_no_double_holds(
    browser: Any, story: Path, storyteller: Llama
) -> None:
    seeds = (2**53 + 1, 2**64 - 1)
    with (
        page_at(browser, story.as_uri(), offline=True) as one,
        page_at(browser, story.as_uri(), offline=True) as other,
    ):
        pages = (one, other)
        for page, seed in zip(pages, seeds, strict=True):
            page.fill("#seed", str(seed))
            page.click("text=Begin anew")
            page.click("#tell")
        for page, seed in zip(pages, seeds, strict=True):
            saying(page, "on. The model's odds")
            assert story_of(page) == PROMPT + storyteller.generate(PROMPT, seed=seed).read()
        one.click("#copy")
        saying(one, "link")
        other.goto(one.url)
        saying(other, "Replayed: identical.")
        one.fill("#seed", str(2**64))
        one.click("text=Begin anew")
        one.click("#next")
        one.locator("#alert", has_text="seed is 18446744073709551616").wait_for()


@needs_browser
def test_a_name_and_pieces_that_html_would_take_for_its_own(browser: Any, tmp_path: Path) -> None:
    keys = sentencepiece_keys()
    (tokens,) = (key for key in keys if key.name == "tokenizer.ggml.tokens")
    (kinds,) = (key for key in keys if key.name == "tokenizer.ggml.token_type")
    signs = ("</script><script>alert(1)</script>", "<!--", "\u2028", "<img src=x onerror=alert(1)>")
    tokens.value[-len(signs) :] = signs
    kinds.value[-len(signs) :] = [NORMAL, USER_DEFINED, NORMAL, USER_DEFINED]
    path = tmp_path / "<!--\u00e9&lt;\u2028'.gguf"
    path.write_bytes(chat_model(keys).build())
    html = tmp_path / "#100%?<b>.html"
    with Llama(path) as llama:
        html.write_bytes(page_file(llama))
    with page_at(browser, html.as_uri(), offline=True) as page:
        assert path.name in page.inner_text("#model").replace("\n", "\u2028")
        page.fill("#prompt", "".join(signs))
        page.click("text=Begin anew")
        page.click("#next")
        page.locator("#why", has_text="That is why.").wait_for()
        assert "".join(signs) in story_of(page)


@needs_browser
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("globalThis.Worker = class { constructor() { throw new Error('no workers'); } }", "no wo"),
        (
            "const Real = Worker; globalThis.Worker = class extends Real { constructor() {"
            "super(URL.createObjectURL(new Blob(['throw new Error(`cannot start`)']))); } }",
            "cannot start",
        ),
        ("globalThis.atob = () => 'no module';", "WebAssembly"),
    ],
    ids=["no Worker", "its script fails", "its module is damaged"],
)
def test_an_engine_that_does_not_start(
    browser: Any, story: Path, broken: str, message: str
) -> None:
    with page_at(
        browser, story.as_uri(), begins=False, scripts=[broken], expected=message, offline=True
    ) as page:
        page.locator("#alert", has_text=message).wait_for()
        assert page.locator("#tell").is_disabled() and page.locator("#next").is_disabled()


@needs_browser
def test_among_63_others_from_the_disk(browser: Any, story: Path) -> None:
    with page_at(browser, story.as_uri(), offline=True) as page:
        tell_among_others(page)


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


@needs_browser
def test_run_c_stories_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """run.c's 60 stories on stories260K."""
    html, asked, expected = tmp_path / "page.html", [], []
    with Llama(real_file("stories260K.bin"), real_file("tok512.bin")) as llama:
        html.write_bytes(page_file(llama))
        for case in cases("stories260K_fp32.json"):
            ids = llama.tokenizer.encode(case["prompt"], bos=True)
            knobs = {name: case[name] for name in ("temperature", "top_p")}
            how = {"seed": str(case["seed"]), "sampling": KNOBS | knobs}
            asked.append([ids, how | {"length": case["steps"] - len(ids) + 1}])
            expected.append(case["tokens"][len(ids) - 1 :])
    tell_all = """async (asked) => {
        const stories = [];
        for (const [ids, how] of asked) {
            const told = [];
            await storyEngine.crowd({ ids }, how, 1, 0, (_, more) => told.push(...more));
            stories.push(told);
        }
        return stories;
    }"""
    with page_at(browser, html.as_uri(), offline=True) as page:
        assert page.evaluate(tell_all, asked) == expected
