"""Each instruction set gives the scalar oracle's bits, and those are close to the truth."""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
from fractions import Fraction

import numpy as np
import pytest
from environment import ISAS
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2c import UnsupportedError
from pyllama2c._ffi import ISA_NAMES, ffi, lib, resolve_isa

SCALAR = ISA_NAMES["scalar"]
TINY = np.finfo(np.float32).tiny  # FLT_MIN, the smallest normal float
LENGTHS = [*range(1, 70), 96, 127, 128, 129, 172, 288, 300, 769]


def pointer(array: np.ndarray):
    assert array.dtype == np.float32 and array.flags.c_contiguous
    return ffi.cast("float *", array.ctypes.data)


def matmul(isa: int, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    out = np.full((len(x), len(w)), np.nan, np.float32)
    lib.l2c_kernel_matmul(isa, pointer(out), pointer(x), len(x), pointer(w), w.shape[1], len(w))
    return out


def weighted_sum(
    isa: int, weights: np.ndarray, values: np.ndarray, n: int, step: int
) -> np.ndarray:
    out = np.full((len(weights), values.shape[1]), np.nan, np.float32)
    args = (pointer(out), pointer(weights), len(weights), step, pointer(values), n, values.shape[1])
    lib.l2c_kernel_weighted_sum(isa, *args)
    return out


def unary(name: str, isa: int, x: np.ndarray) -> np.ndarray:
    out = x.copy()
    if name == "exp":
        lib.l2c_kernel_exp(isa, pointer(out), pointer(x), len(x))
    elif name == "softmax":
        lib.l2c_kernel_softmax(isa, pointer(out), len(x))
    else:
        up = np.linspace(-2, 2, len(x), dtype=np.float32)
        lib.l2c_kernel_swiglu(isa, pointer(out), pointer(up), len(x))
    return out


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize("n", LENGTHS)
def test_matmul_bits(n: int, isa: str) -> None:
    rng = np.random.default_rng(n)
    for n_rows in (1, 2, 3, 4, 5, 9):
        x = rng.normal(size=(n_rows, n)).astype(np.float32)
        w = rng.normal(size=(23, n)).astype(np.float32)
        got = matmul(ISA_NAMES[isa], x, w)
        assert same_bits(got, matmul(SCALAR, x, w))
        apart = np.vstack([matmul(ISA_NAMES[isa], x[r : r + 1], w) for r in range(n_rows)])
        assert same_bits(got, apart)
        np.testing.assert_allclose(got, x.astype(float) @ w.T.astype(float), rtol=0, atol=1e-4)


def test_dot_product_is_the_documented_one() -> None:
    """16 lanes, fused steps, a fixed tree: written out here with exact arithmetic."""
    rng = np.random.default_rng(5)
    a, b = (rng.normal(size=(1, 37)).astype(np.float32) for _ in range(2))
    lanes = [np.float32(0)] * 16
    for j in range(48):
        u = Fraction(float(a[0, j])) * Fraction(float(b[0, j])) if j < 37 else Fraction(0)
        lanes[j % 16] = rounded(Fraction(float(lanes[j % 16])) + u)
    for half in (8, 4, 2, 1):
        lanes = [np.float32(lanes[i] + lanes[i + half]) for i in range(half)]
    assert matmul(SCALAR, a, b)[0, 0] == lanes[0]


def rounded(value):
    """A fraction to the nearest float32, ties to even, by trying the neighbours."""
    guess = np.float32(float(value))
    near = [np.nextafter(guess, np.float32(d), dtype=np.float32) for d in (-np.inf, np.inf)]
    candidates = [guess, *near]
    errors = [abs(Fraction(float(c)) - value) for c in candidates]
    best = [c for c, e in zip(candidates, errors, strict=True) if e == min(errors)]
    return min(best, key=lambda c: int(c.view(np.uint32)) & 1)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", ["exp", "softmax", "swiglu"])
def test_elementwise_bits(name: str, n: int, isa: str) -> None:
    x = (np.random.default_rng(n).normal(size=n) * 20).astype(np.float32)
    assert same_bits(unary(name, ISA_NAMES[isa], x), unary(name, SCALAR, x))


@pytest.mark.parametrize("width", [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128])
def test_weighted_sum_bits(width: int, isa: str) -> None:
    rng = np.random.default_rng(width)
    for n, n_rows, step in itertools.product((1, 2, 19, 61), (1, 2, 3, 4, 5, 8), (0, 1)):
        m = n + (n_rows - 1) * step
        weights = rng.random((n_rows, m)).astype(np.float32)
        rows = rng.normal(size=(m, width)).astype(np.float32)
        outs = [weighted_sum(k, weights, rows, n, step) for k in (ISA_NAMES[isa], SCALAR)]
        assert same_bits(*outs)
        seen = np.arange(m) < n + np.arange(n_rows)[:, None] * step
        truth = np.where(seen, weights, 0).astype(float) @ rows
        np.testing.assert_allclose(outs[0], truth, rtol=0, atol=1e-5)


def sum_in_blocks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Attention's sum as kernels.h defines it: weights (n,), values (n, width), out (width,)."""
    sums = []
    for begin in range(0, len(weights), 64):
        total = np.zeros(values.shape[1], np.float32)
        for w, row in zip(weights[begin : begin + 64], values[begin : begin + 64], strict=True):
            # exact in float64 for the few bits of this test, so that the sum is rounded once
            total = (w.astype(np.float64) * row + total).astype(np.float32)
        sums.append(total)
    out = sums[0]  # not 0 + it, which would turn -0 into 0
    for block in sums[1:]:
        out = out + block
    return out


@pytest.mark.parametrize("n", [1, 63, 64, 65, 126, 127, 128, 129, 192, 300])
def test_weighted_sum_is_taken_in_blocks_of_64_positions(n: int, isa: str) -> None:
    """A row's own number of keys ends its last block, whatever shares its tile."""
    rng = np.random.default_rng(n)
    for n_rows, step, width in ((1, 0, 48), (4, 0, 20), (2, 1, 16), (4, 1, 48), (5, 1, 100)):
        m = n + (n_rows - 1) * step
        # few bits, so that float64 holds every sum of the statement
        weights = np.ldexp(rng.integers(1, 1 << 12, (n_rows, m)), -12).astype(np.float32)
        values = (rng.integers(-(1 << 20), 1 << 20, (m, width)) / (1 << 19)).astype(np.float32)
        got = weighted_sum(ISA_NAMES[isa], weights, values, n, step)
        for r in range(n_rows):
            keys = n + r * step
            assert same_bits(got[r], sum_in_blocks(weights[r, :keys], values[:keys]))


def test_a_weighted_sum_keeps_the_sign_of_zero(isa: str) -> None:
    """A block begins at +0, the total with the first block: -0 where products round to -0."""
    for value, weight, expected in ((-0.0, 1.0, 0.0), (-1e-45, 1e-10, -0.0)):
        values = np.full((130, 20), value, np.float32)
        weights = np.full((1, 130), weight, np.float32)
        got = weighted_sum(ISA_NAMES[isa], weights, values, 130, 0)
        assert same_bits(got, np.full((1, 20), expected, np.float32))


@pytest.mark.parametrize("n", [1, 17, 63, 64, 65, 80, 128, 129, 1000])
def test_softmax_sums_in_blocks_of_64(n: int, isa: str) -> None:
    x = np.random.default_rng(n).normal(size=n).astype(np.float32)
    e = unary("exp", SCALAR, x - x.max())
    assert same_bits(unary("softmax", ISA_NAMES[isa], x), e / lane_sum(e))


def test_exp_over_the_full_range(isa: str) -> None:
    """Within 2 ulp of libm; 0 instead of denormal results, infinity above, NaN for NaN."""
    x = np.linspace(-110, 95, 400_003, dtype=np.float32)
    got = unary("exp", ISA_NAMES[isa], x)
    with np.errstate(over="ignore"):
        truth = np.exp(x.astype(np.float64))
        nearest = truth.astype(np.float32)
    usual = np.isfinite(nearest) & np.isfinite(got) & (truth >= TINY)
    ulp = np.spacing(nearest[usual]).astype(np.float64)
    assert (np.abs(got[usual] - truth[usual]) <= 2 * ulp).all()
    assert (got[truth >= TINY] >= TINY).all() and (got[truth < TINY] == 0).all()
    assert np.isinf(got[x > 88.73]).all() and np.isfinite(got[x < 88.72]).all()
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e30], np.float32)
    got = unary("exp", ISA_NAMES[isa], special)
    assert got[:4].tolist() == [1, 1, math.inf, 0] and math.isnan(got[4])
    assert got[5:].tolist() == [1, 0]


