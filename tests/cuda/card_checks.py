"""on_card.sh check: are the card's bits the CPU's?"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf_files import model_file
from goldens import cases, tell
from on_card import CARRIED, SCALE, Item, Result, scaled
from tiny import MATRICES, Shape, TinyLlama, tokenizer_file

from pyllama2c import Llama, cuda
from pyllama2c.engine.device import open_card, survey
from pyllama2c.files.hub import cache_folder

SECONDS = 232
"""of all items; the rest of four minutes is for setting up"""
KERNELS = cuda.load()
REHEARSAL = SCALE < 1
"""models and stories are tiny then: the fake driver tells some tokens a second"""
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")


@contextmanager
def only_text(least: int) -> Iterator[None]:
    """Cards get the PTX for this capability, whatever newer one they could take."""
    whole = cuda.load
    text = {least: KERNELS.texts[least]}
    cuda.load = lambda: cuda.Kernels(KERNELS.sources, KERNELS.flags, KERNELS.nvcc, text)
    try:
        yield
    finally:
        cuda.load = whole


def counted(checks: int, different: list[Any], **figures: Any) -> Result:
    summary = f"{checks:,} checks, {len(different)} different"
    shown = {"examples": different[:20]} if different else {}
    ok = not different and checks > 0
    return {"ok": ok, "summary": summary, "checks": checks, **shown, **figures}


# ---- Compiling ----------------------------------------------------------------------------------


def compile_texts() -> Result:
    """Both texts, which nobody has yet compiled here: on_card.sh's cache is new."""
    found = survey(free_memory=True)
    seconds, image = {}, TinyLlama.random(Shape()).v0()
    for least in KERNELS.texts:
        started = time.monotonic()
        with only_text(least), Llama.from_buffer(image, device="cuda"):
            seconds[str(least)] = round(time.monotonic() - started, 2)
    card = found.cards[0]
    times = ", ".join(f"PTX {least} in {s} s" for least, s in seconds.items())
    summary = f"{card['name']}, CUDA {card['driver']}: {times}"
    return {"ok": True, "summary": summary, "seconds_to_compile": seconds, "cards": found.cards}


# ---- Random models ------------------------------------------------------------------------------


def random_model(rng: random.Random) -> tuple[bytes, int, dict[str, Any], str]:
    """A file, its vocabulary, options to open it with, and what to call it."""
    whole_blocks = rng.random() < 0.8
    kv_heads = rng.choice([1, 2, 3] if not REHEARSAL else [1])
    heads = kv_heads * rng.choice([1, 2, 4] if not REHEARSAL else [1, 2])
    heads_of = [32, 64, 96, 128] if whole_blocks else [2, 8, 16, 20, 48]
    head = rng.choice(heads_of if not REHEARSAL else heads_of[:1])
    shape = Shape(
        dim=heads * head, n_heads=heads, n_kv_heads=kv_heads, tied=rng.random() < 0.5,
        n_layers=rng.randrange(1, 4) if not REHEARSAL else 1,
        seq_len=rng.choice([64, 300] if not REHEARSAL else [64]),
        hidden_dim=32 * rng.randrange(1, 12) if whole_blocks else rng.randrange(1, 350),
        vocab_size=rng.randrange(300, 700 if not REHEARSAL else 310),
    )  # fmt: skip
    seed = rng.randrange(2**32)
    tiny = TinyLlama.random(shape, seed)
    options = {"kv_dtype": rng.choice(["float32", "float16"]), "speculative": False}
    if rng.random() < 0.5:
        dtype = rng.choice(["float32", "int8", "int4"])
        return tiny.v0(), shape.vocab_size, options | {"dtype": dtype}, f"{shape} as {dtype}"
    kinds = KINDS if whole_blocks else KINDS[:3]
    types = {name: rng.choice(kinds) for name in ("embedding", *MATRICES, "classifier")}
    image = model_file(tiny, types, seed).build()
    return image, shape.vocab_size, options, f"{shape} of {types}"


def same_bits(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8)))


