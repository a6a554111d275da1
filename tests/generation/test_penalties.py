"""logit_bias and penalties: their rule, in NumPy; the same story in every way of telling it."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Shape, TinyLlama

from pyllama2c import Llama, NonFiniteLogitsError
from pyllama2c._ffi import ffi
from pyllama2c.engine.session import Session
from pyllama2c.generation.sampling import new_sampler

VOCAB = 64
f32 = np.float32


def adjusted(
    logits: np.ndarray,
    history: list[int],
    n_prompt: int,
    logit_bias: dict[int, float] | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> np.ndarray:
    """In float32, an operation at a time."""
    x = logits.astype(f32)
    for token, value in (logit_bias or {}).items():
        x[token] += f32(value)
    penalty = f32(repetition_penalty)
    for token in set(history):
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    for token, count in Counter(history[n_prompt:]).items():
        x[token] -= f32(frequency_penalty) * f32(count)
        x[token] -= f32(presence_penalty)
    return x


@pytest.fixture(scope="module")
def session() -> Session:
    shape = Shape(dim=4, hidden_dim=4, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=VOCAB)
    engine = Llama.from_buffer(TinyLlama.random(shape).v0())._engine
    return Session(engine.model, engine.pool, engine.session_options)


def pick(session: Session, logits: np.ndarray, history: list[int], sampler: Any) -> tuple[int, int]:
    session.feed([0], 0)
    session.logits(1, VOCAB)[0] = logits
    token = session.sample(sampler, ffi.new("int32_t[]", history), len(history))
    return token, int(sampler.rng_state)


PENALTIES = st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.0, -0.7, -2.0, 1e-30, 1e30])
SAMPLING = [(0.0, 0.9, 0), (1.0, 0.0, 0), (1.0, 0.9, 0), (0.5, 0.5, 7), (1.7, 0.0, 7)]
TOKENS = st.integers(0, 5) | st.integers(0, VOCAB - 1)


@settings(max_examples=600)
@given(
    data=st.integers(0, 2**32),
    history=st.lists(TOKENS, max_size=30),
    n_prompt=st.integers(0, 30),
    adjust=st.fixed_dictionaries(
        {
            "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3, 0.5]),
            "presence_penalty": PENALTIES,
            "frequency_penalty": PENALTIES,
            "logit_bias": st.dictionaries(
                TOKENS, st.floats(-100, 100, width=32) | st.just(-math.inf), max_size=12
            ),
        }
    ),
)
def test_the_rule(
    session: Session,
    data: int,
    history: list[int],
    n_prompt: int,
    adjust: dict[str, Any],
) -> None:
    """The choice, and the coin, are those from logits that were changed beforehand."""
    logits = np.random.default_rng(data).normal(size=VOCAB).astype(f32) * 3
    changed = adjusted(logits, history, n_prompt, **adjust)
    for temperature, top_p, top_k in SAMPLING:
        plain = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": 0.0}
        untouched = new_sampler(**plain, seed=7, repetition_penalty=1.0)
        sampler = new_sampler(**plain, **adjust, seed=7, n_prompt=n_prompt, vocab_size=VOCAB)
        expected = pick(session, changed, [], untouched)
        assert pick(session, logits, history, sampler) == expected


def some_settings(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of sampling; of what is done to logits before it."""
    values = [-0.8, 0.0, 0.0, 0.4, 1.5]
    tokens = [rng.randrange(300) for _ in range(rng.choice([0, 0, 1, 5, 40]))]
    bias = {token: rng.choice([-math.inf, -2.0, 1.0, 3.5]) for token in tokens}
    return (
        {
            "temperature": rng.choice([0.0, 0.0, 0.6, 1.0]),
            "top_p": rng.choice([0.0, 0.9]),
            "top_k": rng.choice([0, 8]),
            "max_tokens": rng.choice([5, 30]),
            "seed": rng.randrange(1, 2**32),
        },
        {
            "repetition_penalty": rng.choice([1.0, 1.0, 1.2]),
            "presence_penalty": rng.choice(values),
            "frequency_penalty": rng.choice(values),
            "logit_bias": bias or rng.choice([None, {}]),
        },
    )


