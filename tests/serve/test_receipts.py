"""Receipts: whatever the load, what is told is what generate tells with their parameters."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from environment import run_python
from http_server import Running, serving

from pyllama2c import Llama
from pyllama2c.generation.sampling import rng_state_after
from pyllama2c.serve.receipts import verify

PROMPTS = [
    "",
    "Once upon a time",
    "One day, a little boy",
    [1, 5, 9],
    "The lion and the rabbit " * 9,
]


REQUESTS = int(os.environ.get("PYLLAMA2C_TEST_REQUESTS", "50"))
"""under each load"""


def check(llama: Llama, receipt: Any, logprobs: list[float] | None = None) -> None:
    """A receipt, and the log-probabilities that came with it, against generate."""
    parameters = dict(receipt["parameters"])
    if parameters["logit_bias"]:
        biases = parameters["logit_bias"].items()
        parameters["logit_bias"] = {int(k): -math.inf if v is None else v for k, v in biases}
    story = llama.generate(receipt["prompt_tokens"], seed=int(receipt["seed"]), **parameters)
    assert story.read() == receipt["text"]
    assert story.tokens == receipt["tokens"]
    assert story.finish_reason == receipt["finish_reason"]
    assert story.rng_state == int(receipt["rng_state"])
    if logprobs is not None:
        # Those of tokens that a stop string cut off are not told.
        assert story.logprobs is not None
        assert [each.logprob for each in story.logprobs][: len(logprobs)] == logprobs
        assert len(logprobs) == len(story.tokens) or parameters["stop"]


def wishes(rng: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": rng.choice(PROMPTS),
        "seed": str(rng.getrandbits(64)),
        "max_tokens": rng.choice([1, 5, 40, 120, None]),
        "temperature": rng.choice([0, 0.7, 1, 1.5]),
        "top_p": rng.choice([0, 0.5, 0.9, 1]),
        "top_k": rng.choice([-1, 0, 3, 40]),
        "min_p": rng.choice([0, 0.05]),
        "repetition_penalty": rng.choice([1, 1.2]),
        "stop": rng.choice([None, ["."], [" the", "\n"]]),
        "receipt": True,
        "n": rng.choice([1, 1, 1, 3]),
    }
    if rng.random() < 0.5:
        body["logprobs"] = rng.choice([0, 5])
    if rng.random() < 0.3:
        body |= {"presence_penalty": 1.5, "frequency_penalty": -0.5, "logit_bias": {"300": 4}}
    if rng.random() < 0.2:
        body |= {"ignore_eos": True, "stop_token_ids": [rng.randrange(300, 400)]}
    return body


Answers = list[tuple[Any, list[float] | None]]
"""receipts, each with its story's log-probabilities"""


async def ask(client: httpx.AsyncClient, body: dict[str, Any], leave_at: float) -> Answers:
    """Every other one streamed. Leaves after so many lines."""
    streamed, n_lines = body["seed"][-1] in "02468", 0
    receipts: dict[int, Any] = {}
    logprobs: dict[int, list[float]] = {}
    asked = client.stream("POST", "/v1/completions", json=body | {"stream": streamed})
    async with asked as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            n_lines += 1
            if n_lines > leave_at:
                return []
            data = line.removeprefix("data: ")
            for choice in json.loads(data)["choices"] if data.startswith("{") else ():
                told = logprobs.setdefault(choice["index"], [])
                if choice["logprobs"]:
                    told += choice["logprobs"]["token_logprobs"]
                if "receipt" in choice:
                    receipts[choice["index"]] = choice["receipt"]
    return [
        (receipt, logprobs[index] if "logprobs" in body else None)
        for index, receipt in receipts.items()
    ]


async def ask_all(url: str, bodies: list[dict[str, Any]], concurrency: int) -> Answers:
    """Of those that ran to their end; a third is left in the middle."""
    rng, turn = random.Random(concurrency), asyncio.Semaphore(concurrency)

    async def one(client: httpx.AsyncClient, body: dict[str, Any], leave_at: float) -> Answers:
        async with turn:
            return await ask(client, body, leave_at)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        leaves = [rng.random() * 20 if rng.random() < 0.33 else math.inf for _ in bodies]
        asked = [one(client, body, at) for body, at in zip(bodies, leaves, strict=True)]
        return [each for answers in await asyncio.gather(*asked) for each in answers]


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_under_load_the_same_stories(server: Running, storyteller: Llama, concurrency: int) -> None:
    """llama.cpp's own test says that slots change its texts; vLLM 51187."""
    rng = random.Random(concurrency)
    bodies = [wishes(rng) for _ in range(REQUESTS)]
    answers = asyncio.run(ask_all(server.url, bodies, concurrency))
    assert len(answers) >= REQUESTS / 2
    for receipt, logprobs in answers:
        check(storyteller, receipt, logprobs)
    server.wait_until_idle()


