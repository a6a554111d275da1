"""on_card.sh speed: tokens a second, and what bounds them."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import large
import numpy as np
from card_checks import figures
from common import model_files
from on_card import SCALE, Item, Result, scaled
from tiny import Shape, TinyLlama

from pyllama2c import Llama
from pyllama2c.cli.bench import SHAPES, tokenizer_image
from pyllama2c.engine.device import open_card

SECONDS = 290
DTYPES = ("float32", "int8", "int4")
ROUNDS = 3
if SCALE < 1:  # a rehearsal
    small = (64, 96, 2, 4, 2, 300, 128)
    SHAPES.update(dict.fromkeys(SHAPES, small))
    large.SHAPES["llama-2-7b"] = small


# ---- The card alone -----------------------------------------------------------------------------


def bandwidth() -> Result:
    """Bytes read and written a second by a copy: of memory, and of what the second-level cache
    holds."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for name, size in (("memory", scaled(4 << 30)), ("cache", scaled(8 << 20))):
        a = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
        b, times = torch.empty_like(a), []
        repeats = scaled(10 if name == "memory" else 1000)
        for _ in range(ROUNDS + 1):
            started = time.perf_counter()
            for _ in range(repeats):
                b.copy_(a)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        found[name] = 2 * size * repeats / median(times[1:]) / 1e9
    summary = ", ".join(f"{name} {rate:,.0f} GB/s read and written" for name, rate in found.items())
    return {"ok": True, "summary": summary, "gb_per_second": found}


def barrier() -> Result:
    """What a layer costs the persistent kernel that has next to nothing to compute: on a grid of
    the whole card, and of one block, whose barriers wait for nobody."""
    us = {}
    with tempfile.TemporaryDirectory() as folder:
        for blocks in ((), (1,)):
            times = []
            for layers in (1, 17):
                model = Path(folder) / f"{layers}.bin"
                shape = Shape(dim=16, hidden_dim=16, n_layers=layers, n_heads=1, n_kv_heads=1)
                model.write_bytes(TinyLlama.random(shape).v0())
                words = (model, "KERNELS", 1, max(2, scaled(64)), max(2, scaled(200)), *blocks)
                times.append(figures("decode_launches", *words)["us_per_step"])
            us["one block" if blocks else "all blocks"] = (times[1] - times[0]) / 16
    each = (us["all blocks"] - us["one block"]) / 5
    both = " and ".join(f"{n:.2f} us by {blocks}" for blocks, n in us.items())
    summary = f"an almost empty layer takes {both}: {each:.2f} us for each of 5 barriers"
    return {"ok": True, "summary": summary, "us_per_layer": us, "us_per_barrier": each}


def products() -> Result:
    """The kernels of llama-2-7b's largest matrix alone, out of memory: with 1 row and 8 bound by
    reading it, with 1,024 by multiplying (IMMA, and what follows each group of 32)."""
    rows, cols = (11008, 4096) if SCALE == 1 else (64, 64)
    found = {}
    for name, number in (("float16", 1), ("int8", 3), ("int4", 4)):
        for n, launches in ((1, 400), (8, 400), (max(65, scaled(1024)), 40)):
            words = ("KERNELS", number, rows, cols, n, scaled(launches))
            found[f"{name}, {n} rows"] = figures("linear_launches", *words)
    summary = "; ".join(
        f"{name}: {of['gb_per_second']:,.0f} GB/s, {of['tera_operations']:,.1f} T op/s"
        for name, of in found.items()
    )
    return {"ok": True, "summary": summary, "found": found}


# ---- Models -------------------------------------------------------------------------------------


def per_second(tokens: int, work: Callable[[int], None]) -> float:
    """The median of some rounds after one that warms up."""
    times = []
    for number in range(ROUNDS + 1):
        started = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - started)
    return tokens / median(times[1:])


