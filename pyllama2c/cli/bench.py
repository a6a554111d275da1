"""Tokens per second: prefill and decode apart, through the Python generator, sampling included."""

from __future__ import annotations

import json
import struct
import tempfile
import threading
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllama2c._ffi import ffi, lib, resolve_isa
from pyllama2c.engine.memory import limits
from pyllama2c.errors import OutOfMemoryError
from pyllama2c.model import Llama

# dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: untied), seq_len
SHAPES = {
    "stories15M": (288, 768, 6, 6, 6, 32000, 256),
    "stories42M": (512, 1376, 8, 8, 8, 32000, 1024),
    "stories110M": (768, 2048, 12, 12, 12, 32000, 1024),
    "llama2-7b": (4096, 11008, 32, 32, 32, -32000, 2048),
}
ENTROPY = 1.0
"""nats of the next-token distribution, as a trained model's; flat logits would measure sorting"""


def synthetic(shape: str, **options: Any) -> Llama:
    """A model with random float32 weights from a fixed seed, made in memory; `options` of Llama."""
    image = _peaked_image(shape)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.bin"
        tokenizer.write_bytes(tokenizer_image(abs(SHAPES[shape][5])))
        llama = Llama.from_buffer(image, tokenizer, **options)
    llama.path = f"synthetic {shape}"
    return llama


def synthetic_files(shape: str, folder: Path) -> tuple[Path, Path]:
    """The same model and its tokenizer as files, for other engines."""
    model, tokenizer = folder / "model.bin", folder / "tokenizer.bin"
    _peaked_image(shape).tofile(model)
    tokenizer.write_bytes(tokenizer_image(abs(SHAPES[shape][5])))
    return model, tokenizer


def _peaked_image(shape: str) -> NDArray[np.float32]:
    """A version 0 checkpoint whose next-token distributions have ENTROPY nats on average."""
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    image, final_norm = _checkpoint_image(SHAPES[shape])
    with Llama.from_buffer(image) as flat:
        ids = np.random.default_rng(1).integers(3, flat.config.vocab_size, 32)
        final_norm *= _scale_for_entropy(flat.logits(ids.tolist()))
    return image


