"""Stories of 200 tokens by a real model, on a card: run.c's own, and the CPU's in every type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from environment import real_file
from goldens import cases, tell

from pyllama2c import Llama

pytestmark = [
    pytest.mark.skipif(not fake_cuda.possible(), reason=fake_cuda.NEEDS),
    pytest.mark.usefixtures("fake"),
]

LENGTH = 200
LONGEST = sorted(cases("stories260K_fp32.json"), key=lambda case: -len(case["tokens"]))


@pytest.mark.parametrize("case", LONGEST[:2], ids=lambda case: f"seed {case['seed']}")
def test_run_c_stories(case: dict[str, Any]) -> None:
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    with Llama(model, tokenizer, device="cuda") as llama:
        tokens, text = tell(llama, case | {"steps": LENGTH})
        assert tokens == case["tokens"][:LENGTH] and case["text"].startswith(text[:-1])


def halved(folder: Path) -> tuple[Path, Path]:
    """stories260K with weights that 16 bits hold exactly, which a card keeps so."""
    data = real_file("stories260K.bin").read_bytes()
    weights = np.frombuffer(data, "<f4", offset=28).astype("<f2").astype("<f4")
    model = folder / "halved.bin"
    model.write_bytes(data[:28] + weights.tobytes())
    return model, real_file("tok512.bin")


def test_how_others_of_run_c_begin() -> None:
    """A third of them: the emulator tells some 50 tokens a second."""
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    with Llama(model, tokenizer, device="cuda") as llama:
        for case in LONGEST[2::3]:
            tokens, _ = tell(llama, case | {"steps": 20})
            assert tokens == case["tokens"][:20], (case["prompt"], case["seed"])


@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "halved", "int8", "int4"])
def test_stories_of_every_type(dtype: str, kv_dtype: str, tmp_path: Path) -> None:
    """Weights and caches have kernels of their own: each of them is in a long story."""
    long = (dtype in ("float32", "int8")) == (kv_dtype == "float16")
    length = LENGTH if long else LENGTH // 4
    files, options = (real_file("stories260K.bin"), real_file("tok512.bin")), {"dtype": dtype}
    if dtype == "halved":
        files, options = halved(tmp_path), {}
    told = []
    for device in ("cpu", "cuda"):
        with Llama(*files, kv_dtype=kv_dtype, device=device, **options) as llama:
            story = llama.generate("Once", max_tokens=length, seed=1, stop_tokens=())
            told.append((story.read(), story.tokens, story.rng_state))
    assert told[0] == told[1] and len(told[0][1]) == length