def compare(rng: random.Random, folder: Path) -> Iterator[tuple[str, bool]]:
    """What is compared of one model, and whether it is the same."""
    image, vocab, options, name = random_model(rng)
    tokenizer = folder / "tokenizer.bin"
    tokenizer.write_bytes(tokenizer_file(vocab))
    name = f"{name} {options}"
    with (
        Llama.from_buffer(image, tokenizer, **options) as cpu,
        Llama.from_buffer(image, tokenizer, device="cuda", **options) as card,
    ):
        both, context = (cpu, card), cpu.config.seq_len

        def tokens(n: int) -> list[int]:
            return [rng.randrange(3, vocab) for _ in range(n)]

        lengths = {rng.randrange(1, context + 1) for _ in range(3)} | {1, 8, 9, 63}
        for n in sorted(lengths if not REHEARSAL else {1, 9}):
            prompt = tokens(min(n, context))
            one, two = (llama.logits(prompt) for llama in both)
            for row in range(len(prompt)):
                yield f"{name}: logits {row} of {n}", same_bits(one[row], two[row])
        texts = [[1, *tokens(n)] for n in ((1, 9, 40) if not REHEARSAL else (1, 9))]
        scored = [[score.logprobs for score in llama.score_batch(texts)] for llama in both]
        for a, b in zip(*scored, strict=True):
            yield f"{name}: scores", a == b
        prompt = tokens(20)
        for where, llama in zip("ab", both, strict=True):
            llama.save_cache(folder / where, prompt)
        yield f"{name}: cache", (folder / "a").read_bytes() == (folder / "b").read_bytes()
        for _ in range(scaled(4)):
            setting: dict[str, Any] = {
                "temperature": rng.choice([0.0, 0.5, 1.0, 1.5]),
                "top_p": rng.choice([0.5, 0.9, 1.0]),
                "top_k": rng.choice([0, 0, 5, 40]),
                "min_p": rng.choice([0.0, 0.05]),
                "repetition_penalty": rng.choice([1.0, 1.0, 1.2]),
                "seed": rng.randrange(1, 2**32),
                "max_tokens": max(2, scaled(12)),
            }
            prompts = [
                [1, *tokens(rng.randrange(1, 20))] for _ in range(scaled(rng.choice([1, 3, 30])))
            ]
            told = [
                [
                    (story.tokens, story.error and str(story.error))
                    for story in llama.generate_batch(prompts, in_order=True, **setting)
                ]
                for llama in both
            ]
            for a, b in zip(*told, strict=True):
                yield f"{name}: story {setting}", a == b


def compare_random(least: int) -> Result:
    """Random models by one of the texts, until the counts or three quarters of the time end."""
    checks, different, models = 0, list[str](), 0
    end = time.monotonic() + 0.75 * ITEMS[f"bits-{least}"].limit
    with only_text(least), tempfile.TemporaryDirectory() as folder:
        while models < scaled(400) and time.monotonic() < end:
            for what, same in compare(random.Random(f"{least} {models}"), Path(folder)):
                checks += 1
                different += [] if same else [f"model {models}: {what}"]
                if time.monotonic() > end:
                    break
            models += 1
    return counted(checks, different, models=models)


# ---- Stories ------------------------------------------------------------------------------------


def stories260k(**options: Any) -> Llama:
    files = (CARRIED / "stories260K.bin", CARRIED / "tok512.bin")
    return Llama(*files, speculative=False, **options)


def tell_goldens() -> Result:
    """run.c's stories by both texts, or in a rehearsal how one begins."""
    goldens = cases("stories260K_fp32.json")[: scaled(60)]
    if REHEARSAL:
        goldens = [case | {"steps": 3, "tokens": case["tokens"][:3]} for case in goldens]
    wrong = []
    for least in KERNELS.texts:
        with only_text(least), stories260k(device="cuda") as llama:
            told = [tell(llama, case) for case in goldens]
        wrong += [
            f"PTX {least}: {case['prompt']!r}, seed {case['seed']}"
            for case, (tokens, text) in zip(goldens, told, strict=True)
            if tokens != case["tokens"]
            or not case["text"].startswith(text)
            or (text != case["text"] and not REHEARSAL)
        ]
    return counted(len(goldens) * len(KERNELS.texts), wrong)


def tell_many() -> Result:
    """1,000 seeds of 256 tokens, as the CPU tells them."""
    n, length = scaled(1000), max(3, scaled(256))
    different, checks, seconds = list[str](), 0, {}
    for dtype, kv_dtype in (("float32", "float32"), ("int8", "float32"), ("float32", "float16")):
        told = {}
        for device in ("cpu", "cuda"):
            options: dict[str, Any] = {
                "max_tokens": length, "in_order": True, "stop_tokens": (), "max_batch": 256,
            }  # fmt: skip
            with stories260k(device=device, dtype=dtype, kv_dtype=kv_dtype) as llama:
                started = time.monotonic()
                seeds = list(range(1, n + 1))
                stories = llama.generate_batch([[1]] * n, seed=seeds, **options)
                told[device] = [story.tokens for story in stories]
                seconds[f"{dtype}, {kv_dtype} cache, {device}"] = time.monotonic() - started
        checks += n
        different += [
            f"{dtype}, {kv_dtype} cache, seed {i + 1}"
            for i, (a, b) in enumerate(zip(told["cpu"], told["cuda"], strict=True))
            if a != b or len(a) != length
        ]
    return counted(checks, different, tokens=checks * length, seconds_to_tell=seconds)


