"""What the kernels reach alone, and the quantized products within a forward pass.

    python benchmarks/kernels.py [--isa avx2] [--json benchmarks/results/kernels.json]

Kernels run on one thread. GB/s count every input and output once (in place: once); operations are
additions and multiplications of products, and values of exp, softmax and swiglu. "in cache" is
wq's shape: its Gop/s at 64 rows are what the kernel reaches when memory does not limit it, hence a
lower bound of the processor's FMA peak, which is not measured itself. Forward passes feed one
row at position 0, or 64 at positions 0 to 63, of one sequence through the whole synthetic model,
logits of every row wanted: GMAC/s are those of its matrices, attention not counted, GB/s the bytes
of weights (once a pass) beside what the same threads read of one long matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from common import (
    DTYPES,
    ISAS,
    finish,
    interleaved,
    model_files,
    parser,
    spread,
    table,
    thread_counts,
)

from pyllama2c import Llama
from pyllama2c._ffi import ffi, isa_name, lib, resolve_isa
from pyllama2c.cli.bench import SHAPES, read_bandwidth

ROWS = (1, 64)


class Kernel(NamedTuple):
    name: str
    size: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    n_bytes: int
    operations: int
    kept: tuple[Any, ...]
    """arrays that the pointers point into"""


class Pass(NamedTuple):
    llama: Llama
    rows: int
    macs: int


def kernel(name: str, size: str, arrays: Any, sizes: Any, n_bytes: int, operations: int) -> Kernel:
    """`sizes` are the arguments behind isa, with "p" where the next of `arrays` stands."""
    pointers = iter([ffi.cast("float *", array.ctypes.data) for array in arrays])
    arguments = tuple(next(pointers) if size == "p" else size for size in sizes)
    call = getattr(lib, f"l2c_kernel_{name.split()[0]}")
    return Kernel(name, size, call, arguments, n_bytes, operations, tuple(arrays))


def make_kernels(shape: str) -> list[Kernel]:
    dim, _, _, heads, _, vocab, seq_len = SHAPES[shape]
    vocab, head = abs(vocab), dim // heads
    rng = np.random.default_rng(7)

    def normal(*sizes: int) -> Any:
        return rng.standard_normal(sizes, np.float32)

    made = []
    for label, n, d in (("in cache", dim, dim), ("classifier", dim, vocab)):
        for rows in ROWS:
            out, x, w = np.empty((rows, d), np.float32), normal(rows, n), normal(d, n)
            n_bytes = out.nbytes + x.nbytes + w.nbytes
            size = f"{rows} x {n} x {d}"
            arguments = ("p", "p", rows, "p", n, d)
            made.append(
                kernel(f"matmul {label}", size, (out, x, w), arguments, n_bytes, 2 * rows * n * d)
            )
    x, out = normal(vocab), np.empty(vocab, np.float32)
    made.append(kernel("exp", f"{vocab}", (out, x), ("p", "p", vocab), 8 * vocab, vocab))
    made.append(kernel("softmax", f"{vocab}", (normal(vocab),), ("p", vocab), 4 * vocab, vocab))
    # In place, again and again: gate = silu(gate) * up stays where it is, away from denormals.
    gate = rng.uniform(-2.0, -0.5, vocab).astype(np.float32)
    up = 1.0 + np.exp(-gate)
    made.append(kernel("swiglu", f"{vocab}", (gate, up), ("p", "p", vocab), 8 * vocab, vocab))
    weights, rows_of_values = np.full(seq_len, 1 / seq_len, np.float32), normal(seq_len, head)
    arrays = (np.empty(head, np.float32), weights, rows_of_values)
    n_bytes = sum(array.nbytes for array in arrays)
    sizes = ("p", "p", 1, 0, "p", seq_len, head)
    made.append(
        kernel("weighted_sum", f"{seq_len} x {head}", arrays, sizes, n_bytes, 2 * seq_len * head)
    )
    return made


def seconds_of(k: Kernel, isa: int, at_least: float) -> float:
    """Per call from Python: the median of three loops that are long enough for the clock."""
    call, arguments = k.call, (isa, *k.arguments)

    def loop(count: int) -> float:
        started = perf_counter()
        for _ in range(count):
            call(*arguments)
        return perf_counter() - started

    count = 1
    while loop(count) < at_least:
        count *= 2
    return median(loop(count) for _ in range(3)) / count


def macs_of(shape: str) -> int:
    """Multiply-accumulates of one row with the model's matrices."""
    dim, hidden, layers, heads, kv_heads, vocab, _ = SHAPES[shape]
    kv = dim // heads * kv_heads
    return layers * (2 * dim * dim + 2 * dim * kv + 3 * dim * hidden) + abs(vocab) * dim


