"""Log-probabilities of a story's tokens: those of `score`, however it is told."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import real_file

from pyllama2c import Llama
from pyllama2c.generation.logprobs import TokenLogprob


def check(llama: Llama, prompt: list[int], tokens: list[int], told: Any, k: int) -> None:
    """Against score, and the likeliest against the logits themselves."""
    scored = llama.score([*prompt, *tokens]).logprobs[len(prompt) :]
    assert [(t.token, t.logprob) for t in told] == list(zip(tokens, scored, strict=True))
    if not tokens:
        return
    rows = llama.logits([*prompt, *tokens])[len(prompt) - 1 : -1]
    for row, entry in zip(rows, told, strict=True):
        likeliest = np.lexsort((np.arange(len(row)), -row))[:k].tolist()
        assert [token for token, _ in entry.top] == likeliest
        wide = row.astype(float)
        expected = wide[likeliest] - wide.max() - math.log(np.exp(wide - wide.max()).sum())
        assert [p for _, p in entry.top] == pytest.approx(expected, abs=1e-6)
        assert dict(entry.top).get(entry.token, entry.logprob) == entry.logprob


def some_settings(rng: random.Random) -> dict[str, Any]:
    return {
        "temperature": rng.choice([0.0, 0.5, 1.0, 1.4]),
        "top_p": rng.choice([0.0, 0.9]),
        "top_k": rng.choice([0, 0, 6]),
        "repetition_penalty": rng.choice([1.0, 1.3]),
        "presence_penalty": rng.choice([0.0, 0.8]),
        "logit_bias": rng.choice([None, {5: 4.0, 8: -math.inf}]),
        "stop": rng.choice([(), ["a"], ["cd", "e"]]),
        "max_tokens": rng.choice([0, 1, 7, 40]),
        "seed": rng.randrange(1, 2**32),
    }


def some_prompt(rng: random.Random) -> list[int]:
    return [1, *(rng.randrange(3, 300) for _ in range(rng.randrange(0, 12)))]


def test_one_story_with_and_without_a_draft(tiny_path: Path) -> None:
    rng, drafted, accepted = random.Random(3), 0, 0
    with Llama(tiny_path, speculative=True) as on, Llama(tiny_path, speculative=False) as off:
        for _ in range(120):
            prompt, options = some_prompt(rng), some_settings(rng)
            k = rng.choice([0, 1, 4, 64])
            plain = off.generate(prompt, **options)
            text = plain.read()
            assert plain.logprobs == []
            for llama in (on, off):
                story = llama.generate(prompt, logprobs=k, **options)
                assert story.read() == text and story.tokens == plain.tokens
                assert story.rng_state == plain.rng_state
                check(off, prompt, story.tokens, story.logprobs, k)
                drafted += story.stats.drafted_tokens
                accepted += story.stats.accepted_tokens
    assert 0 < accepted < drafted


def test_they_grow_with_the_tokens(llama: Llama) -> None:
    story = llama.generate("ab", seed=3, logprobs=1)
    for _ in story:
        assert [told.token for told in story.logprobs] == story.tokens
    assert len(story.tokens) > 5


def test_batches(llama: Llama) -> None:
    """Those of each story alone; where they are not asked for, None."""
    rng = random.Random(4)
    prompts, options = (
        [some_prompt(rng) for _ in range(60)],
        [some_settings(rng) for _ in range(60)],
    )
    wanted = [rng.choice([None, 0, 3, 64]) for _ in prompts]
    parameters: dict[str, Any] = {name: [o[name] for o in options] for name in options[0]}
    stories = llama.generate_batch(
        prompts, logprobs=wanted, max_batch=7, in_order=True, **parameters
    )
    for story, prompt, own, k in zip(stories, prompts, options, wanted, strict=True):
        alone = llama.generate(prompt, logprobs=k, **own)
        assert (alone.read(), alone.tokens) == (story.text, story.tokens)
        assert story.logprobs == (None if k is None else tuple(alone.logprobs))
    n_of_each = llama.generate_batch(["ab"], n=4, seed=3, logprobs=2, max_tokens=5, in_order=True)
    for seed, story in enumerate(n_of_each, 3):
        alone = llama.generate("ab", seed=seed, logprobs=2, max_tokens=5)
        alone.read()
        assert story.logprobs == tuple(alone.logprobs)


@pytest.mark.parametrize("n", [1, 3])
def test_a_processor_does_not_change_them(llama: Llama, n: int) -> None:
    """They are of the row before it; what it keeps is not theirs."""
    kept = []

    def processor(tokens: list[int], logits: np.ndarray) -> np.ndarray:
        kept.append(logits)
        logits[::2] = -np.inf
        return logits * 3

    options: dict[str, Any] = {"seed": 5, "max_tokens": 20, "logits_processor": processor}
    story = llama.generate([1, 9], logprobs=4, **options)
    story.read()
    assert all(token % 2 for token in story.tokens)
    check(llama, [1, 9], story.tokens, story.logprobs, 4)
    for told in llama.generate_batch([[1, 9]] * n, logprobs=4, **options):
        assert told.logprobs is not None
        check(llama, [1, 9], told.tokens, told.logprobs, 4)


def test_chat_and_every_instruction_set(tiny_path: Path, isa: str) -> None:
    def told(isa: str) -> list[TokenLogprob]:
        with Llama(tiny_path, isa=isa) as llama:
            answer = llama.chat([{"role": "user", "content": "ab"}], seed=2, logprobs=3)
            answer.read()
            return answer.logprobs

    assert told(isa) == told("scalar") != []


def test_a_real_model_with_a_draft() -> None:
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    with Llama(model, tokenizer, speculative=True) as llama:
        story = llama.generate("Once upon a time", seed=8, max_tokens=100, logprobs=5)
        story.read()
        assert story.stats.accepted_tokens > 0
        check(llama, story.prompt_tokens, story.tokens, story.logprobs, 5)