def test_exp_is_zero_just_where_it_would_be_denormal(isa: str) -> None:
    """Every float around ln(FLT_MIN), against libm in double."""
    near = np.float32(math.log(float(TINY)))
    x = (near.view(np.int32) + np.arange(-70_000, 70_000, dtype=np.int32)).view(np.float32)
    got = unary("exp", ISA_NAMES[isa], x)
    truth = np.exp(x.astype(np.float64))
    assert ((got == 0) == (truth < TINY)).all() and (got[truth >= TINY] >= TINY).all()


@pytest.mark.parametrize("n", [1, 5, 16, 40, 333])
def test_softmax_is_zero_where_it_would_be_denormal(n: int, isa: str) -> None:
    """An exp below sum * FLT_MIN becomes 0; that is the only rule beside the quotient."""
    rng = np.random.default_rng(n)
    x = rng.uniform(-89, -80, (50, n)).astype(np.float32)
    x[:, : n // 3 + 1] = rng.uniform(-1, 1, (50, n // 3 + 1))
    for row in x:
        e = unary("exp", SCALAR, row - row.max())
        total = lane_sum(e)
        expected = np.where(e < total * TINY, np.float32(0), e / total)
        got = unary("softmax", ISA_NAMES[isa], row)
        assert same_bits(got, expected)
        assert not ((got > 0) & (got < TINY)).any()


def lane_sum(x: np.ndarray) -> np.float32:
    """Softmax's sum as kernels.h defines it: blocks of 64 in 16 lanes each, then the tree."""
    lanes = np.zeros(16, np.float32)
    for begin in range(0, len(x), 64):
        block = np.zeros(16, np.float32)
        for j in range(begin, min(begin + 64, len(x)), 16):
            part = x[j : min(j + 16, begin + 64)]
            block[: len(part)] += part
        lanes += block
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half : 2 * half]
    return lanes[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-90, 90, width=32), min_size=1, max_size=80))
