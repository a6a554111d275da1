"""Tokens a second on paper, of the shipped kernels on cards that nobody has measured yet.

    python tests/cuda/roofline.py    prints the tables of docs/cuda-kernels.md

A story's token takes the time of reading weights and cache, of the grid's barriers and the phases
between them, and of the longest chains of dependent operations, which nothing else hides. A prompt
and many stories take the multiplying: by the instructions around each product of the tensor cores
that ptxas_table.py counts (ptxas, nvdisasm), or by float operations.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ptxas_table
import translate_ptx


@dataclass(frozen=True)
class Card:
    name: str
    architecture: int
    memory: float
    """bytes a model may take"""
    rate: float
    """bytes of memory read a second, of which a copy reaches about nine tenths"""
    cache: float
    cache_rate: float
    """of the second-level cache: bytes, and bytes a second"""
    processors: int
    clock: float
    tensor: int
    """int8 products and sums of the tensor cores, each clock and processor"""


CARDS = (
    Card("H100", 90, 78e9, 0.9 * 3.35e12, 40e6, 4.1e12, 132, 1.7e9, 4096),
    Card("RTX 4090", 89, 23e9, 0.92 * 1.008e12, 64e6, 3.5e12, 128, 2.5e9, 1024),
    Card("RTX 3060 12 GB", 86, 11.3e9, 0.92 * 0.36e12, 2.5e6, 0.9e12, 28, 1.78e9, 1024),
)
# dim, hidden_dim, layers, columns of keys, vocabulary, whether the classifier is the embedding
MODELS = {
    "stories15M": (288, 768, 6, 288, 32000, True),
    "stories110M": (768, 2048, 12, 768, 32000, True),
    "llama-2-7b": (4096, 11008, 32, 4096, 32000, False),
}
BYTES = {"float32": 4.0, "F16 file": 2.0, "int8": 1 + 4 / 32, "int4": 0.5 + 2 / 32}
"""of a weight, with its part of a group's scale"""
KERNELS = {"int8": "l2c_linear_q8_128", "int4": "l2c_linear_q4_64"}
BARRIER, PHASE = 1.1e-6, 0.6e-6
"""seconds of a grid's barrier, and of a phase to begin and end"""
BARRIERS = 5
"""of a layer"""
LATENCY = 4
"""clocks of a float operation whose operand is the one before"""
POSITION = 128
"""tokens before, on average"""
PER_PRODUCT = 16 * 8 * 32
USED = 0.8
"""of a bound on instructions: what is reached"""


def story(card: Card, model: str, dtype: str) -> float | None:
    """Tokens a second of one; None where it does not fit."""
    dim, hidden, layers, keys, vocab, shared = MODELS[model]
    layer = 2 * dim * dim + 2 * dim * keys + 3 * dim * hidden
    read = (layers * layer + vocab * dim) * BYTES[dtype] + 2 * layers * POSITION * keys * 4
    taken = read + (0 if shared else vocab * dim * BYTES[dtype])
    if taken > card.memory:
        return None
    reading = read / (card.cache_rate if read < card.cache else card.rate)
    norms = 2 * layers * dim / 16
    attention = layers * (POSITION / 16 + 64 + POSITION / 64 + 400)
    sampling = vocab / 16 / 8
    chains = (norms + attention + sampling) * LATENCY / card.clock + 4e-6
    # with large matrices most of a phase's beginning is hidden by reads that are under way
    phases = BARRIERS * layers * PHASE * (0.35 if layer > 1e7 else 1)
    return 1 / (reading + (BARRIERS * layers + 3) * BARRIER + phases + chains)


def rate(card: Card, dtype: str, instructions: dict[str, float]) -> float:
    """Products and sums a second, of many rows."""
    if dtype not in KERNELS:
        return 0.65 * 128 * card.processors * card.clock  # FFMA, between loads of shared memory
    # a processor has four schedulers, each of which starts an instruction a clock
    each = min(4 * PER_PRODUCT / instructions[KERNELS[dtype]], card.tensor)
    return USED * each * card.processors * card.clock


def prompt(card: Card, model: str, dtype: str, instructions: dict[str, float]) -> float | None:
    """Tokens of a long one a second."""
    if story(card, model, dtype) is None:
        return None
    dim, hidden, layers, keys, _, _ = MODELS[model]
    weights = layers * (2 * dim * dim + 2 * dim * keys + 3 * dim * hidden)
    scores = 2 * layers * dim * 256
    return 1 / (weights / rate(card, dtype, instructions) + scores / rate(card, "float32", {}))


def stories(card: Card, model: str, dtype: str, instructions: dict[str, float]) -> float:
    """Tokens a second of 512 side by side."""
    dim, hidden, layers, keys, vocab, _ = MODELS[model]
    n = 512
    weights = layers * (2 * dim * dim + 2 * dim * keys + 3 * dim * hidden) + vocab * dim
    multiplying = n * weights / rate(card, dtype, instructions)
    cache = 2 * layers * POSITION * keys * n
    attention = max(4 * cache / card.rate, cache / (0.4 * 128 * card.processors * card.clock))
    logits = 4 * 4 * n * vocab / card.rate  # written, read for the largest, exps written and read
    launches = (9 * layers + 4) * 2.5e-6
    return n / (multiplying + attention + logits + launches)


def number(n: float | None) -> str:
    if n is None:
        return "-"
    digits = 10 ** max(0, len(str(int(n))) - 3)
    return f"{round(n / digits) * digits:,}"


def instructions_of(card: Card, folder: Path) -> dict[str, float]:
    text, cubin = folder / "some.ptx", folder / f"{card.architecture}.cubin"
    text.write_text(ptxas_table.only(translate_ptx.shipped()[80].decode(), KERNELS.values()))
    ptxas_table.assemble(text, card.architecture, cubin)
    return ptxas_table.products(cubin, card.architecture)


def main() -> None:
    if ptxas_table.nvdisasm() is None:
        sys.exit("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    print("| tokens/s, computed | " + " | ".join(BYTES) + " |\n|---|" + "---:|" * len(BYTES))
    with tempfile.TemporaryDirectory() as folder:
        counts = {card.name: instructions_of(card, Path(folder)) for card in CARDS}
    for card in CARDS:
        for model in MODELS:
            cells = [number(story(card, model, dtype)) for dtype in BYTES]
            print(f"| {card.name}, {model}, one story | {' | '.join(cells)} |")
        for model in ("stories15M", "stories110M"):
            cells = [number(stories(card, model, dtype, counts[card.name])) for dtype in BYTES]
            print(f"| {card.name}, {model}, 512 stories | {' | '.join(cells)} |")
        cells = [number(prompt(card, "llama-2-7b", dtype, counts[card.name])) for dtype in BYTES]
        print(f"| {card.name}, llama-2-7b, a prompt of 512 | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
