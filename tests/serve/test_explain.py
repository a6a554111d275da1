"""How a token was chosen: the same story as generate, and a line that holds what the coin took."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Shape, TinyLlama

from pyllama2c import ContextLengthError, Llama
from pyllama2c.serve import explain
from pyllama2c.serve.nodes import Nodes

PROMPT = "Once upon a time"
settings_of_generate = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.one_of(
            st.just(0.0), st.floats(0.0625, 5, width=32), st.just(1e-39), st.just(1.0)
        ),
        "top_p": st.one_of(st.sampled_from([0.0, 1.0, 1e-6]), st.floats(0.015625, 1, width=32)),
        "top_k": st.sampled_from([0, 0, 1, 2, 40, 10_000]),
        "min_p": st.one_of(st.just(0.0), st.floats(0, 1, width=32)),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.8]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "frequency_penalty": st.sampled_from([0.0, -0.3]),
        "logit_bias": st.sampled_from([None, {297: 5.0, 310: -3.5}]),
    },
)


def told(llama: Llama, prompt: list[int], seed: int, n: int, **sampling: Any) -> list[Any]:
    """A story's tokens, asked one by one."""
    nodes, answers = Nodes(), []
    request: dict[str, Any] = {"ids": prompt, "seed": str(seed)}
    sampling["logit_bias"] = sampling.get("logit_bias") and {
        str(k): v for k, v in sampling["logit_bias"].items()
    }
    for _ in range(n):
        request |= {"sampling": sampling, "n_prompt": len(prompt)}
        answer = explain.next_token(llama, nodes, json.loads(json.dumps(request)))
        answers.append(answer)
        if answer["ends"]:
            break
        request = {"node": answer["node"], "rng_state": answer["rng_after"]}
    return answers


def check_line(answer: dict[str, Any], vocab_size: int) -> None:
    (row,) = [row for row in answer["top"] if row["id"] == answer["token"]]
    assert (row["low"], row["high"]) == (answer["low"], answer["high"])
    assert len(answer["top"]) == min(explain.N_TOP, vocab_size)
    after = [row["p_after"] for row in answer["top"][:-2]]
    assert after == sorted(after, reverse=True)
    if answer["order"] == "greedy":
        assert answer["low"] is answer["target"] is answer["sum"] is None
        return
    assert row["cut_by"] is None
    assert answer["low"] <= answer["target"]
    assert answer["target"] < answer["high"] or answer["high"] == answer["sum"]
    assert 1 <= answer["kept"] <= vocab_size
    on_line = [row for row in answer["top"] if row["low"] is not None]
    assert all(row["cut_by"] is None for row in on_line)
    assert all(row["cut_by"] for row in answer["top"] if row["low"] is None)
    for row in on_line:
        share = (row["high"] - row["low"]) - row["p_after"]
        assert abs(share) < 1e-6, row


@given(settings_of_generate, st.integers(0, 2**64 - 1))
@settings(max_examples=40)
def test_asked_one_by_one_it_is_generates_story(
    storyteller: Llama, sampling: dict[str, Any], seed: int
) -> None:
    story = storyteller.generate(PROMPT, seed=seed, max_tokens=12, **sampling)
    story.read()
    answers = told(storyteller, story.prompt_tokens, seed, 12, **sampling)
    tokens = [answer["token"] for answer in answers if not answer["ends"]]
    assert tokens == story.tokens
    assert answers[-1]["rng_after"] == str(story.rng_state)
    for answer in answers:
        check_line(answer, storyteller.config.vocab_size)


@pytest.fixture(params=["float32", "int8", "uneven groups", "runq"])
def tiny(request: pytest.FixtureRequest, tokenizer_path: Path) -> Iterator[Llama]:
    """Models whose kernels add up a row in their own ways."""
    group = 0 if request.param == "float32" else 8 if request.param == "uneven groups" else 16
    shape = Shape(hidden_dim=20, group_size=group) if group == 8 else Shape(group_size=group or 16)
    truth = TinyLlama.random(shape)
    isa = "runq" if request.param == "runq" else None
    data = truth.v2() if group else truth.v0()
    if group == 8:
        with pytest.warns(UserWarning, match="does not divide"):
            llama = Llama.from_buffer(data, tokenizer_path)
    else:
        llama = Llama.from_buffer(data, tokenizer_path, isa=isa)
    with llama:
        yield llama


