"""The prompt cache: nothing computed twice, nothing changed; and its file, which is not trusted."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_files import model_file
from tiny import MATRICES, Shape, TinyLlama

from pyllama2c import CacheFileError, Llama
from pyllama2c._ffi import check
from pyllama2c.engine.engine import open_buffer
from pyllama2c.engine.options import Options


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


def test_interrupted_while_it_loads(
    llama: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python hears of Ctrl-C when the C call is over: the session holds other keys by then."""
    path = tmp_path / "prompt.cache"
    llama.save_cache(path, "bcd a bcd a bcd a")
    fresh = Llama(llama.path)
    first = fresh.generate("abc de abc de", seed=3, max_tokens=9).read()

    def interrupted(*arguments: Any) -> None:
        check(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("pyllama2c.engine.cache_file.check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh.load_cache(path)
    again = fresh.generate("abc de abc de", seed=3, max_tokens=9)
    assert again.read() == first and again.stats.cached_tokens == 0


def test_hostile_files(llama: Llama, tmp_path: Path) -> None:
    path = tmp_path / "prompt.cache"
    llama.save_cache(path, "abc de")
    good = path.read_bytes()
    n = int.from_bytes(good[12:16], "little")
    bad = {
        "not a prompt cache": [b"", b"l2c", good[:23], b"x" + good[1:]],
        "older pyllama2c": [good[:8] + bytes([v]) + good[9:] for v in (1, 2)],
        "version is 5": [good[:8] + b"\5" + good[9:]],
        "keys and values are float16": [good[:8] + b"\4" + good[9:]],
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


# ---- the fingerprint: what makes a saved prompt another model's ----

SMALL = Shape(dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300)


def fingerprint(data: bytes, dtype: str = "auto", isa: str | None = None, threads: int = 1) -> int:
    options = Options(dtype=dtype, speculative=False, threads=threads, isa=isa)
    engine = open_buffer(bytearray(data), options)
    try:
        return engine.fingerprint
    finally:
        engine.close()


def test_a_saved_prompt_is_refused_by_a_model_that_differs_in_one_place(tmp_path: Path) -> None:
    tiny, path = TinyLlama.random(SMALL), tmp_path / "prompt.cache"
    with Llama.from_buffer(bytearray(tiny.v0())) as llama:
        llama.save_cache(path, [1, 5, 9])
    # The same sizes of matrices, hence the same bytes, but other heads.
    heads = TinyLlama(replace(SMALL, n_heads=8, n_kv_heads=4), tiny.weights)
    norms = TinyLlama(SMALL, tiny.weights | {"ffn_norm": tiny.weights["ffn_norm"].copy()})
    norms.weights["ffn_norm"][1, 7] *= 2
    middle = TinyLlama(SMALL, tiny.weights | {"embedding": tiny.weights["embedding"].copy()})
    middle.weights["embedding"][150, 16] *= 2
    for other in (heads, norms, middle):
        refusing = Llama.from_buffer(bytearray(other.v0()))
        with refusing, pytest.raises(CacheFileError, match="another model"):
            refusing.load_cache(path)


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_every_weight_counts(dtype: str) -> None:
    tiny = TinyLlama.random(replace(SMALL, tied=False))
    seen = {fingerprint(tiny.v0(), dtype)}
    rng = random.Random(1)
    names = ["embedding", "classifier", "attention_norm", "ffn_norm", "final_norm", *MATRICES]
    for name in names:
        for _ in range(3):
            values = tiny.weights[name].copy()
            values.reshape(-1)[rng.randrange(values.size)] += 3.0  # more than int4 rounds away
            seen.add(fingerprint(TinyLlama(tiny.shape, tiny.weights | {name: values}).v0(), dtype))
    assert len(seen) == 1 + 3 * len(names)


def test_every_setting_counts() -> None:
    shape, weights = SMALL, TinyLlama.random(SMALL).weights
    others = [
        shape,
        replace(shape, rope_theta=500000.0),
        replace(shape, norm_eps=1e-6),
        replace(shape, rope_divisors=(1.0, 1.0, 2.0, 4.0)),
        replace(shape, rope_divisors=(1.0, 1.0, 4.0, 2.0)),
    ]
    seen = {fingerprint(model_file(TinyLlama(other, weights)).build()) for other in others}
    assert len(seen) == len(others)


def test_the_same_weights_are_the_same_model_in_every_file_and_on_every_machine(isa: str) -> None:
    tiny = TinyLlama.random(replace(SMALL, group_size=32))
    expected = fingerprint(tiny.v0(), isa="scalar")
    assert fingerprint(tiny.v0(), isa=isa, threads=3) == expected
    assert fingerprint(tiny.v1()) == expected
    assert fingerprint(model_file(tiny).build()) == expected
    shorter = TinyLlama(replace(tiny.shape, seq_len=50), tiny.weights)
    assert fingerprint(shorter.v0()) == expected  # a context's length changes no number
    int8 = fingerprint(tiny.v0(), "int8", isa, 2)
    assert int8 == fingerprint(tiny.v0(), "int8", "scalar") and int8 != expected
    # Groups that the packed kernels do not take are computed, and hashed, as they lie in the file.
    odd = TinyLlama.random(replace(SMALL, hidden_dim=80, group_size=32))
    scale = bytearray(odd.v2())
    scale[-1] ^= 1
    assert fingerprint(odd.v2(), isa=isa) == fingerprint(odd.v2())
    assert fingerprint(bytes(scale)) != fingerprint(odd.v2())


# ---- files that are in the way ----


def test_a_model_is_not_overwritten(llama: Llama, tiny_path: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(tiny_path.read_bytes())
    with pytest.raises(CacheFileError, match=r"model\.bin is a llama2.c checkpoint; name another"):
        llama.save_cache(model, "ab")
    assert model.read_bytes() == tiny_path.read_bytes()
    for before in (b"", b"l2ccache"):
        model.write_bytes(before)
        llama.save_cache(model, "ab")
        assert len(llama.load_cache(model)) > 0


def test_a_pipe_is_not_waited_for(llama: Llama, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(CacheFileError, match="not a regular file"):
            llama.load_cache(path)
