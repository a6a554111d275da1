"""Generation: what the iterator yields, when it ends, and what it then knows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import ClosedError, ContextLengthError, Generation, Llama, TokenizerError
from pyllama2c.generation.text import StopFinder


def scripted(tokenizer_path: Path, text: bytes | list[int]) -> tuple[Llama, object]:
    """A model with a logits processor that makes it say exactly these tokens."""
    llama = Llama.from_buffer(TinyLlama.random(Shape()).v0(), tokenizer_path)
    script = [3 + b for b in text] if isinstance(text, bytes) else list(text)

    def say(tokens: list[int], logits: np.ndarray) -> None:
        said = len(tokens) - 1  # the prompt is BOS alone
        logits[:] = -np.inf
        logits[script[said] if said < len(script) else 2] = 0.0

    return llama, say


def test_a_seed_is_a_story(llama: Llama) -> None:
    one, two = (llama.generate("ab", seed=5, max_tokens=20) for _ in range(2))
    assert one.read() == two.read() and one.tokens == two.tokens and one.seed == 5
    assert llama.generate("ab", seed=6, max_tokens=20).read() != one.read()
    drawn = llama.generate("ab", max_tokens=20)
    again = llama.generate("ab", max_tokens=20, seed=drawn.seed)
    assert drawn.read() == again.read()
    assert drawn.rng_state == again.rng_state != drawn.seed


def test_nothing_runs_before_iteration(llama: Llama) -> None:
    story = llama.generate("ab", max_tokens=4, seed=1)
    assert isinstance(story, Generation) and iter(story) is story
    assert story.tokens == [] and story.finish_reason is None
    assert story.stats.tokens == 0 and story.stats.tokens_per_second == 0
    pieces = list(story)
    assert story.read() == "".join(pieces)
    assert list(story) == []


def test_text_is_what_the_tokens_decode_to(llama: Llama) -> None:
    for seed in range(1, 8):
        story = llama.generate("ab", seed=seed, max_tokens=30)
        text = story.read()
        whole = llama.tokenizer.decode(story.prompt_tokens + story.tokens)
        assert whole == "ab" + text


def test_max_tokens_and_the_context(llama: Llama, tokenizer_path: Path) -> None:
    assert len(llama.generate("ab", max_tokens=7, seed=3).read()) > 0
    prompt = [1] + [5] * 9
    quiet = {"logits_processor": lambda _, logits: logits.__setitem__(slice(1, 3), -np.inf)}
    for max_tokens, expected in ((0, 0), (1, 1), (7, 7), (87, 87), (88, 87), (None, 87)):
        story = llama.generate(prompt, max_tokens=max_tokens, seed=3, **quiet)
        story.read()
        assert len(story.tokens) == expected and story.finish_reason == "length"
    full = llama.generate([5] * 96, seed=1, **quiet)
    full.read()
    assert len(full.tokens) == 1
    with pytest.raises(ContextLengthError, match="prompt has 97 tokens; the model's context is 96"):
        llama.generate([5] * 97)
    with pytest.raises(ValueError, match="max_tokens is -1"):
        llama.generate("a", max_tokens=-1)


@pytest.mark.parametrize("stop_token", [1, 2])
def test_bos_and_eos_end_a_story(tokenizer_path: Path, stop_token: int) -> None:
    llama, say = scripted(tokenizer_path, [260, 261, stop_token, 262])
    story = llama.generate(logits_processor=say, temperature=0)
    assert story.read() == "ab"
    assert story.tokens == [260, 261] and story.finish_reason == "stop"
    assert story.stats.tokens == 2 and story.stats.prompt_tokens == 1


def test_the_space_after_bos_is_dropped(tokenizer_path: Path) -> None:
    llama, say = scripted(tokenizer_path, [265, 265])  # " a" twice
    assert llama.generate(logits_processor=say, temperature=0).read() == "a a"


def test_characters_are_never_split(tokenizer_path: Path) -> None:
    text = "naïve 日本 🙂!"
    llama, say = scripted(tokenizer_path, text.encode())
    pieces = list(llama.generate(logits_processor=say, temperature=0))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) and all(pieces)
    assert "🙂" in pieces


def test_what_is_no_character_becomes_a_replacement(tokenizer_path: Path) -> None:
    for data in (b"a\xff", b"\x80a", b"a\xe6\x97b", b"\xf0\x9fa"):
        llama, say = scripted(tokenizer_path, data)
        read = llama.generate(logits_processor=say, temperature=0).read()
        assert read == data.decode("utf-8", "replace")


@pytest.mark.parametrize("stop", [[], ["never"]])
def test_stories_that_go_on_within_a_character(tokenizer_path: Path, stop: list[str]) -> None:
    """Half a character is in the tokens only; who goes on from them tells the whole of it."""
    text = "é日🙂!"
    data = text.encode()
    llama, say = scripted(tokenizer_path, data)
    options = {"logits_processor": say, "temperature": 0, "stop": stop}
    for n in range(1, len(data)):
        first = llama.generate([1], max_tokens=n, **options)
        assert first.read() == data[:n].decode("utf-8", "ignore")
        assert first.tokens == [3 + byte for byte in data[:n]]
        prompt = first.prompt_tokens + first.tokens
        assert first.read() + llama.generate(prompt, **options).read() == text
        (batched,) = llama.generate_batch([prompt], **options)
        assert first.read() + batched.text == text


def test_a_control_token_ends_a_character(tokenizer_path: Path) -> None:
    llama, say = scripted(tokenizer_path, "日日".encode())
    prompt = [1, 3 + 0xE6, 3 + 0x97, 3 + 0xA5, 3 + 0xE6, 2]  # the next byte is the sixth, 0xA5
    story = llama.generate(prompt, logits_processor=say, temperature=0)
    assert (story.read(), story.tokens) == ("\ufffd", [3 + 0xA5])


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("cd", "ab", "stop"),
        (["e", "d"], "abc", "stop"),
        (["abcdex", "bcd"], "a", "stop"),
        ("x", "abcde.", "stop"),
        (["e.x", "."], "abcde", "stop"),
        ((), "abcde.", "stop"),
    ],
)
def test_stop_strings(tokenizer_path: Path, stop: list[str], text: str, reason: str) -> None:
    llama, say = scripted(tokenizer_path, b"abcde.")
    story = llama.generate(logits_processor=say, temperature=0, stop=stop)
    assert (story.read(), story.finish_reason) == (text, reason)
    with pytest.raises(ValueError, match="stop string is empty"):
        llama.generate(stop=["a", ""])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abc", max_size=4), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_finder_equals_a_search_of_the_whole(pieces: list[str], stop: list[str]) -> None:
    finder, out = StopFinder(stop), ""
    for piece in pieces:
        out += finder.feed(piece)
        if finder.found:
            break
    out += "" if finder.found else finder.rest()
    text = "".join(pieces)
    # The stop that is complete first ends the text; of those that end there, the earliest start.
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)]
    if not ends:
        assert out == text and not finder.found
    else:
        assert finder.found and text.startswith(out)
        assert not any(s in out for s in stop)
        assert any(text[len(out) :].startswith(s) for s in stop)


def test_logits_processor(llama: Llama) -> None:
    seen: list[tuple[list[int], tuple[int, ...]]] = []

    def only_a(tokens: list[int], logits: np.ndarray) -> np.ndarray:
        seen.append((list(tokens), logits.shape))
        assert logits.dtype == np.float32
        out = np.full_like(logits, -np.inf)
        out[260] = 0
        return out

    story = llama.generate([1, 5], max_tokens=3, logits_processor=only_a)
    assert story.read() == "aaa"
    assert seen == [([1, 5] + [260] * n, (300,)) for n in range(3)]

    def broken(tokens: list[int], logits: np.ndarray) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        llama.generate("a", logits_processor=broken).read()
    assert llama.generate("a", max_tokens=3, seed=1).read() is not None


def test_repetition_penalty_sees_prompt_and_story(llama: Llama) -> None:
    plain = llama.generate("ab", temperature=0, max_tokens=40)
    penalized = llama.generate("ab", temperature=0, max_tokens=40, repetition_penalty=1e6)
    plain.read(), penalized.read()
    assert len(set(penalized.tokens)) == len(penalized.tokens)
    assert not set(penalized.tokens) & set(penalized.prompt_tokens)


def test_closing_and_cancelling(llama: Llama) -> None:
    story = llama.generate("ab", seed=1, max_tokens=50)
    next(story)
    story.close()
    assert story.finish_reason == "cancelled" and list(story) == []
    unborn = llama.generate("ab")
    unborn.close()
    assert unborn.finish_reason == "cancelled" and unborn.read() == ""
    with llama.generate("ab", seed=1, max_tokens=50) as held:
        next(held)
        held.cancel()
    assert held.finish_reason == "cancelled" and len(held.tokens) <= 2


def test_closing_from_within_a_logits_processor(llama: Llama) -> None:
    """It used to wait for the step that it was called from."""
    stories: list[Generation] = []

    def close(tokens: list[int], logits: np.ndarray) -> None:
        logits[1:3] = -np.inf
        stories[0].close()

    stories.append(llama.generate("ab", seed=1, logits_processor=close))
    stories[0].read()
    assert stories[0].finish_reason == "cancelled" and len(stories[0].tokens) == 1
    assert not llama._engine.sessions.in_use


def test_stats(llama: Llama) -> None:
    story = llama.generate([1, 5, 6], seed=4, max_tokens=10)
    story.read()
    stats = story.stats
    assert stats.prompt_tokens == 3 and stats.tokens == len(story.tokens)
    assert stats.time_to_first_token > 0 and stats.decode_seconds > 0
    assert math.isclose(
        stats.prefill_tokens_per_second, 3 / stats.time_to_first_token, rel_tol=1e-9
    )
    assert stats.tokens_per_second > 0


def test_prompts_as_ids(llama: Llama) -> None:
    ids = llama.tokenizer.encode("abc", bos=True)
    assert llama.generate(ids, seed=2).read() == llama.generate("abc", seed=2).read()
    for wrong in ([300], [-1], [2**40]):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            llama.generate(wrong)
    with pytest.raises(ValueError, match="no tokens"):
        llama.generate([])


def test_logits_and_score(llama: Llama) -> None:
    ids = llama.tokenizer.encode("abc de", bos=True)
    logits = llama.logits(ids)
    assert logits.shape == (len(ids), 300) and logits.dtype == np.float32
    score = llama.score("abc de")
    assert score.tokens == ids and score.logprobs[0] is None
    logits = logits.astype(np.float64)
    truth = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    expected = [truth[i, t] for i, t in enumerate(ids[1:])]
    np.testing.assert_allclose(score.logprobs[1:], expected, rtol=0, atol=3e-7)
    assert score.total == pytest.approx(sum(expected))
    assert score.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)))
    assert score.bits_per_byte == pytest.approx(-sum(expected) / math.log(2) / 6)
    assert llama.score(ids) == score
    long = llama.score([5] * 96)  # more than one forward call
    assert len(long.logprobs) == 96 and long.logprobs[70] is not None
    assert llama.score("").total == 0 and math.isnan(llama.score("").perplexity)
    assert llama.logits([]).shape == (0, 300)
    assert len(llama.score([5] * 97).logprobs) == 97  # the last token is not fed
    with pytest.raises(ContextLengthError, match="97 tokens; the model's context is 96"):
        llama.logits([5] * 97)
    for call in (llama.logits, llama.score):
        with pytest.raises(TokenizerError):
            call([300])


def test_tokenizers_are_found(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(TinyLlama.random(Shape()).v0())
    with Llama(path) as alone:
        assert alone.logits([1]).shape == (1, 300)
        assert math.isnan(alone.score([1, 5, 6]).bits_per_byte)
        assert alone.score([1, 5, 6]).total < 0
        with pytest.raises(FileNotFoundError, match=r"no tokenizer for its 300 pieces.*-z"):
            alone.generate("a")
    other = tmp_path / "other.bin"
    other.write_bytes(tokenizer_file(301))
    with pytest.raises(TokenizerError, match=r"other\.bin: file holds 301 pieces"):
        Llama(path, other)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file())
    with Llama(path) as beside:
        assert beside.tokenizer.vocab_size == 300


def test_use_after_close(tiny_path: Path) -> None:
    with Llama(tiny_path) as llama:
        story = llama.generate("ab", seed=1, max_tokens=30)
        text = next(story)
    assert story.read().startswith(text)  # what is being told may end
    llama.close()
    for use in (lambda: llama.generate("a"), lambda: llama.logits([1]), lambda: llama.tokenizer):
        with pytest.raises(ClosedError, match="closed"):
            use()


@pytest.mark.parametrize("speculative", [True, False])
def test_stop_tokens(tiny_path: Path, speculative: bool) -> None:
    with Llama(tiny_path, speculative=speculative) as llama:
        options = {"seed": 5, "temperature": 3.0, "top_p": 1.0}  # so that BOS and EOS come up
        prompt = [1, 265]
        seen: list[int] = []
        for seed in range(40):
            options["seed"] = seed
            story = llama.generate(prompt, stop_tokens=[], **options)
            story.read()
            assert len(story.tokens) == 95 and story.finish_reason == "length"
            seen += story.tokens
            for ends in (None, [1, 2], [2], [265, 7]):
                stops = [i for i, t in enumerate(story.tokens) if t in (ends or [1, 2])]
                expected = story.tokens[: stops[0]] if stops else story.tokens
                cut = llama.generate(prompt, stop_tokens=ends, **options)
                cut.read()
                assert cut.tokens == expected
                assert cut.finish_reason == ("stop" if stops else "length")
                (batched,) = llama.generate_batch([prompt], stop_tokens=ends, **options)
                assert batched.tokens == expected
        assert {1, 2, 265} <= set(seen)
        each = llama.generate_batch(
            [prompt, prompt], stop_tokens=[[], [7]], in_order=True, **options
        )
        assert len(next(each).tokens) == 95


def test_score_batch(llama: Llama) -> None:
    """As one by one: texts that begin alike, that take several calls, that are one token."""
    rng = np.random.default_rng(4)
    common = rng.integers(3, 300, 70).tolist()
    texts = [common + rng.integers(3, 300, n).tolist() for n in (1, 5, 20, 27)]
    texts += [rng.integers(3, 300, n).tolist() for n in (1, 2, 3, 40, 97, 64, 65, 66)]
    texts += [common[:40], common, [], texts[0], "abc", *([5, i] for i in range(40))]
    scores = llama.score_batch(texts)
    for text, score in zip(texts, scores, strict=True):
        assert repr(score) == repr(llama.score(text))  # whose NaN do not equal themselves
        assert score.tokens == (llama.tokenizer.encode("abc", bos=True) if text == "abc" else text)
    fitting = [text for text in texts if 1 < len(text) <= 96 and text != "abc"]
    starts = [1 + i % len(text) for i, text in enumerate(fitting)]
    for text, start, score in zip(
        fitting, starts, llama.score_batch(fitting, starts=starts), strict=True
    ):
        logits = llama.logits(text).astype(np.float64)
        logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
        expected = [logits[i, t] for i, t in enumerate(text[1:])][start - 1 :]
        assert score.logprobs[:start] == [None] * start
        np.testing.assert_allclose(score.logprobs[start:], expected, rtol=0, atol=3e-7)
        assert score.total == pytest.approx(sum(expected))
        assert score.greedy == (logits.argmax(axis=1)[start - 1 : -1] == text[start:]).all()
        n_bytes = sum(len(llama.tokenizer.piece(token)) for token in text[start:])
        if n_bytes:
            assert score.bits_per_byte == pytest.approx(-sum(expected) / math.log(2) / n_bytes)
    assert llama.score_batch([]) == []


def test_greedy_text(llama: Llama) -> None:
    story = llama.generate([1, 265], temperature=0, max_tokens=20, stop_tokens=[])
    story.read()
    text = [1, 265, *story.tokens]
    other = [*text[:-1], text[-1] ^ 1]
    greedy, not_greedy, from_bos = llama.score_batch([text, other, text], starts=[2, 2, 1])
    assert greedy.greedy and not not_greedy.greedy
    assert from_bos.greedy == (int(llama.logits([1])[0].argmax()) == 265)


def logprobs_of(llama: Llama, window: list[int]) -> list[float]:
    logits = llama.logits(window[:-1]).astype(np.float64)
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return [logits[i, token] for i, token in enumerate(window[1:])]


@pytest.mark.parametrize("length", [97, 98, 145, 146, 147, 400])
@pytest.mark.parametrize("start", [1, 50, 96, 97, 98, 144, 399])
def test_texts_longer_than_the_context(llama: Llama, length: int, start: int) -> None:
    """Each token once, the first of a window behind 48 others, half a context of 96."""
    tokens = np.random.default_rng(length).integers(3, 300, length).tolist()
    if start >= length:
        pytest.skip("no such token")
    (score,) = llama.score_batch([tokens], starts=[start])
    expected: list[float | None] = [None] * start
    begin = 0 if start <= 96 else min(start - 48, length - 97)
    while len(expected) < length:
        values = logprobs_of(llama, tokens[begin : begin + 97])
        assert begin == 0 or len(expected) - begin >= 48
        expected += values[len(expected) - begin - 1 :]
        begin = len(expected) - 48
    assert len(score.logprobs) == length and score.logprobs[:start] == [None] * start
    np.testing.assert_allclose(score.logprobs[start:], expected[start:], rtol=0, atol=3e-7)
    assert score.total == pytest.approx(math.fsum(expected[start:]))


@pytest.mark.parametrize(
    ("texts", "starts", "message"),
    [
        ("abc", None, "texts is one text"),
        (["a", "b"], [1], "starts has 1 values for 2 texts"),
        (["a", [5, 6]], [1, 3], "text 1: start is 3; it must be 1 to 2"),
        ([[5, 6]], [0], "text 0: start is 0"),
    ],
)
def test_wrong_texts_to_score(llama: Llama, texts: list, starts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llama.score_batch(texts, starts=starts)
