"""The page's two engines, a server and the file's own, answer alike: each field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, needs_browser, page_at

from pyllama2c import Llama

QUESTIONS = (Path(__file__).parent / "questions.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(storyteller: Llama) -> Iterator[Any]:
    if not all(map(find_spec, ("starlette", "uvicorn", "msgspec", "httpx"))):
        pytest.skip("needs the packages of pyllama2c[serve]")
    from http_server import serving

    with serving(storyteller) as running:
        yield running


@needs_browser
def test_both_engines_answer_alike(server: Any, story: Path) -> None:
    def with_its_engine(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text() + "\nglobalThis.storyEngine = engine;\n")

    with chromium() as browser:
        with page_at(browser, story.as_uri(), offline=True) as page:
            own = page.evaluate(QUESTIONS)
        with page_at(browser, "about:blank", begins=False, expected="400") as page:
            page.route("**/page.js", with_its_engine)
            page.goto(server.url)
            page.wait_for_function("globalThis.storyEngine")
            served = page.evaluate(QUESTIONS)
    assert own["about"].pop("device") != served["about"].pop("device")
    del served["about"]["isa"]
    assert all(own["refused"]) and all(served["refused"])
    named = [
        [re.findall(r"-?\d+", text)[0] for text in answers.pop("refused")]
        for answers in (own, served)
    ]
    assert named[0] == named[1]  # each names the value
    for name, answer in own.items():
        if name.startswith("next"):
            for extra in ("rng_before", "rng_after", "node"):  # before, after and story have them
                del served[name][extra]
            for row in answer["top"]:  # is for the eye
                row["p_before"] = pytest.approx(row["p_before"], rel=1e-12)
        served[name].pop("handle", None) if isinstance(served[name], dict) else None
        assert answer == served[name], name
    assert own.keys() == served.keys()