def seconds_of_pass(case: Pass, number: int) -> float:
    """The median of a few calls on one session."""
    ids = np.random.default_rng(number).integers(3, 100, case.rows).tolist()
    times = []
    with case.llama._engine.sessions.lent() as session:
        for _ in range(5):
            started = perf_counter()
            session.feed(ids, 0, want_logits=case.rows)
            times.append(perf_counter() - started)
    return median(times)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--isa", choices=ISAS, default="auto", help="[auto]")
    made.add_argument("--milliseconds", type=float, default=20, metavar="N", help="a loop [20]")
    arguments = made.parse_args()
    isa, at_least = resolve_isa(arguments.isa), arguments.milliseconds / 1e3
    kernels = make_kernels(arguments.shape)
    times = interleaved(kernels, arguments.rounds, lambda k, _: seconds_of(k, isa, at_least))
    rows = [
        {
            "kernel": k.name,
            "size": k.size,
            "microseconds": spread([1e6 * s for s in seconds]),
            "gb_per_second": k.n_bytes / median(seconds) / 1e9,
            "gop_per_second": k.operations / median(seconds) / 1e9,
        }
        for k, seconds in zip(kernels, times, strict=True)
    ]
    macs = macs_of(arguments.shape)
    with model_files(arguments.shape) as files:
        passes = [
            Pass(
                Llama(*files, dtype=dtype, speculative=False, threads=n, isa=arguments.isa), r, macs
            )
            for n in thread_counts()
            for dtype in DTYPES
            for r in ROWS
        ]
        times = interleaved(passes, arguments.rounds, seconds_of_pass)
        keys = sorted({(p.llama.sweep_bytes, p.llama.threads) for p in passes})
        speeds = interleaved(keys, arguments.rounds, lambda key, _: read_bandwidth(*key, 0.1))
    bandwidth = dict(zip(keys, map(median, speeds), strict=True))
    forward = [
        {
            "dtype": p.llama.config.dtype,
            "threads": p.llama.threads,
            "rows": p.rows,
            "microseconds": spread([1e6 * s for s in seconds]),
            "gb_per_second": p.llama.sweep_bytes / median(seconds) / 1e9,
            "read_bandwidth_gb_per_second": bandwidth[p.llama.sweep_bytes, p.llama.threads] / 1e9,
            "gmac_per_second": p.rows * p.macs / median(seconds) / 1e9,
        }
        for p, seconds in zip(passes, times, strict=True)
    ]
    text = table(
        ["kernel", "size", "us", "GB/s", "Gop/s"],
        [
            [row["kernel"], row["size"], f"{row['microseconds']['median']:,.2f}"]
            + [f"{row[unit]:.1f}" for unit in ("gb_per_second", "gop_per_second")]
            for row in rows
        ],
    )
    text += "\n\n" + table(
        ["forward pass", "threads", "rows", "us", "GB/s", "of bandwidth", "GMAC/s"],
        [
            [
                row["dtype"],
                row["threads"],
                row["rows"],
                f"{row['microseconds']['median']:,.0f}",
                f"{row['gb_per_second']:.1f}",
                f"{row['gb_per_second'] / row['read_bandwidth_gb_per_second']:.0%}",
                f"{row['gmac_per_second']:.1f}",
            ]
            for row in forward
        ],
    )
    result = {"shape": arguments.shape, "rounds": arguments.rounds, "isa": isa_name(isa)}
    finish(arguments, result | {"kernels": rows, "forward": forward}, text)


if __name__ == "__main__":
    main()
