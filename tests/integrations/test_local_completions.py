"""lm-evaluation-harness's own client of OpenAI's API, `local-completions`, with the server's
tokenizer: the figures of our model class, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from pyllama2c import Llama

for needed in ("lm_eval", "aiohttp", "tenacity", "requests", "starlette", "uvicorn", "msgspec"):
    if find_spec(needed) is None:
        pytest.skip(f"local-completions and the server need {needed}", allow_module_level=True)

# of those packages about themselves
pytestmark = pytest.mark.filterwarnings("ignore")

CONTEXTS = ["Once upon a time", "The lion said:\n", "Tom ", "日本", "One day, " * 300, ""]
ANSWERS = [" there was a little girl", " a cat", "!", " 日", "\n\nThe end. " + "It was fun. " * 40]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Any, Any]]:
    """Our class and the client, with room for as many tokens: the client keeps two positions."""
    from http_server import serving
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from pyllama2c.integrations.lm_eval import HarnessLM

    with Llama() as llama, serving(llama) as server:
        context = llama.config.seq_len
        theirs = LocalCompletionsAPI(
            base_url=f"{server.url}/v1/completions",
            model="any",
            max_length=context,
            batch_size=8,
            max_retries=1,
        )
        assert theirs.tokenizer_backend == "remote"  # it asked the server, and found it
        yield HarnessLM(llama, add_bos_token=False, max_length=context - 2), theirs
        theirs.tokenizer.session.close()


def ask(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


def test_loglikelihood(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    greedy = ours.generate_until(ask("generate_until", (CONTEXTS[0], {"max_gen_toks": 3})))
    pairs = [(context, answer) for context in CONTEXTS for answer in ANSWERS]
    requests = ask("loglikelihood", *pairs, (CONTEXTS[0], greedy[0]))
    got = ours.loglikelihood(requests)
    assert got == theirs.loglikelihood(requests)
    assert {is_greedy for _, is_greedy in got} == {True, False}


def test_loglikelihood_rolling(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    texts = [*CONTEXTS[:-1], "".join(ANSWERS), "A bird sang in the old tree. " * 150]
    requests = ask("loglikelihood_rolling", *((text,) for text in texts))
    assert ours.loglikelihood_rolling(requests) == theirs.loglikelihood_rolling(requests)


def test_generate_until(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    for options in ({"until": [], "max_gen_toks": 20}, {"until": [".", "\n"], "max_gen_toks": 40}):
        requests = ask("generate_until", *((context, options) for context in CONTEXTS[:-1]))
        answers = ours.generate_until(requests)
        assert answers == theirs.generate_until(requests) and len(set(answers)) > 3
