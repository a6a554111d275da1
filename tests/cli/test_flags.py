"""Flags beside run.c's: length, stops, prompts from files and pipes, JSON, quiet, help."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from environment import DATA, real_file, run_python
from tokenizer_keys import chat_model, sentencepiece_keys

import pyllama2c
from pyllama2c import Llama


def command(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    given = [w if isinstance(w, (str, bytes)) else str(w) for w in words]
    return run_python("-m", "pyllama2c", *given, **options)


def piped(path: Path, data: bytes, *flags: str) -> str:
    """What is told of a prompt on standard input."""
    words = [sys.executable, "-m", "pyllama2c", str(path), "-s", "3", "-n", "20", *flags]
    done = subprocess.run(words, input=data, capture_output=True, cwd=DATA)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_version_and_help() -> None:
    assert command("--version").stdout == f"pyllama2c {pyllama2c.__version__}\n"
    assert command("help", "info").stdout == command("info", "--help").stdout != ""
    assert command("help").stdout == command("--help").stdout != ""
    assert "GGUF" in command("help", "generate").stdout
    assert command("help", "sing").returncode == 2


def test_max_tokens_counts_new_ones(tiny_path: Path) -> None:
    def told(*flags: object) -> list[int]:
        words = (tiny_path, "-s", "3", "-i", "ab cd", "--json", *flags)
        return list(json.loads(command(*words).stdout)["tokens"])

    whole = told("-n", "0")
    assert len(whole) > 20
    assert told("--max-tokens", "7") == whole[:7]
    assert told("--max-tokens", "0") == []
    assert told("--max-tokens", "999") == whole
    assert told("--max-tokens", "9", "-n", "12") == told("-n", "12")[:9]
    assert told("--max-tokens", "90", "-n", "12") == told("-n", "12")
    done = command(tiny_path, "--max-tokens", "-1")
    assert done.returncode == 1 and "--max-tokens is -1; it must be 0 or more" in done.stderr


def test_stops(tiny_path: Path) -> None:
    words = (tiny_path, "-s", "3", "-i", "ab", "-n", "0", "--json")
    whole = json.loads(command(*words).stdout)
    token = whole["tokens"][9]
    stopped = json.loads(command(*words, "--stop-token", 5, "--stop-token", token).stdout)
    first = min(whole["tokens"].index(t) for t in (5, token) if t in whole["tokens"])
    assert stopped["tokens"] == whole["tokens"][:first]
    assert stopped["finish_reason"] == "stop"
    text = whole["text"][6:8]
    stopped = json.loads(command(*words, "--stop", "--", "--stop", text).stdout)
    assert stopped["text"] == whole["text"][: whole["text"].index(text)]
    done = command(tiny_path, "--stop-token", "300")
    assert done.returncode == 1 and "--stop-token is 300; it must be 0 to 299" in done.stderr
    done = command(tiny_path, "--stop", "")
    assert done.returncode == 1 and "a stop string is empty" in done.stderr


def test_quiet_leaves_errors(tiny_path: Path) -> None:
    words = (tiny_path, "-s", "3", "-n", "20", "-i", "ab")
    done = command(*words, "--quiet")
    assert (done.stdout, done.stderr) == (command(*words).stdout, "")
    assert "nor a known model" in command("no-such-model", "-q").stderr
    chat = command("chat", tiny_path, "-q", "-s", "3", input="be brief\nab\n")
    assert chat.stdout and chat.stderr == ""


def test_json(tiny_path: Path) -> None:
    done = command(tiny_path, "-s", "3", "-i", b"a\xffb", "--max-tokens", "9", "--json")
    record = json.loads(done.stdout)
    with Llama(tiny_path) as llama:
        story = llama.generate(b"a\xffb", seed=3, max_tokens=9)
        assert record["text"] == story.read() and record["tokens"] == story.tokens
        assert record["stats"].keys() == asdict(story.stats).keys()
    assert (record["prompt"], record["prompt_bytes"]) == ("a\ufffdb", "61ff62")
    assert (record["seed"], record["finish_reason"]) == (3, "length")
    assert done.stdout.isascii() and done.stderr == ""
    filled = json.loads(command(tiny_path, "-i", "abc de", "-n", "2", "--json").stdout)
    assert (filled["text"], filled["tokens"], filled["finish_reason"]) == ("", [], "length")
    done = command(tiny_path, "-i", "ab" * 200, "--json")
    assert done.returncode == 1 and done.stdout == "" and "context is 96" in done.stderr
    for flags in (("--special",), ("--file", "x")):
        done = command(tiny_path, "-m", "chat", *flags)
        assert done.returncode == 1 and f"{flags[0]} is for one story" in done.stderr
    for words, message in (
        (("-m", "chat"), "not for a chat"),
        (("-N", "2", "--jsonl", "-"), "--json is for one story"),
    ):
        done = command(tiny_path, "--json", *words)
        assert done.returncode == 1 and message in done.stderr


@pytest.mark.parametrize("data", [b"abc de", b"abc de\n", b"abc de\r\n", b"\xef\xbb\xbfabc de\n"])
def test_a_prompt_from_a_file_or_a_pipe(tiny_path: Path, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(data)
    asked = piped(tiny_path, b"", "-i", "abc de")
    assert piped(tiny_path, data) == asked
    assert piped(tiny_path, data, "--file", "-") == asked
    assert piped(tiny_path, b"not this", "--file", str(path)) == asked
    assert piped(tiny_path, b"not this", "-i", "abc de") == asked
    with path.open() as file:
        done = command(tiny_path, "-s", "3", "-n", "20", stdin=file)
    assert done.stdout == asked


def test_no_prompt_is_one_as_well(tiny_path: Path) -> None:
    asked = piped(tiny_path, b"ignored", "-i", "")
    assert piped(tiny_path, b"") == piped(tiny_path, b"\n") == asked
    assert command(tiny_path, "-s", "3", "-n", "20").stdout == asked  # /dev/null


def test_a_terminal_is_not_read(tiny_path: Path) -> None:
    leader, terminal = os.openpty()
    try:
        done = command(tiny_path, "-s", "3", "-n", "20", stdin=terminal)
        assert done.stdout == piped(tiny_path, b"", "-i", "")
        done = command(tiny_path, "--file", "-", stdin=terminal)
        assert done.returncode == 1 and "a terminal or a device" in done.stderr
    finally:
        os.close(leader)
        os.close(terminal)


def test_files_that_are_no_prompts(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"a" * ((1 << 24) + 1))
    for path, status, message in (
        (tmp_path / "none", 1, "none: No such file or directory"),
        (tmp_path, 1, "Is a directory"),
        (tiny_path, 1, "is a llama2.c checkpoint"),
        ("/dev/zero", 1, "/dev/zero: a terminal or a device"),
        (tmp_path / "long", 1, "more than 16,777,216 bytes"),
    ):
        done = command(tiny_path, "--file", path)
        assert done.returncode == status and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert command(tiny_path, "--file", "a", "-i", "b").returncode == 2


def test_control_tokens_in_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(chat_model(sentencepiece_keys()).build())

    def prompt_tokens(*flags: str) -> int:
        words = (path, "-s", "3", "--max-tokens", "2", "--json", *flags)
        return int(json.loads(command(*words).stdout)["stats"]["prompt_tokens"])

    with Llama(path) as llama:
        tokenizer = llama.tokenizer
        end = tokenizer.special_text(tokenizer.eos_id)
        begin = tokenizer.special_text(tokenizer.bos_id)
        asked = [tokenizer.bos_id, *tokenizer.encode(f"ab{end}cd", special=True)]
        plain = tokenizer.encode_prompt(f"ab{end}cd")
    assert len(asked) < len(plain)
    assert prompt_tokens("-i", f"ab{end}cd") == len(plain)
    assert prompt_tokens("-i", f"ab{end}cd", "--special") == len(asked)
    assert prompt_tokens("-i", f"{begin}ab{end}cd", "--special") == len(asked)  # BOS once
    assert prompt_tokens("-i", "", "--special") == 1
    done = command(path, "--special", "-N", "2", "--jsonl", "-")
    assert done.returncode == 1 and "--special is for one story" in done.stderr


def test_list_and_rm(tmp_path: Path) -> None:
    checkpoint, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    for path in (checkpoint, tokenizer):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    environment = os.environ | {"PYLLAMA2C_CACHE": str(tmp_path)}

    def models() -> dict[str, Any]:
        listed = json.loads(command("list", "--json", env=environment).stdout)
        assert listed["cache"] == str(tmp_path)
        return {model["name"]: model for model in listed["models"]}

    found = models()
    assert found["stories260K"]["checkpoint"]["path"] == str(tmp_path / "stories260K.bin")
    assert found["stories15M"]["checkpoint"]["path"] is None
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert found["stories260K"]["checkpoint"]["sha256"] == sha256
    lines = command("list", env=environment).stdout.splitlines()
    where = {line.split()[0]: (line.split()[3], line.split()[-1]) for line in lines}
    assert where["stories260K"] == ("cached", sha256)
    assert where["stories15M"][0] == "not"
    embedded = Path(Llama().path).read_bytes()
    assert where["(default)"] == ("embedded", hashlib.sha256(embedded).hexdigest())

    done = command("rm", "stories260K", env=environment)
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []
    assert "stories260K.bin: removed, 1.06 MB freed" in done.stderr
    done = command("rm", "stories260K", env=environment)
    assert done.returncode == 1 and f"is not in the cache, {tmp_path}" in done.stderr
    assert command("rm", env=environment).returncode == 2


def test_logprobs(tiny_path: Path) -> None:
    """Those of `score`, one for each token of the story, the whole context included."""
    words = (tiny_path, "-s", "3", "-i", "ab cd", "-n", "0")
    with Llama(tiny_path) as llama:

        def text(token: int) -> str:
            return llama.tokenizer.piece(token).decode(errors="replace")

        for flags in ((), ("-t", "0.3", "--top-k", "5"), ("--max-tokens", "0")):
            told = (*words, *flags, "--logprobs", "2")
            record = json.loads(command(*told, "--json").stdout)
            prompt = llama.tokenizer.encode_prompt("ab cd")
            scored = llama.score([*prompt, *record["tokens"]])
            entries = record["logprobs"]
            assert [entry["logprob"] for entry in entries] == scored.logprobs[len(prompt) :]
            assert [entry["token"] for entry in entries] == record["tokens"]
            done = command(*told)
            lines = [line for line in done.stderr.splitlines() if line[:1] == " "]
            for line, entry in zip(lines, entries, strict=True):
                shown = [(entry["logprob"], entry["token"])]
                shown += [(likely["logprob"], likely["token"]) for likely in entry["top"]]
                assert len(shown) == 3 and shown[1] >= shown[2]
                for logprob, token in shown:
                    assert f"{logprob:.4f}" in line and repr(text(token)) in line
            assert done.stdout == command(*words, *flags).stdout
    assert len(entries) == 0
    for flags in (("--logprobs", "0"), ("--logprobs", "5")):
        done = command(tiny_path, "-m", "chat", *flags)
        assert done.returncode == 1 and "--logprobs is for one story" in done.stderr
    done = command(tiny_path, "--logprobs", "65")
    assert done.returncode == 1 and "logprobs is 65; it must be 0 to 64" in done.stderr


def test_biases_and_penalties(tiny_path: Path) -> None:
    words = (tiny_path, "-s", "3", "-i", "ab cd", "-n", "0", "--json")
    given = ("--logit-bias", "40=-inf", "--logit-bias", "41=1.5")
    given += ("--presence-penalty", "-0.5", "--frequency-penalty", "0.25")
    record = json.loads(command(*words, *given).stdout)
    with Llama(tiny_path) as llama:
        options: dict[str, Any] = {"presence_penalty": -0.5, "frequency_penalty": 0.25}
        story = llama.generate("ab cd", seed=3, logit_bias={40: -math.inf, 41: 1.5}, **options)
        assert record["text"] == story.read()
    for wrong in ("40", "=1", "a=1", "40=x", "1.5=2"):
        done = command(tiny_path, "--logit-bias", wrong)
        assert (
            done.returncode == 2 and f"'{wrong}' is not a token id, =, and a number" in done.stderr
        )
    done = command(tiny_path, "--logit-bias", "300=1")
    assert done.returncode == 1 and "it must be a token id, 0 to 299" in done.stderr


def test_a_fresh_seed(tiny_path: Path, tmp_path: Path) -> None:
    """0 asks for one, and -1; of many stories as well."""
    for seed in ("0", "-1"):
        told = {command(tiny_path, "--seed", seed, "--json", "-n", "9").stdout for _ in range(2)}
        assert len({json.loads(text)["seed"] for text in told}) == 2
        path = tmp_path / f"{seed}.jsonl"
        command(tiny_path, "--seed", seed, "-N", "1", "--jsonl", path, "-n", "9")
        assert 0 < json.loads(path.read_bytes())["seed"] < 2**31