def measure(llama: Llama, prompt: int, tokens: int, batches: tuple[int, ...]) -> dict[str, Any]:
    """Tokens a second, sampled: of one story, of a prompt up to its first new token, of many
    stories together."""
    rng, vocab = np.random.default_rng(7), llama.config.vocab_size
    prompt, tokens = max(2, min(prompt, scaled(prompt * 4))), max(4, scaled(tokens))
    length, rates = min(64, tokens), []

    def tell(number: int) -> None:
        story = llama.generate([1, 270], max_tokens=tokens, seed=number + 1, stop_tokens=())
        story.read()
        rates.append(story.stats.tokens_per_second)

    def read(number: int) -> None:
        del number
        ids = rng.integers(3, vocab, prompt).tolist()
        llama.generate(ids, max_tokens=1, seed=1, stop_tokens=()).read()

    def together(n: int, number: int) -> None:
        options: dict[str, Any] = {"max_tokens": length, "stop_tokens": ()}
        told = llama.generate_batch([[1, 270]], n=n, max_batch=n, seed=number + 1, **options)
        errors = [story.error for story in told if story.error]
        if errors:
            raise errors[0]

    per_second(1, tell)
    decode = median(rates[1:])
    prefill = per_second(prompt, read)
    found: dict[str, Any] = {
        "decode": decode,
        "weights_gb_per_second": decode * llama.sweep_bytes / 1e9,
        "prompt": prompt,
        "prefill": prefill,
        "prefill_tera_operations": 2 * llama.n_parameters * prefill / 1e12,
    }
    for n in map(scaled, batches):
        found[f"batch {n}"] = per_second(n * length, partial(together, n))
    return found


def line(found: dict[str, dict[str, Any]]) -> str:
    return "; ".join(
        f"{name}: decode {of['decode']:,.0f}, prefill {of['prefill']:,.0f}"
        + "".join(f", {key} {of[key]:,.0f}" for key in of if key.startswith("batch"))
        for name, of in found.items()
    )


def small_model(shape: str, prompt: int, batches: tuple[int, ...]) -> Result:
    found = {}
    with model_files(shape) as files:
        for dtype in DTYPES:
            with Llama(*files, dtype=dtype, device="cuda", speculative=False) as llama:
                found[dtype] = measure(llama, prompt, 200, batches)
        for dtype in ("float32", "int8"):  # keys and values bound large batches
            options: dict[str, Any] = {"dtype": dtype, "kv_dtype": "float16"}
            with Llama(*files, device="cuda", speculative=False, **options) as llama:
                found[f"{dtype}, float16 cache"] = measure(llama, prompt, 64, batches[-1:])
    return {"ok": True, "summary": line(found), "tokens_per_second": found}


@contextmanager
def large_files(dtype: str) -> Iterator[tuple[Path, Path]]:
    """Of llama-2-7b's shape, with random blocks; in memory where that has room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 20e9
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        model, tokenizer = Path(folder) / "model.gguf", Path(folder) / "tokenizer.bin"
        large.write(model, "llama-2-7b", dtype)
        tokenizer.write_bytes(tokenizer_image(large.SHAPES["llama-2-7b"][5]))
        yield model, tokenizer


def large_model(dtype: str) -> Result:
    """With a float16 cache; then how much memory and time a float32 one takes."""
    card, found = open_card(0), dict[str, dict[str, Any]]()
    with large_files(dtype) as files:
        for kv_dtype, batches in (("float16", (8, 64)), ("float32", ())):
            before, started = card.free_memory(), time.perf_counter()
            options: dict[str, Any] = {"kv_dtype": kv_dtype, "speculative": False}
            options["context"] = min(2048, large.SHAPES["llama-2-7b"][6])
            with Llama(*files, device="cuda", **options) as llama:
                seconds = time.perf_counter() - started
                llama.generate([1, 270], max_tokens=2, seed=1, stop_tokens=()).read()
                taken = before - card.free_memory()  # for one story, as its context can be filled
                figures_of = measure(llama, 512, 64, batches)
            figures_of |= {"open_seconds": seconds, "card_gib": taken / 2**30}
            found[f"{dtype}, {kv_dtype} cache"] = figures_of
    memory = "; ".join(
        f"{name}: {of['card_gib']:.2f} GiB, weights {of['weights_gb_per_second']:,.0f} GB/s"
        for name, of in found.items()
    )
    return {"ok": True, "summary": f"{line(found)}; {memory}", "tokens_per_second": found}


# ---- Where the time goes ------------------------------------------------------------------------


def tell_a_little(shape: str, dtype: str) -> None:
    with (
        model_files(shape) as files,
        Llama(*files, dtype=dtype, device="cuda", speculative=False) as llama,
    ):
        llama.generate([1, 270], max_tokens=8, seed=1, stop_tokens=()).read()


def by_kernel(report: str) -> dict[str, dict[str, float]]:
    """Launches and mean microseconds of each kernel in ncu's CSV."""
    lines = report.splitlines()
    start = next(i for i, text in enumerate(lines) if text.startswith('"ID"'))
    times = defaultdict(list)
    for row in csv.DictReader(lines[start:]):
        unit = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0}[row["Metric Unit"]]
        times[row["Kernel Name"]].append(unit * float(row["Metric Value"].replace(",", "")))
    return {name: {"launches": len(us), "us": sum(us) / len(us)} for name, us in times.items()}


