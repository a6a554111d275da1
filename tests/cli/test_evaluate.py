"""Evaluation: sums over passages, the files that they come from, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from environment import SHARED, real_file, run_python

from pyllama2c import Llama
from pyllama2c.cli.evaluate import Evaluation, evaluate, read_passages, to_json
from pyllama2c.generation.score import make_score


def test_sums_over_passages(llama: Llama) -> None:
    passages = ["abc de", "日本 é abc", "cd " * 80]  # the last is longer than the context
    result = evaluate(llama, passages)
    total = n_tokens = n_bytes = 0
    for passage in passages:
        score = llama.score(passage)
        assert None not in score.logprobs[1:]
        total -= score.total
        n_tokens += len(score.tokens) - 1
        n_bytes += len(passage.encode())
    assert (result.passages, result.long) == (3, 1)
    assert (result.tokens, result.bytes) == (n_tokens, n_bytes)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / n_bytes, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(total / n_tokens), rel=1e-6)


def test_json_has_no_infinity() -> None:
    figures = Evaluation(1, 0, 5, 5, bits_per_byte=math.inf, perplexity=math.inf)
    assert json.loads(to_json(figures), parse_constant=pytest.fail)["perplexity"] is None


def test_files(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one\n<|endoftext|>\n two <|endoftext|>\n\n", encoding="utf-8")
    assert read_passages(text) == ["one", "two"]
    file = tmp_path / "a.json"
    for data in (["one", "two"], {"source": "x", "passages": ["one", "two"]}):
        file.write_text(json.dumps(data))
        assert read_passages(file) == ["one", "two"]
    for wrong, message in (
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "neither a list of strings"),
        ("{}", "neither a list of strings"),
        ("[]", "no text in it"),
    ):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            read_passages(file)


def test_encodings(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for name in ("a.txt", "a.json"):
        file = tmp_path / name
        text = "één" if name == "a.txt" else '["één"]'
        file.write_text(text, encoding="utf-8-sig")
        assert read_passages(file) == ["één"]
        for encoding, message in (
            ("latin-1", "not UTF-8 text: byte 0xe9 at offset"),
            ("utf-16", "UTF-16 text; only UTF-8"),
            ("utf-32", "UTF-32 text; only UTF-8"),
        ):
            file.write_text(text, encoding=encoding)
            with pytest.raises(ValueError, match=f"{name}: {message}"):
                read_passages(file)


def test_a_model_that_is_surer_than_a_float_can_say() -> None:
    score = make_score([1, 2], [None, -1e5], False, 1)
    assert score.perplexity == math.inf and score.bits_per_byte == pytest.approx(1e5 / math.log(2))


def test_command(tiny_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("abc de<|endoftext|>ab")
    command = ["-m", "pyllama2c", "eval", str(text), "--model", str(tiny_path)]
    shown = run_python(*command)
    assert shown.returncode == 0 and "bits per byte" in shown.stdout, shown.stderr
    facts = json.loads(run_python(*command, "--json").stdout)
    assert facts["passages"] == 2 and facts["bits_per_byte"] > 0
    text.write_text("")
    refused = run_python(*command)
    assert refused.returncode == 1 and "no text in it" in refused.stderr


def test_held_out_stories() -> None:
    """figures.md: 0.857 bits per byte, from BOS, teacher-forced, float32."""
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    path = SHARED / "text" / "heldout_tinystories.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with Llama(model, tokenizer) as float32, Llama(model, tokenizer, dtype="int8") as int8:
        exact, rounded = (evaluate(llama, read_passages(path)) for llama in (float32, int8))
    assert exact.passages == 283
    assert exact.bits_per_byte == pytest.approx(0.857, abs=0.001)
    assert rounded.perplexity < 1.005 * exact.perplexity


def test_a_device_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="/dev/zero: a device, which may have no end"):
        read_passages("/dev/zero")
