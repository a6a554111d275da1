"""Receipts: whatever the load, what is told is what generate tells with their parameters."""

from __future__ import annotations

import asyncio
import json
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


def check(llama: Llama, receipt: Any) -> None:
    """A receipt against generate."""
    story = llama.generate(
        receipt["prompt_tokens"], seed=int(receipt["seed"]), **receipt["parameters"]
    )
    assert story.read() == receipt["text"]
    assert story.tokens == receipt["tokens"]
    assert story.finish_reason == receipt["finish_reason"]
    assert story.rng_state == int(receipt["rng_state"])


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
    if rng.random() < 0.2:
        body |= {"ignore_eos": True, "stop_token_ids": [rng.randrange(300, 400)]}
    return body


async def ask_all(url: str, bodies: list[dict[str, Any]], concurrency: int, seed: int) -> list[Any]:
    """Receipts of those that ran to their end; a third is left in the middle."""
    rng, turn = random.Random(seed), asyncio.Semaphore(concurrency)

    async def one(client: httpx.AsyncClient, body: dict[str, Any], leave: float | None) -> Any:
        async with turn:
            streamed = body["seed"][-1] in "02468"
            asked = client.stream("POST", "/v1/completions", json=body | {"stream": streamed})
            receipts, n = [], 0
            async with asked as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    n += 1
                    if leave is not None and n > leave * 20:
                        return []
                    if line.startswith("{"):
                        receipts += [c["receipt"] for c in json.loads(line)["choices"]]
                    elif line.startswith("data: {"):
                        choices = json.loads(line.removeprefix("data: "))["choices"]
                        receipts += [c["receipt"] for c in choices if "receipt" in c]
            return receipts

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        asked = [one(client, b, rng.random() if rng.random() < 0.33 else None) for b in bodies]
        return [r for receipts in await asyncio.gather(*asked) for r in receipts]


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_under_load_the_same_stories(server: Running, storyteller: Llama, concurrency: int) -> None:
    """llama.cpp's own test says that slots change its texts; vLLM 51187."""
    rng = random.Random(concurrency)
    bodies = [wishes(rng) for _ in range(50)]
    receipts = asyncio.run(ask_all(server.url, bodies, concurrency, concurrency))
    assert len(receipts) >= 25
    for receipt in receipts:
        check(storyteller, receipt)
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


def test_rng_state_after(storyteller: Llama) -> None:
    for seed in (0, 1, 2**64 - 1):
        story = storyteller.generate("Once", seed=seed, max_tokens=30, stop_tokens=[])
        story.read()
        assert story.rng_state == rng_state_after(seed, 30)