def phases(shape: str, dtype: str) -> Result:
    """By ncu, where it is installed: each kernel alone, with cold caches, so longer than in a
    stream of them."""
    program = shutil.which("ncu")
    if program is None:
        return {"ok": True, "summary": "ncu is not installed"}
    code = f"import sys; sys.path[:0] = {sys.path!r}; import card_speeds as c; "
    code += f"c.tell_a_little({shape!r}, {dtype!r})"
    options = ["--csv", "--metrics", "gpu__time_duration.sum", "--clock-control", "none"]
    done = subprocess.run(
        [program, *options, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"ok": False, "summary": f"ncu: {(done.stdout + done.stderr).strip()[-200:]}"}
    found = by_kernel(done.stdout)
    longest = sorted(found, key=lambda name: -found[name]["us"] * found[name]["launches"])[:4]
    summary = ", ".join(f"{name} {found[name]['us']:.1f} us" for name in longest)
    return {"ok": True, "summary": summary, "kernels": found}


# ---- transformers -------------------------------------------------------------------------------


def transformers_decode(shape: str, dtype: str, compiled: bool) -> Result:
    """Greedy, which is less work than sampling; random weights of the same shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    dim, hidden, layers, heads, kv_heads, vocab, seq_len = SHAPES[shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(
        vocab_size=abs(vocab), hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=vocab > 0,
        max_position_embeddings=seq_len,
    )  # fmt: skip
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
        model.eval()
    ids = torch.tensor([[1, 270]], device=device)
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"cache_implementation": "static"} if compiled else {}
    tokens = max(4, min(200 if compiled else 50, scaled(200)))

    def tell(number: int) -> None:
        del number
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **options
        )
        assert out.shape[1] == tokens + 2

    tell(0)  # compiles
    rate = per_second(tokens, tell)
    how = "compiled, static cache" if compiled else "eager"
    return {"ok": True, "summary": f"{rate:,.0f} tokens/s ({dtype}, {how})", "decode": rate}


# What the issue asks for first; then what explains it; what others need, last.
ITEMS = {
    "bandwidth": Item(bandwidth, 20),
    "15M": Item(partial(small_model, "stories15M", 200, (8, 64, 512, 1024)), 60),
    "7b-int8": Item(partial(large_model, "int8"), 45),
    "7b-int4": Item(partial(large_model, "int4"), 35),
    "7b-float16": Item(partial(large_model, "float16"), 50),
    "110M": Item(partial(small_model, "stories110M", 512, (8, 64, 512)), 45),
    "products": Item(products, 15),
    "barrier": Item(barrier, 15),
    "phases": Item(partial(phases, "stories15M", "int8"), 20),
    "transformers-15M": Item(partial(transformers_decode, "stories15M", "float32", True), 60),
    "transformers-7b": Item(partial(transformers_decode, "llama2-7b", "float16", False), 40),
    "transformers-110M": Item(partial(transformers_decode, "stories110M", "float32", True), 60),
}
