"""The prompt cache: nothing computed twice, nothing changed; and its file, which is not trusted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny import Shape, TinyLlama

from pyllama2c import CacheFileError, Llama


def test_a_second_prompt_computes_the_rest(llama: Llama) -> None:
    fresh = Llama(llama.path)
    first = llama.generate("abc de abc de", seed=3, max_tokens=5)
    first.read()
    assert first.stats.cached_tokens == 0
    again = llama.generate("abc de abc de", seed=3, max_tokens=5)
    assert again.read() == first.read()
    # All but the last token, which is computed for its logits.
    assert again.stats.cached_tokens == again.stats.prompt_tokens - 1
    longer = first.prompt_tokens + first.tokens + [9, 8, 7]
    story = llama.generate(longer, seed=4, max_tokens=8)
    story.read()
    assert story.stats.cached_tokens == len(longer) - 4  # the last sampled token was not fed
    other = fresh.generate(longer, seed=4, max_tokens=8)
    assert other.read() == story.read() and other.tokens == story.tokens
    assert other.stats.cached_tokens == 0


def test_cached_or_not_is_the_same(llama: Llama) -> None:
    rng, base = random.Random(1), [1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    cached = 0
    for seed in range(1, 60):
        prompt = base[: rng.randrange(1, len(base))] + [rng.randrange(3, 300) for _ in range(3)]
        story = llama.generate(prompt, seed=seed, max_tokens=6)
        story.read()
        cached += story.stats.cached_tokens
        with Llama(llama.path) as fresh:
            alone = fresh.generate(prompt, seed=seed, max_tokens=6)
            alone.read()
        assert alone.tokens == story.tokens and alone.stats.cached_tokens == 0
    assert cached > 100


def test_saved_and_loaded(llama: Llama, tmp_path: Path) -> None:
    path = tmp_path / "prompt.cache"
    llama.save_cache(path, "abc de abc de")
    expected = llama.generate("abc de abc de ab", seed=5, max_tokens=9)
    expected.read()
    with Llama(llama.path) as other:
        tokens = other.load_cache(path)
        assert tokens == llama.tokenizer.encode("abc de abc de", bos=True)
        story = other.generate("abc de abc de ab", seed=5, max_tokens=9)
        assert story.read() == expected.read()
        assert story.stats.cached_tokens >= len(tokens) - 1
    assert [p.name for p in tmp_path.iterdir()] == ["prompt.cache"]


def test_hostile_files(llama: Llama, tmp_path: Path) -> None:
    path = tmp_path / "prompt.cache"
    llama.save_cache(path, "abc de")
    good = path.read_bytes()
    n = int.from_bytes(good[12:16], "little")
    bad = {
        "not a prompt cache": [b"", b"l2c", good[:23], b"x" + good[1:]],
        "version is 3": [good[:8] + b"\3" + good[9:]],
        "keys and values are float16": [good[:8] + b"\2" + good[9:]],
        "another model": [good[:16] + b"\0" * 8 + good[24:]],
        "context is 96": [good[:12] + b"\xff\xff\xff\xff" + good[16:]],
        "tokens need": [good[:-1], good + b"\0", good[:12] + bytes([n - 1]) + good[13:]],
        "outside the vocabulary": [good[:24] + b"\xff\xff\xff\xff" + good[28:]],
    }
    for message, files in bad.items():
        for data in files:
            path.write_bytes(data)
            with pytest.raises(CacheFileError, match=message):
                llama.load_cache(path)
    with pytest.raises(FileNotFoundError):
        llama.load_cache(tmp_path / "nothing")
    path.write_bytes(good)
    other_weights = Llama.from_buffer(TinyLlama.random(Shape(), seed=9).v0())
    for other in (other_weights, Llama(llama.path, dtype="int8")):
        with pytest.raises(CacheFileError, match="another model, or in another dtype"):
            other.load_cache(path)
    # Any floats are safe: the worst is an error about what comes of them.
    path.write_bytes(good[: 24 + 4 * n] + b"\x00\x00\xc0\x7f" * ((len(good) - 24 - 4 * n) // 4))
    tokens = llama.load_cache(path)
    with pytest.raises(ArithmeticError, match="NaN"):
        llama.generate([*tokens, 5], seed=1).read()