@pytest.mark.parametrize(
    "sampling", [{}, {"top_p": 1.0}, {"top_k": 5}, {"top_p": 1.0, "min_p": 0.2}], ids=str
)
def test_every_kind_of_kernels(tiny: Llama, sampling: dict[str, Any]) -> None:
    story = tiny.generate([1, 300 - 7], seed=3, max_tokens=20, stop_tokens=[], **sampling)
    story.read()
    nodes, ids, state = Nodes(), list(story.prompt_tokens), {"seed": 3}
    for token in story.tokens:
        answer = explain.next_token(tiny, nodes, {"ids": ids, **state, "sampling": sampling})
        assert answer["token"] == token
        check_line(answer, tiny.config.vocab_size)
        ids, state = [*ids, token], {"rng_state": answer["rng_after"]}


def test_a_small_vocabulary_is_shown_whole(storyteller: Llama) -> None:
    """Every kept token's part of the line, side by side."""
    request = {"ids": storyteller.tokenizer.encode_prompt(PROMPT), "seed": 1}
    answer = explain.next_token(storyteller, Nodes(), request | {"sampling": {"top_k": 7}})
    kept = [row for row in answer["top"] if row["cut_by"] is None]
    assert len(kept) <= answer["kept"] == len(kept)
    assert [row["low"] for row in kept] == [0.0, *(row["high"] for row in kept[:-1])]
    assert kept[-1]["high"] == answer["sum"]
    assert {row["cut_by"] for row in answer["top"]} <= {None, "top_k", "top_p"}


def test_what_is_shown_of_the_model(storyteller: Llama) -> None:
    ids = storyteller.tokenizer.encode_prompt(PROMPT)
    sampling = {"temperature": 0.5, "top_p": 0.8}
    answer = explain.next_token(storyteller, Nodes(), {"ids": ids, "seed": 5, "sampling": sampling})
    logits = np.frombuffer(base64.b64decode(answer["logits"]), "<f4")
    assert logits.tobytes() == storyteller.logits(ids)[-1].tobytes()
    exact = logits.astype(float)
    before = np.exp(exact - exact.max()) / np.exp(exact - exact.max()).sum()
    after = np.exp(2 * (exact - exact.max())) / np.exp(2 * (exact - exact.max())).sum()
    for row in answer["top"]:
        assert row["logit"] == logits[row["id"]]
        assert row["p_before"] == pytest.approx(before[row["id"]], rel=1e-9)
        assert row["p_after"] == pytest.approx(after[row["id"]], rel=1e-5)
        assert bytes(row["bytes"]) == storyteller.tokenizer.piece(row["id"])


def test_a_token_taken_by_hand_uses_up_the_coin_of_its_place(storyteller: Llama) -> None:
    nodes, ids = Nodes(), storyteller.tokenizer.encode_prompt(PROMPT)
    own = explain.next_token(storyteller, nodes, {"ids": ids, "seed": 5})
    other = next(row["id"] for row in own["top"] if row["id"] != own["token"])
    cut = next(row["id"] for row in own["top"] if row["cut_by"] == "top_p")
    for token in (other, cut, own["token"]):
        forced = explain.next_token(storyteller, nodes, {"ids": ids, "seed": 5, "forced": token})
        assert (forced["token"], forced["picked"]) == (token, own["token"])
        assert (forced["rng_after"], forced["coin"]) == (own["rng_after"], own["coin"])
        assert nodes.get(forced["node"]) == [*ids, token]
        assert {token, own["token"]} <= {row["id"] for row in forced["top"]}
    greedy = {"ids": ids, "seed": 5, "sampling": {"temperature": 0}, "forced": other}
    answer = explain.next_token(storyteller, nodes, greedy)
    assert answer["rng_after"] == answer["rng_before"] == "5" and answer["coin"] is None


def test_seeds_beyond_javascripts_numbers(storyteller: Llama) -> None:
    ids, seed = storyteller.tokenizer.encode_prompt(PROMPT), 2**64 - 3
    for request in ({"seed": str(seed)}, {"seed": seed}, {"rng_state": str(seed)}):
        answer = explain.next_token(storyteller, Nodes(), {"ids": ids, **request})
        assert answer["rng_before"] == str(seed)