# ---- The persistent kernel ----------------------------------------------------------------------


def compiled_kernels(least: int | None) -> bytes:
    """As the cache keeps them for this card, of the text for `least` or of that which it gets."""
    capability = open_card(0).info.capability.replace(".", "")
    text = KERNELS.texts[least] if least else KERNELS.for_capability(int(capability))
    digest = hashlib.sha256(text or b"").hexdigest()
    kept = next((cache_folder() / "kernels").glob(f"{digest[:16]}-*.cubin"))
    return kept.read_bytes()[hashlib.sha256().digest_size :]


class ProgramError(Exception):
    """What a program of ours said instead of its figures."""


def program(
    name: str, *words: object, least: int | None = None, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """A program that was carried, with the word KERNELS replaced by a file of those compiled for
    this card; `before` runs it, if anything does."""
    with tempfile.TemporaryDirectory() as folder:
        kernels = Path(folder) / "kernels"
        kernels.write_bytes(compiled_kernels(least))
        given = [str(kernels if word == "KERNELS" else word) for word in words]
        command = [*before, str(CARRIED / name), *given]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def figures(name: str, *words: object, least: int | None = None) -> dict[str, Any]:
    """What such a program prints."""
    done = program(name, *words, least=least)
    if not done.stdout.startswith("{"):
        raise ProgramError(f"{name}: {done.stderr.strip()[-200:] or f'status {done.returncode}'}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def launch_many() -> Result:
    """11,000 launches: none hangs, all give the tokens of a kernel a phase."""
    found, model, steps = [], CARRIED / "stories260K.bin", max(2, scaled(16))
    for rows, n, least in ((1, 8000, None), (8, 2000, None), (1, 1000, min(KERNELS.texts))):
        words = (model, "KERNELS", rows, steps, scaled(n))
        found.append(figures("decode_launches", *words, least=least))
    launches, different = (sum(r[name] for r in found) for name in ("launches", "different"))
    times = ", ".join(f"{r['us_per_step']} us a step of {r['rows']} row(s)" for r in found)
    summary = f"{launches:,} launches, {different} different; {times}"
    return {"ok": different == 0, "summary": summary, "found": found}


# ---- Sanitizers ---------------------------------------------------------------------------------


def pass_once() -> None:
    """A little of everything, for a sanitizer to look at."""
    for shape in (Shape(), Shape(dim=64, hidden_dim=96, n_kv_heads=1)):
        image, options = TinyLlama.random(shape).v0(), dict[str, Any](speculative=False)
        options["dtype"] = "float32" if shape == Shape() else "int8"
        with tempfile.NamedTemporaryFile() as tokenizer:
            Path(tokenizer.name).write_bytes(tokenizer_file())
            with Llama.from_buffer(image, tokenizer.name, device="cuda", **options) as llama:
                llama.logits(list(range(3, 43)))
                list(llama.generate_batch([[1, 5], [1, 6]], max_tokens=2, seed=1))


def sanitize(tool: str) -> Result:
    """A refusal to run on this device is noted, not failed."""
    tool_path = shutil.which("compute-sanitizer")
    if tool_path is None:
        return {"ok": True, "summary": "compute-sanitizer is not installed"}
    before = [tool_path, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
    script = f"import sys; sys.path[:0] = {sys.path!r}; import card_checks as c; c.pass_once()"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny.bin"
        model.write_bytes(TinyLlama.random(Shape(n_layers=1)).v0())
        words = (model, "KERNELS", 2, 2, 2)
        runs = {"decode": program("decode_launches", *words, before=before)}
    runs["phases"] = subprocess.run(
        [*before, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    texts = {name: run.stdout + run.stderr for name, run in runs.items()}
    refused = [name for name, text in texts.items() if "not supported" in text]
    failed = [name for name, run in runs.items() if run.returncode and name not in refused]
    summary = f"{', '.join(failed)} failed" if failed else "clean"
    summary += f"; the device is refused in {', '.join(refused)}" if refused else ""
    shown = {name: texts[name][-1200:] for name in (*failed, *refused)}
    return {"ok": not failed, "summary": summary, "logs": shown}


ITEMS = {
    "compile": Item(compile_texts, 60),
    "bits-80": Item(partial(compare_random, 80), 36),
    "bits-75": Item(partial(compare_random, 75), 24),
    "goldens": Item(tell_goldens, 20),
    "launches": Item(launch_many, 40),
    "stories": Item(tell_many, 50),
    **{
        tool: Item(partial(sanitize, tool), 20)
        for tool in ("memcheck", "synccheck", "initcheck", "racecheck")
    },
}
