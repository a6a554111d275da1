"""Batches: every story is the one it would be alone; failures stay alone; files are completed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllama2c import Completion, ContextLengthError, Llama, NonFiniteLogitsError, TokenizerError
from pyllama2c._ffi import ffi, lib
from pyllama2c.generation.request import make_request
from pyllama2c.generation.text import StoryText


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
        for place, story in zip(itertools.product(range(6), range(4)), stories, strict=True):
            assert (story.prompt_index, story.choice) == place
            prompt = prompts[story.prompt_index]
            assert story.seed == 7 + 4 * story.prompt_index + story.choice
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
            == alone(llama, ["ab", "cd"][story.prompt_index], seed=story.seed, stop=["a", "b"])[0]
        )


def test_stops_that_can_be_iterated_once(llama: Llama) -> None:
    """They are checked before the first story, and are every story's."""

    def stories(**stop: Any) -> list[Completion]:
        return list(llama.generate_batch(["ab", "cd"], n=2, seed=3, in_order=True, **stop))

    ids = [stories()[0].tokens[3], 1]
    once, again = (i for i in ids), list(ids)
    assert stories(stop_tokens=once) == stories(stop_tokens=again) != stories()
    assert stories(stop=(each for each in "e3")) == stories(stop=["e", "3"]) != stories()
    assert stories(stop=[iter("e3"), None]) == stories(stop=[["e", "3"], None])