def test_softmax_properties(values: list[float]) -> None:
    x = np.array(values, np.float32)
    outs = [unary("softmax", number, x) for number in available()]
    assert all(same_bits(out, outs[0]) for out in outs)
    e = np.exp(x.astype(np.float64) - x.max())
    np.testing.assert_allclose(outs[0], e / e.sum(), rtol=1e-5, atol=1e-37)


def available() -> list[int]:
    numbers = []
    for name in ISAS:
        try:
            numbers.append(resolve_isa(name))
        except UnsupportedError:
            continue
    return numbers


@pytest.mark.parametrize("n", [1, 3, 8, 13, 16, 17, 31, 48, 100])
def test_nothing_past_the_end_is_read(n: int, isa: str) -> None:
    """Buffers that end where the process's memory does: one element more would be a crash."""
    page = mmap.PAGESIZE
    block = mmap.mmap(-1, 2 * page)
    base = np.frombuffer(block, np.uint8).ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(base + page), page, 0) == 0
    x = np.frombuffer(block, np.float32, n, page - 4 * n)
    x[:] = np.arange(n)
    number, out = ISA_NAMES[isa], np.zeros(3 * n + 8, np.float32)
    lib.l2c_kernel_matmul(number, pointer(out), pointer(x), 1, pointer(x), n, 1)
    assert out[0] == (np.arange(n, dtype=np.float64) ** 2).sum()
    lib.l2c_kernel_exp(number, pointer(out), pointer(x), n)
    lib.l2c_kernel_weighted_sum(number, pointer(out), pointer(x[:1]), 1, 0, pointer(x), 1, n)
    lib.l2c_kernel_swiglu(number, pointer(x), pointer(x), n)
    lib.l2c_kernel_softmax(number, pointer(x), n)
    assert abs(float(x.sum()) - 1) < 1e-5


def f32_to_f16(isa: int, x: np.ndarray) -> np.ndarray:
    out = np.full(len(x), 0x1234, np.uint16)
    lib.l2c_kernel_f32_to_f16(isa, ffi.cast("uint16_t *", out.ctypes.data), pointer(x), len(x))
    return out


def test_every_float16_widens(isa: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    out = np.zeros(len(halves), np.float32)
    data = ffi.cast("uint16_t *", halves.ctypes.data)
    lib.l2c_kernel_f16_to_f32(ISA_NAMES[isa], pointer(out), data, len(halves))
    assert np.array_equal(out, expected, equal_nan=True)
    ok = ~np.isnan(expected)
    assert same_bits(out[ok], expected[ok])
    assert np.array_equal(f32_to_f16(ISA_NAMES[isa], out)[ok], halves[ok])


@pytest.mark.parametrize("n", [*range(1, 20), 48, 100, 4099])
def test_float16_rounds_to_nearest_even(n: int, isa: str) -> None:
    rng = np.random.default_rng(n)
    bits = rng.integers(0, 1 << 16, n, np.uint32) << 16  # all magnitudes
    low = rng.choice([0, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF], n).astype(np.uint32)
    x = (bits | low).view(np.float32)
    x = np.where(np.isnan(x), np.float32(1), x)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    assert np.array_equal(f32_to_f16(ISA_NAMES[isa], x), expected)
