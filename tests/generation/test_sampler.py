"""Sampling: run.c's rule and coins, checked against a plain rewriting of it; and its edges."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Shape, TinyLlama

from pyllama2c import Llama, NonFiniteLogitsError
from pyllama2c._ffi import ffi, lib
from pyllama2c.engine.session import Session
from pyllama2c.generation.sampling import fresh_seed, new_sampler

VOCAB = 64
MASK = 2**64 - 1
Pick = Callable[..., int]


def sampler(seed: int = 1, **options: Any) -> Any:
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    return new_sampler(**{**defaults, "repetition_penalty": 1.0, **options}, seed=seed)


def new_session(vocab_size: int) -> Session:
    shape = Shape(dim=4, hidden_dim=4, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=vocab_size)
    llama = Llama.from_buffer(TinyLlama.random(shape).v0())
    engine = llama._engine
    return Session(engine.model, engine.pool, engine.session_options)


def picker(vocab_size: int) -> Pick:
    """Samples from any logits, by putting them where a forward pass leaves its own."""
    session = new_session(vocab_size)

    def pick(logits: Any, sampler: Any, history: list[int] | None = None) -> int:
        session.feed([0], 0)
        session.logits(1, vocab_size)[0] = logits
        ids = ffi.new("int32_t[]", history or [])
        return session.sample(sampler, ids, len(history or []))

    return pick


@pytest.fixture(scope="module")
def pick() -> Pick:
    return picker(VOCAB)


def coin(state: int) -> tuple[float, int]:
    """xorshift64*: llama2.c's random_f32."""
    state ^= state >> 12
    state = (state ^ state << 25) & MASK
    state ^= state >> 27
    return ((state * 0x2545F4914F6CDD1D & MASK) >> 32 >> 8) / 16777216.0, state


def run_c(logits: np.ndarray, temperature: float, top_p: float, random: float) -> int:
    """run.c's sample(), in float32 but for the order of the softmax's sum."""
    x = logits.astype(np.float32) / np.float32(temperature)
    e = np.exp((x - x.max()).astype(np.float64))
    p = (e / e.sum()).astype(np.float32)
    order = np.arange(len(p))
    if 0 < top_p < 1:
        cutoff = (1 - top_p) / (len(p) - 1)
        order = np.array(sorted((i for i in order if p[i] >= cutoff), key=lambda i: -p[i]))
        sums = np.cumsum(p[order], dtype=np.float32)
        order = order[: int(np.argmax(sums > top_p)) + 1 if (sums > top_p).any() else len(order)]
    sums = np.cumsum(p[order], dtype=np.float32)
    target = random * (sums[-1] if 0 < top_p < 1 else 1)
    above = np.nonzero(target < sums)[0]
    return int(order[above[0]] if len(above) else order[-1])


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(1, MASK),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 1.3, 5.0]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0]),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    data=st.integers(0, 10_000),
)
def test_run_c_rule(
    pick: Pick, seed: int, temperature: float, top_p: float, scale: float, data: int
) -> None:
    logits = (np.random.default_rng(data).normal(size=VOCAB) * scale).astype(np.float32)
    s = sampler(seed, temperature=temperature, top_p=top_p)
    got = pick(logits, s)
    value, state = coin(seed)
    assert s.rng_state == state  # one coin, no more
    near = {run_c(logits, temperature, top_p, value + d) for d in (-1e-6, 0.0, 1e-6)}
    assert got in near


def test_greedy_takes_the_first_largest_and_no_coin(pick: Pick) -> None:
    logits = np.zeros(VOCAB)
    logits[[9, 30]] = 2.0
    s = sampler(temperature=0.0)
    assert pick(logits, s) == 9
    assert s.rng_state == 1


def test_seed_zero_is_usable(pick: Pick) -> None:
    s = sampler(0)
    tokens = [pick(np.zeros(VOCAB), s) for _ in range(50)]
    assert len(set(tokens)) > 10
    assert 1 <= fresh_seed() < 2**31


@pytest.mark.parametrize("top_p", [1e-320, 1e-50, 1e-30, 1e-6, 0.001])
def test_flat_logits_and_a_tiny_top_p(pick: Pick, top_p: float) -> None:
    """run.c's pre-filter keeps nothing here, and it reads probindex[-1]."""
    assert pick(np.zeros(VOCAB), sampler(top_p=top_p)) == 0


def test_vocabulary_of_one() -> None:
    pick_one = picker(1)
    for options in ({}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.5}, {"temperature": 0.0}):
        assert pick_one([0.5], sampler(**options)) == 0


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45])
def test_tiny_temperatures_are_greedy(pick: Pick, temperature: float) -> None:
    logits = np.random.default_rng(1).normal(size=VOCAB)
    for values in (logits, logits - 100):
        s = sampler(temperature=temperature)
        assert pick(values, s) == int(np.argmax(values))
        assert s.rng_state == coin(1)[1]  # the coin is drawn all the same