def test_rows_are_refilled_at_once(llama: Llama) -> None:
    """Short stories do not wait for a long one."""
    lengths = [60, *[2] * 20]
    ended = [
        story.prompt_index
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

    stories = list(
        llama.generate_batch(
            ["ab", [1, 999], [5] * 200, "cd", "ab", [], "ab"],
            seed=[1, 2, 3, 4, 5, 6, 2**64 - 1],
            logits_processor=[None, None, None, bad, None, None, None],
            max_tokens=9,
            in_order=True,
        )
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
        ({"prompts": iter("a"), "top_k": [1]}, ValueError, "top_k has a value for each prompt"),
        ({"prompts": ["a"], "top_q": 1}, TypeError, "no parameter top_q"),
    ],
)
def test_wrong_arguments(llama: Llama, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        llama.generate_batch(**arguments)
    assert list(llama.generate_batch([], in_order=True)) == []


def test_left_half_way(llama: Llama) -> None:
    stories = iter(llama.generate_batch(["ab"], n=30, max_batch=4, seed=1))
    next(stories)
    del stories
    assert len(list(llama.generate_batch(["ab"], n=3, seed=1))) == 3


@pytest.mark.parametrize("in_order", [False, True])
def test_prompts_without_an_end(llama: Llama, in_order: bool) -> None:
    taken = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield "ab" * (taken % 7)

    stories = llama.generate_batch(
        prompts(), n=2, seed=3, max_tokens=9, max_batch=4, in_order=in_order
    )
    assert taken == 0
    for told_before, story in enumerate(itertools.islice(stories, 40)):
        assert (story.prompt_index, story.choice) == divmod(told_before, 2) or not in_order
        assert told(story) == alone(
            llama, "ab" * ((story.prompt_index + 1) % 7), seed=story.seed, max_tokens=9
        )
        # as many as there is room for, and what ended and is not yielded yet
        assert taken <= (told_before + 2 * 4) / 2 + 1
    del stories
    assert told(next(llama.generate_batch(["ab"], seed=1))) == alone(llama, "ab", seed=1)


def test_prompts_that_end_with_an_error(llama: Llama) -> None:
    def prompts() -> Iterator[str]:
        yield "ab"
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        list(llama.generate_batch(prompts(), seed=1, max_batch=1))
    assert told(next(llama.generate_batch(["ab"], seed=1))) == alone(llama, "ab", seed=1)


def test_a_longer_story_than_the_first_ones(llama: Llama) -> None:
    prompts = [[1, *[5 + i % 9] * length] for i, length in enumerate((2, 1, 80, 3, 5, 94, 1, 93))]
    limits = [4, 9, 5, 3, 3, 2, 90, 2]
    stories = llama.generate_batch(prompts, seed=2, max_tokens=limits, max_batch=2)
    numbers = []
    for story in stories:
        i = story.prompt_index
        numbers.append(i)
        assert told(story) == alone(llama, prompts[i], seed=story.seed, max_tokens=limits[i])
    assert sorted(numbers) == list(range(8)) and set(numbers[:2]) == {0, 1}


def test_a_processor_that_fails_ends_its_story_only(llama: Llama) -> None:
    def forbid(tokens: list[int], logits: np.ndarray) -> None:
        logits[::2] = -np.inf

    def replace(tokens: list[int], logits: np.ndarray) -> np.ndarray:
        return -logits

    def late(tokens: list[int], logits: np.ndarray) -> None:
        if len(tokens) > 7:
            raise RuntimeError("enough")

    def wrong_shape(tokens: list[int], logits: np.ndarray) -> np.ndarray:
        return logits[:-1]

    processors = [None, late, forbid, wrong_shape, replace, None, late]
    options: dict[str, Any] = {"max_tokens": 20, "repetition_penalty": 1.2}
    stories = llama.generate_batch(
        ["ab"] * 7, seed=4, logits_processor=processors, max_batch=3, in_order=True, **options
    )
    for i, story in enumerate(stories):
        processor = processors[i]
        if processor is late:
            assert str(story.error) == "enough" and len(story.prompt_tokens + story.tokens) == 8
            assert story.finish_reason == "error"
            whole = alone(llama, "ab", seed=story.seed, **options)[1]
            assert story.tokens == whole[: len(story.tokens)]
        elif processor is wrong_shape:
            assert isinstance(story.error, ValueError) and story.tokens == []
        else:
            expected = alone(llama, "ab", seed=story.seed, logits_processor=processor, **options)
            assert told(story) == expected


def test_what_a_processor_is_given(llama: Llama) -> None:
    """It is the processor's own: to change, and to keep when the memory of the batch is gone."""
    kept = []

    def keep(tokens: list[int], logits: np.ndarray) -> None:
        kept.append((tokens, logits))

    (story,) = llama.generate_batch(["ab"], seed=1, max_tokens=5, logits_processor=keep)
    assert [tokens for tokens, _ in kept] == [
        story.prompt_tokens + story.tokens[:i] for i in range(5)
    ]
    expected = llama.logits(story.prompt_tokens + story.tokens)[-6:-1]
    assert np.array_equal(np.stack([logits for _, logits in kept]), expected)


def test_interrupted_in_a_processor(llama: Llama) -> None:
    def interrupt(tokens: list[int], logits: np.ndarray) -> None:
        raise KeyboardInterrupt

    stories = llama.generate_batch(["ab", "cd"], seed=1, logits_processor=[None, interrupt])
    with pytest.raises(KeyboardInterrupt):
        next(stories)
    assert list(stories) == []
    assert told(next(llama.generate_batch(["ab"], seed=1))) == alone(llama, "ab", seed=1)


def _processor(kind: int) -> Any:
    def change(tokens: list[int], logits: np.ndarray) -> np.ndarray | None:
        logits[(len(tokens) * kind) % 300] += 3
        if kind == 3 and len(tokens) > 9:
            raise RuntimeError
        if kind == 4 and len(tokens) > 9:
            logits[7] = np.nan
        return logits * 0.5 if kind == 2 else None

    return change if kind else None


PARTS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.one_of(
        st.integers(1, 99).map(lambda n: [1, *range(10, 9 + n)]),
        st.lists(st.integers(0, 301), max_size=20),
        st.text("ab é", max_size=12),
    ),
    "seed": st.integers(0, 3),
    "max_tokens": st.one_of(st.none(), st.integers(0, 30)),
    "temperature": st.sampled_from([0.0, 0.7, 1.0]),
    "repetition_penalty": st.sampled_from([1.0, 1.3]),
    "stop": st.lists(st.sampled_from(["a", "b", "ab", "é", " "]), max_size=2),
    "stop_tokens": st.one_of(st.none(), st.lists(st.integers(0, 400), max_size=30)),
    "logits_processor": st.sampled_from([0, 0, 0, 1, 2, 3, 4]).map(_processor),
}


@given(st.lists(st.fixed_dictionaries(PARTS), max_size=8), st.integers(1, 6), st.integers(1, 2))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_loads(llama: Llama, asked: list[dict[str, Any]], max_batch: int, n: int) -> None:
    """Whatever is asked together is told as each story alone, and fails as it does alone."""
    columns: dict[str, Any] = {name: [story[name] for story in asked] for name in PARTS}
    prompts = columns.pop("prompt")
    given = list(llama.generate_batch(prompts, n=n, max_batch=max_batch, in_order=True, **columns))
    places = [(story.prompt_index, story.choice) for story in given]
    assert places == list(itertools.product(range(len(asked)), range(n)))
    for story in given:
        options = dict(asked[story.prompt_index])
        prompt = options.pop("prompt")
        options["seed"] += story.choice
        failure, expected = None, None
        try:
            expected = alone(llama, prompt, **options)
        except Exception as error:
            failure = error
        if failure is None:
            assert told(story) == expected
        else:
            assert repr(story.error) == repr(failure)