def test_a_chats_receipt(server: Running, storyteller: Llama) -> None:
    messages = [{"role": "user", "content": "A cat"}]
    body = {"messages": messages, "receipt": True, "max_tokens": 20, "n": 2, "seed": 3}
    for choice in server.ok("/v1/chat/completions", **body)["choices"]:
        assert choice["message"]["content"] == choice["receipt"]["text"]
        check(storyteller, choice["receipt"])
    receipt = server.ok("/completion", prompt="A cat", seed=3, n_predict=9, receipt=True)["receipt"]
    check(storyteller, receipt)


def receipt_of(server: Running) -> dict[str, Any]:
    body = {"prompt": "Once", "seed": 2**64 - 3, "max_tokens": 20, "receipt": True}
    receipt: dict[str, Any] = server.ok("/v1/completions", **body)["choices"][0]["receipt"]
    return receipt


def test_big_numbers_are_text(server: Running) -> None:
    receipt = receipt_of(server)
    assert receipt["seed"] == str(2**64 - 3)
    assert int(receipt["rng_state"]) == rng_state_after(2**64 - 3, 20)


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"weights": "0" * 16}, "weights is 0000000000000000 there"),
    ({"tokenizer": "0"}, "tokenizer is 0 there"),
    ({"dtype": "float32"}, "dtype is float32 there and int8 here"),
    ({"kv_dtype": "float16"}, "kv_dtype is float16 there and float32 here"),
    ({"seed": "5"}, "token 0 is"),
    ({"rng_state": "5"}, "rng_state is 5 there"),
    ({"finish_reason": "stop"}, "finish_reason is 'stop' there and 'length' here"),
    ({"text": "x"}, "text is 'x' there"),
    ({"tokens": [5]}, "token 0 is 5 there"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_verify_says_where_it_parts(
    server: Running, storyteller: Llama, change: dict[str, Any], message: str
) -> None:
    receipt = receipt_of(server)
    identical = {"identical": True, "differences": []}
    assert server.ok("/api/verify", **receipt) == identical == verify(storyteller, receipt)
    told = server.ok("/api/verify", **receipt | change)
    assert not told["identical"] and told["differences"][0].startswith(message)
    shorter = receipt | {"tokens": receipt["tokens"][:-1]}
    assert "there are 19 there and 20 here" in verify(storyteller, shorter)["differences"][0]


def test_what_is_no_receipt(server: Running) -> None:
    receipt = receipt_of(server)
    for change in (
        {"prompt_tokens": "x"},
        {"prompt_tokens": [2048]},
        {"tokens": [True]},
        {"seed": -1},
        {"seed": 1.5},
        {"rng_state": "x"},
        {"parameters": {"x": 1}},
        {"parameters": {"temperature": "hot"}},
        {"parameters": {"max_tokens": True}},
        {"parameters": 5},
        {"weights": 5},
        {"prompt_tokens": []},
        {"prompt_tokens": [5] * 600},
        {"isa": "avx9"},
    ):
        answer = server.post("/api/verify", **receipt | change)
        assert answer.status_code == 400, (change, answer.text)
        assert answer.json()["error"]["code"] == "invalid_receipt"
    biased = {"parameters": receipt["parameters"] | {"logit_bias": {"x": 1}}}
    message = server.post("/api/verify", **receipt | biased).json()["error"]["message"]
    assert "logit_bias is 'x'" in message


def test_the_command(server: Running, tmp_path: Path) -> None:
    path, receipt = tmp_path / "receipt.json", receipt_of(server)
    path.write_text(json.dumps(receipt))
    done = run_python("-m", "pyllama2c", "verify", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "identical\n", "")
    path.write_text(json.dumps(receipt | {"seed": 1}))
    done = run_python("-m", "pyllama2c", "verify", str(path))
    assert done.returncode == 1 and done.stdout.startswith("token 0 is ")
    for data in ("", "{", "[]", "[" * 100_000):
        path.write_text(data)
        done = run_python("-m", "pyllama2c", "verify", str(path))
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr


def test_other_dtypes_and_caches(tiny_path: Path) -> None:
    for options in ({"dtype": "int8"}, {"dtype": "int4"}, {"kv_dtype": "float16"}):
        with Llama(tiny_path, **options) as llama, serving(llama, slots=3) as server:  # type: ignore[arg-type]
            body = {"prompt": "abc", "seed": 5, "n": 9, "max_tokens": 20, "receipt": True}
            for choice in server.ok("/v1/completions", **body)["choices"]:
                assert verify(llama, choice["receipt"])["identical"]


def test_a_temperature_that_float32_does_not_have(server: Running, storyteller: Llama) -> None:
    """It is 0 for the sampler, which then tosses no coins."""
    body = {"prompt": "Once", "temperature": 1e-50, "seed": 5, "max_tokens": 5, "receipt": True}
    receipt = server.ok("/v1/completions", **body)["choices"][0]["receipt"]
    assert verify(storyteller, receipt) == {"identical": True, "differences": []}


def test_rng_state_after(storyteller: Llama) -> None:
    for seed in (0, 1, 2**64 - 1):
        story = storyteller.generate("Once", seed=seed, max_tokens=30, stop_tokens=[])
        story.read()
        assert story.rng_state == rng_state_after(seed, 30)