def _checkpoint_image(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A version 0 checkpoint as an array, and the view of its final norm."""
    dim, hidden, layers, heads, kv_heads, vocab, seq_len = shape
    head, kv = dim // heads, dim * kv_heads // heads
    tables = 1 if vocab > 0 else 2
    body = (
        layers * (2 * dim + 2 * dim * dim + 2 * dim * kv + 3 * dim * hidden) + dim + seq_len * head
    )
    count = 7 + tables * abs(vocab) * dim + body
    limit = min(limits(), key=lambda limit: limit.free, default=None)
    if limit is not None and 4 * count > limit.free:
        raise OutOfMemoryError(
            f"this shape needs {4 * count:,} bytes in float32; {limit.free:,} are {limit.name}"
        )
    image = np.empty(count, np.float32)
    image[:7] = np.frombuffer(struct.pack("<7i", *shape), np.float32)
    rng, at = np.random.default_rng(2026), 7

    def put(size: int, scale: float) -> NDArray[np.float32]:
        nonlocal at
        part = image[at : at + size]
        if scale:
            rng.standard_normal(size, np.float32, out=part)
            part *= scale
        else:
            part[:] = 1.0
        at += size
        return part

    embedding = put(abs(vocab) * dim, 1.0).reshape(-1, dim)
    embedding[1:3] = 0.0  # BOS and EOS never come up, so that every story has its full length
    put(layers * dim, 0.0)
    put(layers * (2 * dim * dim + 2 * dim * kv), dim**-0.5)
    put(layers * dim, 0.0)
    put(layers * 3 * dim * hidden, dim**-0.5)
    final_norm = put(dim, 0.0)
    put(seq_len * head, 1.0)
    if vocab < 0:
        put(-vocab * dim, 1.0).reshape(-1, dim)[1:3] = 0.0
    return image, final_norm


def _scale_for_entropy(logits: NDArray[np.float32]) -> float:
    """The factor on the logits that makes their mean entropy ENTROPY nats."""
    low, high = 1e-4, 10.0
    centred = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    for _ in range(60):
        middle = (low * high) ** 0.5
        p = np.exp(centred * middle)
        p /= p.sum(axis=1, keepdims=True)
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1).mean()
        low, high = (middle, high) if entropy > ENTROPY else (low, middle)
    return float(low)


def tokenizer_image(vocab_size: int) -> bytes:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256))]
    pieces += [b" ", *(b" w%d" % i for i in range(vocab_size - len(pieces) - 1))]
    records = b"".join(struct.pack("<fi", -float(i), len(p)) + p for i, p in enumerate(pieces))
    return struct.pack("<i", max(map(len, pieces))) + records


def read_bandwidth(size: int, threads: int, seconds: float = 0.5) -> float:
    """Bytes per second when each of `threads` threads reads its share of `size` bytes, again and
    again, with the matrix kernel on one long matrix: an upper bound for a token's weights. (A plain
    loop over the bytes is slower: it is one stream, the kernel's are four.)"""
    n = 1024
    rows = max(4, size // 4 // n // threads)
    isa, x = resolve_isa("auto"), np.ones(n, np.float32)
    weights = np.ones((threads, rows, n), np.float32)
    out = np.empty((threads, rows), np.float32)
    done = [0] * threads

    def pointer(array: NDArray[np.float32]) -> Any:
        return ffi.cast("float *", array.ctypes.data)

    def read(i: int) -> None:
        end = perf_counter() + seconds
        while perf_counter() < end:
            lib.l2c_kernel_matmul(isa, pointer(out[i]), pointer(x), 1, pointer(weights[i]), n, rows)
            done[i] += weights[i].nbytes

    workers = [threading.Thread(target=read, args=(i,)) for i in range(threads)]
    started = perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (perf_counter() - started)


def measure(
    llama: Llama, *, prompt: int, tokens: int, rounds: int, temperature: float
) -> dict[str, Any]:
    """Medians over `rounds` stories of `tokens` new tokens after `prompt` random prompt tokens,
    however many of them are BOS or EOS."""
    c = llama.config
    for name, value, low in (("prompt", prompt, 1), ("tokens", tokens, 2), ("rounds", rounds, 1)):
        if value < low:  # the first token belongs to prefill
            raise ValueError(f"--{name} is {value}; it must be {low} or more")
    if prompt + tokens > c.seq_len:
        raise ValueError(f"{prompt} prompt and {tokens} new tokens; the context is {c.seq_len}")
    rng = np.random.default_rng(7)
    decode, prefill = [], []
    for i in range(rounds + 1):
        ids = rng.integers(3, c.vocab_size, prompt).tolist()
        story = llama.generate(
            ids, max_tokens=tokens, temperature=temperature, seed=i + 1, stop_tokens=()
        )
        started = perf_counter()
        story.read()
        ended = perf_counter()
        if i == 0:
            continue  # memory and caches warm up
        first = story.stats.time_to_first_token
        prefill.append(prompt / first)
        decode.append((tokens - 1) / (ended - started - first))
    bandwidth = read_bandwidth(llama.sweep_bytes, llama.threads)
    return {
        "model": llama.path,
        "dtype": llama.config.dtype,
        "isa": llama.isa,
        "threads": llama.threads,
        "prompt": prompt,
        "tokens": tokens,
        "rounds": rounds,
        "temperature": temperature,
        "prefill_tokens_per_second": median(prefill),
        "decode_tokens_per_second": median(decode),
        "decode_tokens_per_second_range": [min(decode), max(decode)],
        "weights_gb_per_second": median(decode) * llama.sweep_bytes / 1e9,
        "read_bandwidth_gb_per_second": bandwidth / 1e9,
        "share_of_read_bandwidth": median(decode) * llama.sweep_bytes / bandwidth,
    }


def to_json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2)


def to_text(r: dict[str, Any]) -> str:
    low, high = r["decode_tokens_per_second_range"]
    return (
        f"{r['model']}: {r['dtype']}, {r['isa']}, {r['threads']} thread(s), "
        f"temperature {r['temperature']:g}\n"
        f"prefill  {r['prefill_tokens_per_second']:10,.0f} tok/s  ({r['prompt']} tokens)\n"
        f"decode   {r['decode_tokens_per_second']:10,.0f} tok/s  (median of {r['rounds']} stories "
        f"of {r['tokens']} tokens; {low:,.0f} to {high:,.0f})\n"
        f"weights  {r['weights_gb_per_second']:10.1f} GB/s, {r['share_of_read_bandwidth']:.0%} of "
        f"the {r['read_bandwidth_gb_per_second']:.1f} GB/s that this machine reads them at"
    )
