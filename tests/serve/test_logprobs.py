"""Log-probabilities over HTTP: the model's own, equal to `score`, aligned with the text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from http_server import Running, serving
from openai import OpenAI

from pyllama2c import Llama
from pyllama2c.serve.prompt_scores import PromptScorer

PROMPT = "Once upon a time"


def score_all(llama: Llama, tokens: list[int], n_top: int) -> list[Any]:
    scorer = PromptScorer(llama._engine, tokens, n_top)
    while not scorer.step():
        pass
    scorer.close()
    return scorer.logprobs


@pytest.mark.parametrize("n_tokens", [1, 2, 63, 64, 65, 66, 200, 512])
def test_a_prompts_scores_are_scores(storyteller: Llama, n_tokens: int) -> None:
    tokens = np.random.default_rng(n_tokens).integers(0, 2048, n_tokens).tolist()
    scored = score_all(storyteller, tokens, 7)
    expected = storyteller.score(tokens).logprobs
    assert [s and s.logprob for s in scored] == expected
    logits = storyteller.logits(tokens)
    for i, each in enumerate(scored[1:]):
        likeliest = np.argsort(-logits[i], kind="stable")[:7].tolist()
        assert [token for token, _ in each.top] == likeliest
        own = dict(each.top).get(tokens[i + 1])
        assert own is None or own == each.logprob


def test_equals_go_by_their_ids(tiny_path: Any) -> None:
    """A model of zeros has nothing but equals."""
    data = bytearray(tiny_path.read_bytes())
    data[28:] = bytes(len(data) - 28)
    with Llama.from_buffer(bytes(data)) as llama:
        for each in score_all(llama, [1, 5, 9], 5)[1:]:
            assert [token for token, _ in each.top] == [0, 1, 2, 3, 4]
            assert each.logprob == pytest.approx(-math.log(llama.config.vocab_size))


def test_echo_with_no_new_tokens(server: Running, storyteller: Llama) -> None:
    """What lm-eval asks (llama.cpp 27174: none are told, and it measures chance)."""
    ids = storyteller.tokenizer.encode_prompt("Once upon a time there was a little cat.")
    for prompt in ("Once upon a time there was a little cat.", ids):
        body = {"prompt": prompt, "echo": True, "max_tokens": 0, "logprobs": 3}
        (choice,) = server.ok("/v1/completions", **body)["choices"]
        told = choice["logprobs"]
        expected = storyteller.score(ids).logprobs
        assert told["token_logprobs"] == expected and told["top_logprobs"][0] is None
        assert len(told["tokens"]) == len(ids)
        check_alignment(choice["text"], told)


def check_alignment(text: str, told: Any) -> None:
    """Joined tokens are the text; offsets are characters; the token is among the likeliest with
    the same number."""
    assert "".join(told["tokens"]) == text
    assert len({len(column) for column in told.values()}) == 1
    at = 0
    for i, token in enumerate(told["tokens"]):
        assert told["text_offset"][i] == at
        at += len(token)
        top = told["top_logprobs"][i]
        if top is not None and token:
            assert top[token] == told["token_logprobs"][i]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 40},
        {"max_tokens": 60, "stop": [" little", "!"]},
        {"max_tokens": 30, "temperature": 0},
        {"max_tokens": 30, "temperature": 1.5, "top_k": 5, "repetition_penalty": 1.3},
        {"max_tokens": 30, "logit_bias": {"300": 50}, "presence_penalty": 1.5},
        {"max_tokens": 400, "echo": True},
        {"max_tokens": 12, "echo": True, "n": 3},
    ],
)
def test_those_of_a_story(server: Running, storyteller: Llama, options: dict[str, Any]) -> None:
    """Of the model itself, whatever the sampler makes of them; whole and streamed."""
    body = {"prompt": PROMPT, "seed": 3, "logprobs": 2, "return_token_ids": True, **options}
    choices = server.ok("/v1/completions", **body)["choices"]
    streamed = server.events("/v1/completions", **body)
    for choice in choices:
        told = choice["logprobs"]
        check_alignment(choice["text"], told)
        prompt = storyteller.tokenizer.encode_prompt(PROMPT)
        n_echoed = len(prompt) if options.get("echo") else 0
        expected = storyteller.score([*prompt, *choice["token_ids"]]).logprobs
        kept = told["token_logprobs"]
        assert kept == expected[len(prompt) - n_echoed :][: len(kept)]
        if not options.get("stop"):
            assert len(kept) == n_echoed + len(choice["token_ids"])
        mine = [c["choices"][0] for c in streamed[:-1]]
        mine = [c for c in mine if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        for column, values in told.items():
            parts = [c["logprobs"][column] for c in mine if c["logprobs"]]
            assert [value for part in parts for value in part] == values, column


def test_with_bytes_that_are_no_characters(stories260k: Llama) -> None:
    with serving(stories260k, slots=4) as server:
        body = {"prompt": "日本é", "echo": True, "temperature": 3, "max_tokens": 60, "logprobs": 20}
        for seed in range(8):
            (choice,) = server.ok("/v1/completions", **body, seed=seed)["choices"]
            check_alignment(choice["text"], choice["logprobs"])


def test_chats_by_openai_python(server: Running, storyteller: Llama) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True)
    about: Any = {
        "model": "any",
        "messages": [{"role": "user", "content": "A cat"}],
        "seed": 7,
        "max_tokens": 20,
        "logprobs": True,
        "top_logprobs": 5,
    }
    (choice,) = client.chat.completions.create(**about).choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    story = storyteller.chat(about["messages"], seed=7, max_tokens=20, top_p=1.0)
    story.read()
    expected = storyteller.score([*story.prompt_tokens, *story.tokens]).logprobs[-20:]
    assert [entry.logprob for entry in choice.logprobs.content] == expected
    joined = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content)
    assert joined.decode() == choice.message.content
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 5
        falling = [top.logprob for top in entry.top_logprobs]
        assert falling == sorted(falling, reverse=True)
    chunks = list(client.chat.completions.create(**about, stream=True))
    told = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or ()
    ]
    assert [(t.token, t.logprob) for t in told] == [
        (t.token, t.logprob) for t in choice.logprobs.content
    ]


def test_llama_cpps_n_probs(server: Running, storyteller: Llama) -> None:
    body = {"prompt": PROMPT, "n_predict": 10, "seed": 5, "n_probs": 3}
    told = server.ok("/completion", **body)["completion_probabilities"]
    story = storyteller.generate(PROMPT, seed=5, max_tokens=10, temperature=0.8, top_k=40,
                                 top_p=0.95, min_p=0.05)  # fmt: skip
    story.read()
    expected = storyteller.score([*story.prompt_tokens, *story.tokens]).logprobs[-10:]
    assert [entry["logprob"] for entry in told] == expected
    assert [entry["id"] for entry in told] == story.tokens
    assert all(len(entry["top_logprobs"]) == 3 for entry in told)
    *chunks, _ = server.events("/completion", **body)
    assert [c["completion_probabilities"][0] for c in chunks] == told
