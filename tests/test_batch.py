"""Batches: every story is the one it would be alone; failures stay alone; files are completed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_python

from pyllama2c import Completion, ContextLengthError, Llama, NonFiniteLogitsError, TokenizerError


def alone(llama: Llama, prompt: object, **options: object) -> tuple[str, list[int], str | None]:
    story = llama.generate(prompt, **options)  # type: ignore[arg-type]
    return story.read(), story.tokens, story.finish_reason


def told(story: Completion) -> tuple[str, list[int], str]:
    assert story.error is None
    return story.text, story.tokens, story.finish_reason


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@pytest.mark.parametrize("max_batch", [1, 3, 64, 256])
def test_a_story_is_the_same_alone(tiny_path: Path, dtype: str, max_batch: int) -> None:
    prompts = ["", "ab", "abc de " * 9, [1, 5, 9], "日本 é", "a"]
    with Llama(tiny_path, dtype=dtype) as llama:
        stories = llama.generate_batch(
            prompts, n=4, seed=7, max_batch=max_batch, max_tokens=25, in_order=True
        )
        assert [s.number for s in stories] == list(range(24))
        for story in stories:
            prompt = prompts[story.number // 4]
            assert story.seed == 7 + story.number
            assert told(story) == alone(llama, prompt, seed=story.seed, max_tokens=25)


def test_isa_and_threads_do_not_matter(tiny_path: Path, isa: str) -> None:
    def texts(**options: object) -> list[str]:
        with Llama(tiny_path, **options) as llama:  # type: ignore[arg-type]
            return [s.text for s in llama.generate_batch(["ab"], n=9, seed=1, in_order=True)]

    expected = texts(isa="scalar", threads=1)
    for threads in (1, 2, 5, None):
        assert texts(isa=isa, threads=threads) == expected


def test_parameters_of_each_prompt(llama: Llama) -> None:
    stories = llama.generate_batch(
        ["ab", "cd", "de"],
        seed=[5, 9, 2],
        temperature=[0.0, 1.0, 0.5],
        max_tokens=[4, 9, 0],
        stop=[["a"], [], "zz"],
        top_k=3,
        in_order=True,
    )
    options = [
        {"seed": 5, "temperature": 0.0, "max_tokens": 4, "stop": ["a"]},
        {"seed": 9, "temperature": 1.0, "max_tokens": 9},
        {"seed": 2, "temperature": 0.5, "max_tokens": 0, "stop": "zz"},
    ]
    for story, prompt, own in zip(stories, ["ab", "cd", "de"], options, strict=True):
        assert told(story) == alone(llama, prompt, top_k=3, **own)


def test_one_stop_for_all(llama: Llama) -> None:
    for story in llama.generate_batch(["ab", "cd"], n=5, seed=3, stop=["a", "b"], in_order=True):
        assert (
            told(story)[0]
            == alone(llama, ["ab", "cd"][story.number // 5], seed=story.seed, stop=["a", "b"])[0]
        )


def test_rows_are_refilled_at_once(llama: Llama) -> None:
    """Short stories do not wait for a long one."""
    lengths = [60, *[2] * 20]
    ended = [
        story.number
        for story in llama.generate_batch(
            [[1, 5]] * 21, max_tokens=lengths, seed=1, max_batch=2, top_k=1
        )
        if story.tokens
    ]
    assert ended[-1] == 0 and ended[:-1] == list(range(1, 21))


def test_one_failure_is_alone(llama: Llama) -> None:
    def bad(tokens: list[int], logits: np.ndarray) -> None:
        if len(tokens) > 4:
            logits[:] = np.nan

    stories = llama.generate_batch(
        ["ab", [1, 999], [5] * 200, "cd", "ab", [], "ab"],
        seed=[1, 2, 3, 4, 5, 6, 2**64 - 1],
        logits_processor=[None, None, None, bad, None, None, None],
        max_tokens=9,
        in_order=True,
    )
    kinds = [type(story.error) for story in stories]
    assert kinds == [
        type(None), TokenizerError, ContextLengthError, NonFiniteLogitsError, type(None),
        ValueError, type(None),
    ]  # fmt: skip
    assert stories[6].seed == 2**64 - 1
    around = llama.generate_batch(["ab"], n=2, seed=2**64 - 1, max_tokens=1, in_order=True)
    assert [story.seed for story in around] == [2**64 - 1, 0]  # seeds count modulo 2**64
    assert [s.finish_reason == "error" for s in stories] == [k is not type(None) for k in kinds]
    assert told(stories[4]) == alone(llama, "ab", seed=5, max_tokens=9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": "abc"}, ValueError, "prompts is one text"),
        ({"prompts": ["a"], "n": 0}, ValueError, "n is 0"),
        ({"prompts": ["a"], "max_batch": 0}, ValueError, "max_batch is 0"),
        ({"prompts": ["a"], "max_batch": 257}, ValueError, "max_batch is 257"),
        ({"prompts": ["a"], "seed": [1, 2]}, ValueError, "seed has 2 values for 1 prompts"),
        ({"prompts": ["a"], "top_q": 1}, TypeError, "no parameter top_q"),
    ],
)
def test_wrong_arguments(llama: Llama, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        llama.generate_batch(**arguments)
    assert llama.generate_batch([], in_order=True) == []


def test_left_half_way(llama: Llama) -> None:
    stories = iter(llama.generate_batch(["ab"], n=30, max_batch=4, seed=1))
    next(stories)
    del stories
    assert len(llama.generate_batch(["ab"], n=3, seed=1, in_order=True)) == 3


def test_jsonl_is_completed(tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ["-m", "pyllama2c", str(tiny_path), "--jsonl", str(out), "-i", "ab", "-n", "30"]
    first = run_python(*command, "-N", "5", "-s", "11")
    assert first.returncode == 0 and "5 stories" in first.stderr, first.stderr
    assert first.stderr.rstrip().splitlines()[-1].startswith("achieved tok/s: ")
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])  # as a kill in the middle of a line leaves it
    again = run_python(*command, "-N", "9")
    assert again.returncode == 0 and "5 stories, 4 were there" in again.stderr, again.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(r["index"] for r in records) == list(range(9))
    with Llama(tiny_path) as llama:
        for record in records:
            assert record["seed"] == 11 + record["index"]
            steps = 30 - len(llama.tokenizer.encode("ab", bos=True)) + 1
            text, tokens, reason = alone(llama, "ab", seed=record["seed"], max_tokens=steps)
            assert (record["text"], record["tokens"]) == (text, len(tokens))
            assert record["finish_reason"] == reason
    for wrong, message in (("-s 3", "begun with seed 11"), ("-i x", "the prompt was 'ab'")):
        refused = run_python(*command, "-N", "9", *wrong.split())
        assert refused.returncode == 1 and message in refused.stderr
    out.write_text("{}\n")
    assert "line 1: not a story" in run_python(*command, "-N", "9").stderr
    assert run_python(*command).returncode == 1
