"""Stories of 200 tokens by a real model, on a card: run.c's own, and the CPU's in every type."""

from __future__ import annotations

from typing import Any

import fake_cuda
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


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [("float32", "float16"), ("int8", "float32"), ("int8", "float16"), ("int4", "float32")],
)
def test_long_stories(dtype: str, kv_dtype: str, seed: int) -> None:
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    told = []
    for device in ("cpu", "cuda"):
        with Llama(model, tokenizer, dtype=dtype, kv_dtype=kv_dtype, device=device) as llama:
            story = llama.generate("Once", max_tokens=LENGTH, seed=seed, stop_tokens=())
            told.append((story.read(), story.tokens, story.rng_state))
    assert told[0] == told[1] and len(told[0][1]) == LENGTH