def test_crossing_token_belongs_to_the_nucleus(pick: Pick) -> None:
    logits = np.full(VOCAB, -50.0)
    logits[:3] = np.log([0.5, 0.3, 0.2])
    counts = Counter(pick(logits, sampler(seed, top_p=0.6)) for seed in range(1, 400))
    assert set(counts) == {0, 1}
    assert abs(counts[0] / 399 - 0.5 / 0.8) < 0.08


def test_top_k_min_p_and_their_order(pick: Pick) -> None:
    logits = np.full(VOCAB, -50.0)
    logits[:4] = np.log([0.4, 0.3, 0.2, 0.1])

    def seen(**options: float) -> set[int]:
        return {pick(logits, sampler(seed, **options)) for seed in range(1, 300)}

    assert seen(top_k=1) == {0}
    assert seen(top_k=3) == {0, 1, 2}
    assert seen(top_k=1000) == {0, 1, 2, 3}
    assert seen(min_p=0.5) == {0, 1, 2}
    assert seen(min_p=1.0) == {0}
    assert seen(top_k=2, top_p=0.5) == {0}  # of the two kept, the first has 4/7 of the mass
    assert seen(top_k=2, top_p=0.6) == {0, 1}
    assert seen(top_p=0.95, min_p=0.7) == {0, 1}


def test_frequencies_follow_the_probabilities(pick: Pick) -> None:
    logits = np.random.default_rng(2).normal(size=VOCAB) * 2
    p = np.exp(logits - logits.max())
    p /= p.sum()
    for options in ({}, {"top_p": 0.9999}, {"top_k": VOCAB}, {"min_p": 1e-9}):
        s, n = sampler(7, **options), 6000
        counts = np.bincount([pick(logits, s) for _ in range(n)], minlength=VOCAB)
        assert (np.abs(counts / n - p) < 4 * np.sqrt(p / n) + 2e-3).all()


def test_repetition_penalty(pick: Pick) -> None:
    logits = np.full(VOCAB, -9.0)
    logits[[3, 4, 5]] = [2.0, 1.5, -0.5]
    greedy = sampler(temperature=0.0, repetition_penalty=2.0)
    assert pick(logits, greedy, []) == 3
    assert pick(logits, greedy, [3, 3, 3]) == 4  # once, however often it was said
    assert pick(logits, greedy, [3, 4, 63, 0]) == 3
    assert pick(logits, greedy, [-5, 10**6]) == 3  # ids that are none are passed over
    negative = np.full(VOCAB, -2.0)
    negative[7] = -1.5
    assert pick(negative, greedy, [7]) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_cannot_be_sampled(pick: Pick, temperature: float) -> None:
    for bad in (math.nan, math.inf):
        logits = np.zeros(VOCAB)
        logits[11] = bad
        with pytest.raises(NonFiniteLogitsError):
            pick(logits, sampler(temperature=temperature))
    with pytest.raises(NonFiniteLogitsError, match="forbid every token"):
        pick(np.full(VOCAB, -math.inf), sampler(temperature=temperature))
    allowed = np.full(VOCAB, -math.inf)
    allowed[5] = -3.0
    for top_p in (0.9, 1.0):
        assert pick(allowed, sampler(temperature=temperature, top_p=top_p)) == 5


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf, 1e39]),
        ("top_p", [-0.1, 1.1, math.nan, -math.inf]),
        ("top_k", [-1, 2**31]),
        ("min_p", [-0.1, 1.01, math.nan]),
        ("repetition_penalty", [0.0, -1.0, math.nan, math.inf]),
        ("seed", [-1, 2**64]),
    ],
)
def test_parameters_out_of_range(name: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} is "):
            sampler(**{name: value})  # type: ignore[arg-type]


def test_what_flat_logits_of_a_large_vocabulary_cost() -> None:
    """Processor time beside that of a choice without limits, which is that of a softmax: no order
    of all tokens is made for a few, and no exp in double precision for one of them."""
    n = 128_000
    session, none = new_session(n), ffi.new("int32_t[]", 0)
    logits = np.random.default_rng(1).uniform(0, 1e-3, n)

    def seconds(use: Callable[[], object]) -> float:
        spent = []
        for _ in range(15):
            session.feed([0], 0)
            session.logits(1, n)[0] = logits
            before = time.thread_time()
            use()
            spent.append(time.thread_time() - before)
        return min(spent)

    plain = seconds(lambda: session.sample(sampler(), none, 0))
    assert seconds(lambda: session.sample(sampler(top_p=0.9), none, 0)) < 80 * plain
    assert seconds(lambda: session.sample(sampler(min_p=0.05), none, 0)) < 40 * plain
    logprob = (session.handle, 0, 5, ffi.new("double *"), ffi.new("l2c_error *"))
    assert seconds(lambda: lib.l2c_session_logprob(*logprob)) < 5 * plain
