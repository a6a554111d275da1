"""What /v1/completions answers: generate's stories, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from http_server import Running, serving
from openai import OpenAI

from pyllama2c import Llama
from pyllama2c.serve.service import Limits

PROMPT = "Once upon a time"


def told(llama: Llama, prompt: Any = PROMPT, **options: Any) -> tuple[str, list[int], str | None]:
    story = llama.generate(prompt, **{"top_p": 1.0, **options})
    return story.read(), story.tokens, story.finish_reason


def test_a_seed_tells_generates_story(server: Running, storyteller: Llama) -> None:
    for options in (
        {"max_tokens": 30, "seed": 7},
        {"max_tokens": 30, "seed": 7, "temperature": 0},
        {"max_tokens": 30, "seed": 2**64 - 1, "top_k": 5, "min_p": 0.05},
        {"max_tokens": 400, "seed": 3, "top_p": 0.9, "repetition_penalty": 1.1},
        {"max_tokens": 100, "seed": 4, "stop": [" little", "."]},
        {"max_tokens": 0, "seed": 4},
    ):
        answer = server.ok("/v1/completions", prompt=PROMPT, return_token_ids=True, **options)
        (choice,) = answer["choices"]
        text, tokens, reason = told(storyteller, **options)
        assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == (
            text,
            tokens,
            reason,
        )
        assert answer["usage"]["completion_tokens"] == len(tokens)
        assert answer["object"] == "text_completion" and answer["model"] == "storyteller"


def test_defaults_are_openais(server: Running, storyteller: Llama) -> None:
    (choice,) = server.ok("/v1/completions", prompt=PROMPT, seed=5)["choices"]
    assert choice["text"] == told(storyteller, seed=5, max_tokens=16)[0]


def test_every_kind_of_prompt(server: Running, storyteller: Llama) -> None:
    ids = storyteller.tokenizer.encode_prompt(PROMPT)
    texts = {}
    for name, prompt in {
        "text": PROMPT,
        "texts": [PROMPT],
        "ids": ids,
        "lists": [ids],
    }.items():
        (choice,) = server.ok("/v1/completions", prompt=prompt, seed=1)["choices"]
        texts[name] = choice["text"]
    assert set(texts.values()) == {told(storyteller, seed=1, max_tokens=16)[0]}
    answer = server.ok("/v1/completions", prompt=["", [1], "é<s>"], seed=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    expected = [
        told(storyteller, prompt, seed=1 + i, max_tokens=16)[0]
        for i, prompt in enumerate(["", [1], "é<s>"])
    ]
    assert [choice["text"] for choice in answer["choices"]] == expected


def test_choices_have_consecutive_seeds(server: Running, storyteller: Llama) -> None:
    prompts, first = ["One", "Two", "Three"], 2**64 - 2
    answer = server.ok("/v1/completions", prompt=prompts, n=3, seed=str(first), max_tokens=8)
    assert len(answer["choices"]) == 9
    for i, choice in enumerate(answer["choices"]):
        seed = (first + i) % 2**64
        assert choice["index"] == i
        assert choice["seed"] == (seed if seed <= 2**53 else str(seed))
        assert choice["text"] == told(storyteller, prompts[i // 3], seed=seed, max_tokens=8)[0]
    n_prompt = sum(len(storyteller.tokenizer.encode_prompt(p)) for p in prompts)
    assert answer["usage"]["prompt_tokens"] == n_prompt


def test_without_a_seed_the_answer_says_which(server: Running, storyteller: Llama) -> None:
    seeds = set()
    for seed in (None, -1):
        (choice,) = server.ok("/v1/completions", prompt=PROMPT, seed=seed)["choices"]
        assert choice["text"] == told(storyteller, seed=choice["seed"], max_tokens=16)[0]
        seeds.add(choice["seed"])
    assert len(seeds) == 2


@pytest.mark.parametrize("stop", [None, [" little"], ["\n", "He "]])
def test_a_stream_is_the_same_story_token_by_token(server: Running, stop: Any) -> None:
    body = {"prompt": PROMPT, "seed": 11, "max_tokens": 120, "stop": stop, "n": 3}
    whole = server.ok("/v1/completions", **body)
    *chunks, usage, done = server.events(
        "/v1/completions", **body, stream_options={"include_usage": True}
    )
    assert done == "[DONE]"
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        assert [each["finish_reason"] for each in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert mine[-1]["seed"] == choice["seed"]


def test_each_token_is_an_event(server: Running) -> None:
    chunks = server.events("/v1/completions", prompt=PROMPT, seed=1, max_tokens=20)
    texts = [chunk["choices"][0]["text"] for chunk in chunks[:-1]]
    assert len([text for text in texts if text]) == 20


def test_joined_events_are_the_same(storyteller: Llama, server: Running) -> None:
    """--join-ms only decides how many events are written at once."""
    body = {"prompt": PROMPT, "seed": 2, "max_tokens": 60, "n": 2}

    def shown(events: list[Any]) -> list[Any]:
        return [e if e == "[DONE]" else e["choices"] for e in events]

    def by_choice(events: list[Any]) -> list[Any]:
        return sorted(events[:-1], key=lambda choices: choices[0]["index"])

    with serving(storyteller, limits=Limits(join_seconds=0.025)) as joined:
        a = shown(joined.events("/v1/completions", **body))
    b = shown(server.events("/v1/completions", **body))
    assert by_choice(a) == by_choice(b)


def test_characters_are_whole_in_a_stream(stories260k: Llama) -> None:
    """Bytes of a character come as tokens of their own; what is sent is valid text."""
    prompt = "日本é"
    with serving(stories260k, slots=4) as server:
        body = {"prompt": prompt, "seed": 1, "temperature": 3, "max_tokens": 60}
        whole = server.ok("/v1/completions", **body)["choices"][0]["text"]
        chunks = server.events("/v1/completions", **body)
        assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == whole
        assert whole == told(stories260k, prompt, seed=1, temperature=3, max_tokens=60)[0]


def test_openai_python(server: Running, storyteller: Llama) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True)
    answer = client.completions.create(model="any", prompt=PROMPT, seed=7, max_tokens=20)
    assert answer.choices[0].text == told(storyteller, seed=7, max_tokens=20)[0]
    assert answer.model == "storyteller"
    # The client's strict type has no finish_reason of null, which OpenAI's own streams have.
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    stream = client.completions.create(
        model="any", prompt=PROMPT, seed=7, max_tokens=20, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    assert [model.id for model in client.models.list()] == ["storyteller"]
    assert client.models.retrieve("storyteller").owned_by == "pyllama2c"


def test_echo(server: Running, storyteller: Llama) -> None:
    (choice,) = server.ok("/v1/completions", prompt=PROMPT, seed=7, echo=True)["choices"]
    text = told(storyteller, seed=7, max_tokens=16)[0]
    assert choice["text"] == PROMPT + text
    # vLLM 6521: echo without new tokens
    (choice,) = server.ok("/v1/completions", prompt=PROMPT, echo=True, max_tokens=0)["choices"]
    assert choice["text"] == PROMPT and choice["finish_reason"] == "length"
    chunks = server.events("/v1/completions", prompt=PROMPT, seed=7, echo=True, n=2)
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == index]
        expected = told(storyteller, seed=7 + index, max_tokens=16)[0]
        assert "".join(each["text"] for each in mine) == PROMPT + expected


def test_text_is_text(server: Running, storyteller: Llama) -> None:
    """A prompt that spells a control token does not become it, except where asked for by
    llama.cpp's parse_special."""
    ids = server.ok("/tokenize", content="<s>a", parse_special=False)["tokens"]
    assert ids == storyteller.tokenizer.encode("<s>a")
    assert storyteller.tokenizer.bos_id not in ids
    (choice,) = server.ok("/v1/completions", prompt="<s>a", echo=True, max_tokens=0)["choices"]
    assert choice["text"] == "<s>a"


def test_a_fresh_id_and_the_time(server: Running) -> None:
    a, b = (server.ok("/v1/completions", prompt=PROMPT) for _ in range(2))
    assert a["id"] != b["id"] and a["id"].startswith("cmpl-")
    assert abs(a["created"] - b["created"]) < 600
    json.dumps(a)
