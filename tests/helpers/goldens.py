"""What llama2.c, NumPy and SentencePiece gave for real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from environment import DATA, SHARED

from pyllama2c import Llama


def golden(name: str) -> Path:
    for folder in (DATA, SHARED / "goldens"):
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} is neither in {DATA} nor in {SHARED / 'goldens'}")


def cases(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((DATA / name).read_text(encoding="utf-8"))["cases"]
    return loaded


def tell(llama: Llama, case: dict[str, Any]) -> tuple[list[int], str]:
    """A case as run.c runs it: `steps` counts the prompt. Tokens after BOS, and the text."""
    prompt = llama.tokenizer.encode(case["prompt"], bos=True)
    story = llama.generate(
        prompt[: case["steps"] + 1],
        max_tokens=max(0, case["steps"] - len(prompt) + 1),
        temperature=case["temperature"],
        top_p=case["top_p"],
        seed=case["seed"],
    )
    text = story.read()
    return story.prompt_tokens[1:] + story.tokens, case["prompt"] + text