def test_the_same_story_in_every_way(tiny_path: Path) -> None:
    """As the rule in a logits processor has it: plainly, with a draft, in a batch, and beside
    a processor of the caller's own."""
    rng, drafted, accepted = random.Random(6), 0, 0
    sampled: list[dict[str, Any]] = []
    prompts, adjusts, expected = [], [], []
    with Llama(tiny_path, speculative=True) as on, Llama(tiny_path, speculative=False) as off:
        for _ in range(150):
            prompt = [1, *(rng.randrange(3, 300) for _ in range(rng.randrange(0, 12)))]
            sampling, adjust = some_settings(rng)

            def rule(
                tokens: list[int],
                logits: np.ndarray,
                n: int = len(prompt),
                adjust: dict[str, Any] = adjust,
            ) -> np.ndarray:
                return adjusted(logits, tokens, n, **adjust)

            story = off.generate(prompt, logits_processor=rule, **sampling)
            story.read()
            for llama in (on, off):
                told = llama.generate(prompt, **sampling, **adjust)
                told.read()
                assert told.tokens == story.tokens and told.rng_state == story.rng_state
                drafted += told.stats.drafted_tokens
                accepted += told.stats.accepted_tokens
            beside = off.generate(prompt, logits_processor=lambda t, x: None, **sampling, **adjust)
            beside.read()
            assert beside.tokens == story.tokens
            prompts.append(prompt)
            sampled.append(sampling)
            adjusts.append(adjust)
            expected.append(story.tokens)
        parameters: dict[str, Any] = {
            name: [both[name] for both in table]
            for table in (sampled, adjusts)
            for name in table[0]
        }
        stories = off.generate_batch(prompts, max_batch=16, in_order=True, **parameters)
        assert [story.tokens for story in stories] == expected
    assert 0 < accepted < drafted


def test_the_prompt_is_not_penalized_for_presence(llama: Llama) -> None:
    """Only the story is: OpenAI's rule."""
    first = llama.generate([1, 5], temperature=0, max_tokens=1)
    first.read()
    (token,) = first.tokens
    prompt = [1, *[token] * 3, 5]
    plain, other = (
        llama.generate(prompt, temperature=0, max_tokens=12, presence_penalty=penalty)
        for penalty in (0.0, 1e6)
    )
    assert plain.read() and other.read()
    assert other.tokens[0] == plain.tokens[0]
    assert len(set(other.tokens)) == len(other.tokens)  # each once: they are all taken in turn


def test_minus_infinity_forbids(llama: Llama) -> None:
    allowed = {7, 8, 9}
    bias = {token: -math.inf for token in range(300) if token not in allowed}
    story = llama.generate("ab", seed=1, logit_bias=bias, max_tokens=40, stop_tokens=[])
    story.read()
    assert len(story.tokens) == 40 and set(story.tokens) <= allowed
    nothing = dict.fromkeys(range(300), -math.inf)
    with pytest.raises(NonFiniteLogitsError, match="forbid every token"):
        llama.generate("ab", logit_bias=nothing).read()
    one, two = llama.generate_batch(["ab", "ab"], logit_bias=[nothing, None], in_order=True, seed=1)
    assert isinstance(one.error, NonFiniteLogitsError) and two.error is None


def test_biases_may_change_afterwards(llama: Llama) -> None:
    """The story has its own copy, and keeps it until it ends."""
    plain = llama.generate("ab", seed=3)
    plain.read()
    bias = {plain.tokens[0]: -math.inf, 9: 1.0}
    expected = llama.generate("ab", seed=3, logit_bias=dict(bias)).read()
    story = llama.generate("ab", seed=3, logit_bias=bias)
    next(story)
    bias.clear()
    assert story.read() == expected
    assert story.tokens[0] != plain.tokens[0]