@given(st.lists(st.integers(0, 299), max_size=30), st.sampled_from([1, 5]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_of_many_tokens_at_once(llama: Llama, tokens: list[int], last: int) -> None:
    one_by_one, at_once = (StoryText(llama.tokenizer, [last], []) for _ in range(2))
    expected = "".join(map(one_by_one.feed, tokens)) + one_by_one.rest()
    assert at_once.feed_all(tokens) + at_once.rest() == expected


def test_logprobs_are_those_of_score(llama: Llama, isa: str) -> None:
    """The events' are the model's own, whatever mask and temperature the token was chosen with."""
    engine = llama._engine
    out, err = ffi.new("l2c_batch **"), ffi.new("l2c_error *")
    arguments = (engine.model, engine.pool, 3, 96, lib.L2C_KV_FLOAT32)
    assert lib.l2c_batch_create(*arguments, engine.session_options.isa, out, err) == lib.L2C_OK
    batch = ffi.gc(out[0], lib.l2c_batch_free)
    request = make_request([1, 9, 5], 96, seed=3, temperature=1.5, repetition_penalty=1.4)
    prompt = ffi.new("int32_t[]", request.prompt_tokens)
    asked = ffi.new("l2c_request *", {"prompt": prompt, "n_prompt": 3, "sampler": request.sampler})
    asked.max_tokens, asked.tell, asked.n_top = 40, lib.L2C_TELL_LOGPROBS, 64
    story = ffi.new("int64_t *")
    assert lib.l2c_batch_add(batch, asked, story, err) == lib.L2C_OK
    mask = ffi.new("uint32_t[]", [0x0F0F0F0F] * 10)
    chosen, top = [], []
    events, n = ffi.new("l2c_event **"), ffi.new("size_t *")
    while lib.l2c_batch_stories(batch):
        assert lib.l2c_batch_mask(batch, story[0], mask, err) == lib.L2C_OK
        assert lib.l2c_batch_step(batch, events, n, err) == lib.L2C_OK
        for event in (events[0][i] for i in range(n[0])):
            if event.kind == lib.L2C_EVENT_TOKEN:
                chosen.append((event.chosen.token, event.chosen.logprob))
                top.append([(t.token, t.logprob) for t in event.top[0 : event.n_top]])
    tokens = [token for token, _ in chosen]
    assert len(tokens) == 40 and all(token % 8 < 4 for token in tokens)
    with Llama(llama.path, isa=isa) as other:
        score = other.score([*request.prompt_tokens, *tokens])
        logits = other.logits([*request.prompt_tokens, *tokens])[2:-1]
    assert score.logprobs[3:] == [logprob for _, logprob in chosen]
    for row, likeliest in zip(logits.astype(np.float64), top, strict=True):
        order = np.lexsort((np.arange(300), -row))[:64]
        assert [token for token, _ in likeliest] == order.tolist()
        expected = row[order] - row.max() - math.log(np.exp(row - row.max()).sum())
        np.testing.assert_allclose([p for _, p in likeliest], expected, rtol=0, atol=3e-7)


def test_out_of_memory(tiny_path: Path) -> None:
    code = """if True:
        import resource, sys
        from pyllama2c import Llama, OutOfMemoryError
        llama = Llama(sys.argv[1], threads=1)
        expected = [s.tokens for s in llama.generate_batch(["ab"] * 3, seed=1, in_order=True)]
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), hard))
        try:
            next(llama.generate_batch(["ab"] * 256, max_batch=256))
        except OutOfMemoryError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        stories = llama.generate_batch(["ab"] * 3, seed=1, in_order=True)
        assert [s.tokens for s in stories] == expected
    """
    done = run_python("-c", code, str(tiny_path))
    assert done.returncode == 0 and done.stdout.startswith("out of memory for a"), done.stderr


def test_jsonl_is_completed(tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ["-m", "pyllama2c", str(tiny_path), "--jsonl", str(out), "-i", "ab", "-n", "30"]
    first = run_python(*command, "-N", "5", "-s", "11")
    assert first.returncode == 0 and "5 stories" in first.stderr, first.stderr
    assert first.stderr.rstrip().splitlines()[-1].startswith("achieved tok/s: ")
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])  # as a kill in the middle of a line leaves it
    again = run_python(*command, "-N", "9")
    assert again.returncode == 0 and "5 stories, 4 already there" in again.stderr, again.stderr
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