def test_how_a_story_begins(storyteller: Llama) -> None:
    nodes = Nodes()
    begun = explain.tokens(storyteller, nodes, {"text": "A ☃"})
    assert nodes.get(begun["node"]) == [token["id"] for token in begun["tokens"]]
    shown = b"".join(bytes(token["bytes"]) for token in begun["tokens"])
    assert shown.decode() == "A ☃"
    again = explain.tokens(storyteller, nodes, {"ids": nodes.get(begun["node"])})
    assert again == begun


def test_nodes_are_bounded(storyteller: Llama) -> None:
    nodes = Nodes(max_nodes=3, max_ids=10)
    names = [nodes.put([i, i]) for i in range(3)]
    assert nodes.get(names[0]) == [0, 0]  # and so used last
    nodes.put([3, 3])
    assert nodes.get(names[1]) is None and nodes.get(names[0]) == [0, 0]
    nodes.put(list(range(9)))
    assert len(nodes) == 1 and nodes.get(names[0]) is None
    assert nodes.put([0, 0]) == names[0]
    with pytest.raises(ValueError, match=r"node '.*' is unknown, or no longer kept: give ids"):
        explain.next_token(storyteller, nodes, {"node": names[1], "seed": 1})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "one of node and ids"),
    ({"ids": [1], "node": "x", "seed": 1}, "one of node and ids"),
    ({"ids": [1]}, "one of rng_state and seed"),
    ({"ids": [1], "seed": 1, "rng_state": "1"}, "one of rng_state and seed"),
    ({"ids": [], "seed": 1}, "ids is empty"),
    ({"ids": [99999], "seed": 1}, "99999 is outside"),
    ({"ids": "1", "seed": 1}, "ids is '1'"),
    ({"ids": [True], "seed": 1}, r"ids\[0\] is True"),
    ({"ids": [1], "rng_state": "0"}, "rng_state is 0"),
    ({"ids": [1], "rng_state": "1" * 21}, "rng_state is '1"),
    ({"ids": [1], "seed": str(2**64)}, "seed is 18446744073709551616"),
    ({"ids": [1], "seed": 1.5}, "seed is 1.5"),
    ({"ids": [1], "seed": 1, "sampling": []}, r"sampling is \[\]"),
    ({"ids": [1], "seed": 1, "sampling": {"top_q": 1}}, "unknown sampling field 'top_q'"),
    ({"ids": [1], "seed": 1, "sampling": {"top_p": 2}}, "top_p is 2"),
    ({"ids": [1], "seed": 1, "sampling": {"top_p": None}}, "top_p is None"),
    ({"ids": [1], "seed": 1, "sampling": {"logit_bias": {"x": 1}}}, "logit_bias is 'x'"),
    ({"ids": [1], "seed": 1, "forced": 2048}, "forced is 2048"),
    ({"ids": [1], "seed": 1, "n_prompt": 2}, "n_prompt is 2"),
    ({"ids": [1], "seed": 1, "temprature": 2}, "unknown field 'temprature'"),
    ({"node": 7, "seed": 1}, "node is 7"),
]


@pytest.mark.parametrize(("request_", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_requests(storyteller: Llama, request_: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        explain.next_token(storyteller, Nodes(), request_)


def test_the_end_of_the_context(storyteller: Llama) -> None:
    n = storyteller.config.seq_len
    assert explain.next_token(storyteller, Nodes(), {"ids": [1] * n, "seed": 1})["position"] == n
    with pytest.raises(ContextLengthError, match=f"{n + 1} tokens"):
        explain.next_token(storyteller, Nodes(), {"ids": [1] * (n + 1), "seed": 1})


def test_attention(storyteller: Llama) -> None:
    nodes, config = Nodes(), storyteller.config
    begun = explain.tokens(storyteller, nodes, {"text": PROMPT})
    n = len(begun["tokens"])
    for position in (0, n - 1):
        request = {"node": begun["node"], "position": position}
        answer = explain.attention(storyteller, nodes, request)
        weights = np.frombuffer(base64.b64decode(answer["weights"]), "<f4")
        weights = weights.reshape(config.n_layers, config.n_heads, position + 1)
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=f"position is {n}"):
        explain.attention(storyteller, nodes, {"node": begun["node"], "position": n})
