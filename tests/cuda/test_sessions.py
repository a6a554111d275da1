"""Whole sessions on a card give the CPU's bits: tokens, logits, log-probabilities, caches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fake_cuda
import numpy as np
import pytest
from fake_driver import Fake
from gguf_files import model_file
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import Llama
from pyllama2c._ffi import ffi, lib
from pyllama2c.generation.sampling import new_sampler

pytestmark = [
    pytest.mark.skipif(not fake_cuda.possible(), reason=fake_cuda.NEEDS),
    pytest.mark.usefixtures("fake"),
]

SHAPE = Shape(dim=48, hidden_dim=72, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300)
EVEN = Shape(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=1, vocab_size=300, tied=False)
MIXED = {"embedding": "F16", "wq": "Q4_0", "wv": "BF16", "w1": "Q8_0", "w2": "Q4_1", "w3": "Q4_1"}
UNLIKE = {"w1": "F16", "w3": "Q8_0"}  # which no decode kernel takes: all goes a kernel a phase
HALVES = dict.fromkeys(["embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "classifier"], "F16")
GROUPED = Shape(dim=48, hidden_dim=72, vocab_size=300, group_size=8)


def v0(shape: Shape) -> bytes:
    return TinyLlama.random(shape).v0()


# name: file, dtype, kv_dtype
MODELS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "float32": (lambda: v0(SHAPE), "auto", "float32"),
    "float32, float16 cache": (lambda: v0(SHAPE), "auto", "float16"),
    "int8": (lambda: v0(EVEN), "int8", "float32"),
    "int4": (lambda: v0(EVEN), "int4", "float16"),
    "int8 in groups of 8": (lambda: TinyLlama.random(GROUPED).v2(), "auto", "float32"),
    "mixed": (lambda: model_file(TinyLlama.random(EVEN), MIXED).build(), "auto", "float32"),
    "gate unlike up": (
        lambda: model_file(TinyLlama.random(EVEN), UNLIKE).build(),
        "auto",
        "float16",
    ),
    "float16": (lambda: model_file(TinyLlama.random(EVEN), HALVES).build(), "auto", "float32"),
}


class Pair(NamedTuple):
    cpu: Llama
    card: Llama
    prompts: random.Random

    def prompt(self, most: int = 12) -> list[int]:
        return [1, *(self.prompts.randrange(3, 300) for _ in range(self.prompts.randrange(most)))]


def open_pair(folder: Path, name: str, **options: Any) -> Pair:
    make, dtype, kv_dtype = MODELS[name]
    image = make()
    path = folder / ("model.gguf" if image[:4] == b"GGUF" else "model.bin")
    path.write_bytes(image)
    tokenizer = folder / "tokenizer.bin"
    tokenizer.write_bytes(tokenizer_file())
    options = {"dtype": dtype, "kv_dtype": kv_dtype, "speculative": False} | options
    both = (Llama(path, tokenizer, device=device, **options) for device in ("cpu", "cuda"))
    return Pair(*both, random.Random(name))


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    opened = open_pair(tmp_path, request.param)
    yield opened
    opened.cpu.close()
    opened.card.close()


def settings(rng: random.Random) -> dict[str, Any]:
    return {
        "temperature": rng.choice([0.0, 0.3, 1.0, 1.5]),
        "top_p": rng.choice([0.0, 0.5, 0.9, 1.0]),
        "top_k": rng.choice([0, 0, 1, 5, 40]),
        "min_p": rng.choice([0.0, 0.0, 0.05]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.3]),
        "seed": rng.randrange(1, 2**32),
    }


def same_bits(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


def test_logits_of_few_and_many_rows(pair: Pair) -> None:
    for n in (1, 8, 9, 40):
        tokens = [pair.prompts.randrange(300) for _ in range(n)]
        assert same_bits(pair.cpu.logits(tokens), pair.card.logits(tokens)), n


def test_stories_with_every_setting(pair: Pair) -> None:
    for _ in range(6):
        prompt, options = pair.prompt(), settings(pair.prompts) | {"max_tokens": 4}
        one, two = (llama.generate(prompt, **options) for llama in pair[:2])
        assert one.read() == two.read(), (prompt, options)
        assert one.tokens == two.tokens and one.rng_state == two.rng_state


def test_several_tokens_a_launch(fake: Fake, tmp_path: Path) -> None:
    pair = open_pair(tmp_path, "int8")
    pair.card.generate([1, 5], seed=2, max_tokens=1).read()
    options: dict[str, Any] = {"seed": 2, "max_tokens": 20, "stop_tokens": ()}
    expected = pair.cpu.generate([1, 5, 7], **options)
    expected.read()
    before = fake.count("launches")
    story = pair.card.generate([1, 5, 7], **options)
    story.read()
    assert fake.count("launches") - before <= 4
    assert story.tokens == expected.tokens and story.rng_state == expected.rng_state
    # a token that ends the story ends the launch as well, and what was computed stays cached
    last = story.tokens[4]
    stopped = pair.card.generate([1, 5, 7], **options | {"stop_tokens": [last]})
    stopped.read()
    assert stopped.tokens == expected.tokens[: expected.tokens.index(last)]
    assert stopped.finish_reason == "stop"


def test_choices_that_the_card_leaves_to_the_host(tmp_path: Path) -> None:
    """More candidates than it sorts."""
    image = TinyLlama.random(Shape(dim=32, hidden_dim=32, n_layers=1, vocab_size=3000)).v0()
    with Llama.from_buffer(image) as cpu, Llama.from_buffer(image, device="cuda") as card:
        tokens = []
        for llama in (cpu, card):
            sampler = new_sampler(
                temperature=1.0, top_p=0.99, top_k=0, min_p=0, repetition_penalty=1, seed=9
            )
            history = ffi.new("int32_t[]", [1, 5, *[0] * 12])
            with llama._engine.sessions.lent() as session:
                session.feed([1], 0, want_logits=0)
                ready: list[tuple[int, int]] = []
                while len(ready) < 8:
                    ready += session.decode(
                        sampler, history, 2 + len(ready), 4, ffi.new("int32_t[]", 0)
                    )
            tokens.append(ready[:8])
        assert tokens[0] == tokens[1]


def test_batches(pair: Pair) -> None:
    prompts = [pair.prompt(20) for _ in range(5)]
    options: dict[str, Any] = {"max_tokens": 4, "seed": 5, "temperature": 1.0, "max_batch": 4}
    one, two = (list(llama.generate_batch(prompts, in_order=True, **options)) for llama in pair[:2])
    assert [story.tokens for story in one] == [story.tokens for story in two]


def test_scores(pair: Pair) -> None:
    texts = [[1, *(pair.prompts.randrange(300) for _ in range(n))] for n in (1, 7, 30)]
    one, two = (llama.score_batch(texts) for llama in pair[:2])
    assert [s.logprobs for s in one] == [s.logprobs for s in two]


def test_a_saved_prompt_has_the_same_bytes_and_is_read_back(pair: Pair, tmp_path: Path) -> None:
    prompt = [1, *(pair.prompts.randrange(3, 300) for _ in range(20))]
    paths = [tmp_path / name for name in ("cpu", "card")]
    for llama, path in zip(pair[:2], paths, strict=True):
        llama.save_cache(path, prompt)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    expected = pair.cpu.generate([*prompt, 9], seed=3, max_tokens=3).read()
    pair.card.save_cache(tmp_path / "other", [1, 2, 3])  # its session forgets the prompt
    pair.card.load_cache(paths[0])
    story = pair.card.generate([*prompt, 9], seed=3, max_tokens=3)
    assert story.read() == expected and story.stats.cached_tokens == len(prompt)


def test_a_processor_sees_and_changes_logits(tmp_path: Path) -> None:
    pair = open_pair(tmp_path, "float32")
    seen: dict[str, list[Any]] = {"cpu": [], "cuda:0": []}
    stories = []
    for llama in pair[:2]:

        def forbid(tokens: list[int], logits: Any, seen: Any = seen[llama.device]) -> None:
            seen.append(logits.copy())
            logits[::2] = -np.inf

        story = llama.generate([1, 7], seed=4, max_tokens=4, logits_processor=forbid)
        story.read()
        stories.append(story.tokens)
    assert stories[0] == stories[1] and all(token % 2 for token in stories[0])
    assert same_bits(seen["cpu"], seen["cuda:0"])


def test_biases_penalties_and_log_probabilities(tmp_path: Path) -> None:
    """Of one story, of one with drafts, and of a batch."""
    for speculative in (False, True):
        pair = open_pair(tmp_path, "float32", speculative=speculative)
        for _ in range(3):
            prompt, options = pair.prompt(), settings(pair.prompts) | {"max_tokens": 5}
            options |= {"logprobs": pair.prompts.choice([None, 0, 6]), "presence_penalty": 0.7}
            options |= {"frequency_penalty": -0.2, "logit_bias": {5: 2.0, 9: -math.inf}}
            one, two = (llama.generate(prompt, **options) for llama in pair[:2])
            assert one.read() == two.read() and one.tokens == two.tokens
            assert one.logprobs == two.logprobs
            options |= {"seed": 3, "max_batch": 4}
            one, two = (list(llama.generate_batch([prompt], **options)) for llama in pair[:2])
            assert [s.tokens for s in one] == [s.tokens for s in two]
            assert [s.logprobs for s in one] == [s.logprobs for s in two]


def test_drafts_on_a_card(tmp_path: Path) -> None:
    pair = open_pair(tmp_path, "float32", speculative=True)
    drafted = 0
    for _ in range(3):
        prompt, options = pair.prompt(), settings(pair.prompts) | {"max_tokens": 6}
        one, two = (llama.generate(prompt, **options) for llama in pair[:2])
        assert one.read() == two.read() and one.tokens == two.tokens
        assert one.stats.accepted_tokens == two.stats.accepted_tokens
        drafted += two.stats.drafted_tokens
    assert drafted > 0


def test_a_draft_whose_file_is_gone_ends_drafting_not_the_story(tmp_path: Path) -> None:
    pair = open_pair(tmp_path, "float32", speculative=True)
    expected = pair.cpu.generate([1, 5], seed=2, max_tokens=3).read()
    (tmp_path / "model.bin").unlink()
    story = pair.card.generate([1, 5], seed=2, max_tokens=3)
    assert story.read() == expected and story.stats.drafted_tokens == 0


def test_many_stories_at_a_time(tmp_path: Path) -> None:
    """More than the CPU takes."""
    pair = open_pair(tmp_path, "float32")
    prompts = [[1, 3 + i] for i in range(260)]
    told = list(pair.card.generate_batch(prompts, max_batch=260, max_tokens=1, temperature=0))
    assert sorted(story.prompt_index for story in told) == list(range(260))
    for story in told[:5]:
        alone = pair.cpu.generate(prompts[story.prompt_index], max_tokens=1, temperature=0)
        assert alone.read() is not None and alone.tokens == story.tokens
    with pytest.raises(ValueError, match="max_batch is 1025; it must be 1 to 1024"):
        next(pair.card.generate_batch(prompts, max_batch=1025))


def test_a_cancelled_story_leaves_the_model_usable(tmp_path: Path) -> None:
    pair = open_pair(tmp_path, "float32")
    story = pair.card.generate([1, 5, 6], seed=3)
    next(story)
    story.cancel()
    story.read()
    assert story.finish_reason == "cancelled"
    expected = pair.cpu.generate([1, 5], seed=2, max_tokens=3).read()
    assert pair.card.generate([1, 5], seed=2, max_tokens=3).read() == expected


def test_a_buffer_on_a_card(tmp_path: Path) -> None:
    image = v0(SHAPE)
    with Llama.from_buffer(image) as cpu, Llama.from_buffer(image, device="cuda:0") as card:
        assert same_bits(cpu.logits([1, 5, 7]), card.logits([1, 5, 7]))
        assert card.device == "cuda:0" and cpu.device == "cpu"


def test_what_file_held_16_bits_keeps_them(tmp_path: Path) -> None:
    floats, halves = (open_pair(tmp_path, name) for name in ("mixed", "float16"))
    for pair in (floats, halves):
        bound = lib.l2c_model_device_bytes(pair.cpu._engine.model)
        assert lib.l2c_model_device_bytes(pair.card._engine.model) <= bound
    taken = lib.l2c_model_device_bytes(halves.card._engine.model)
    assert 2 * halves.card.n_parameters < taken < 2.6 * halves.card.n_parameters


@pytest.mark.parametrize("card", [75, 86, 90])
def test_every_kind_of_card(fake: Fake, card: int, tmp_path: Path) -> None:
    """Their blocks have different shared memory: 64 KiB, 99 and 227."""
    fake.configure(f"cards={card},seed={card}")
    pair = open_pair(tmp_path, "int4")
    expected = pair.cpu.generate([1, 5, 9], seed=8, max_tokens=3).read()
    assert pair.card.generate([1, 5, 9], seed=8, max_tokens=3).read() == expected
    pair.card.close()


def test_work_that_is_done_at_once_comes_to_the_same(fake: Fake, tmp_path: Path) -> None:
    fake.configure("eager=1")
    pair = open_pair(tmp_path, "mixed")
    expected = pair.cpu.generate([1, 5, 9], seed=8, max_tokens=3).read()
    assert pair.card.generate([1, 5, 9], seed=8, max_tokens=3).read() == expected
