"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from environment import DATA, ISAS, real_file, run_python

from pyllama2c import Llama


def pyllama2c(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [a if isinstance(a, (str, bytes)) else str(a) for a in arguments]
    return run_python("-m", "pyllama2c", *words, **options)


TOK_S = re.compile(r"achieved tok/s: \d+\.\d{6}\n\Z")


def test_the_golden_story() -> None:
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    case = json.loads((DATA / "stories260K_fp32.json").read_text())["cases"][0]
    done = pyllama2c("generate", model, "-z", tokenizer, "-t", "0", "-n", "200")
    assert done.returncode == 0
    assert done.stdout == case["text"] + "\n"
    assert TOK_S.fullmatch(done.stderr)


def test_run_c_flags_and_the_default_command() -> None:
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    for case in json.loads((DATA / "stories260K_fp32.json").read_text())["cases"][15:24]:
        done = pyllama2c(
            model, "-z", tokenizer, "-t", case["temperature"], "-p", case["top_p"],
            "-s", case["seed"], "-n", case["steps"], "-i", case["prompt"],
        )  # fmt: skip
        assert done.stdout == case["text"] + "\n"


def test_the_embedded_storyteller() -> None:
    done = pyllama2c("-s", "1", "-t", "0.8")
    assert done.returncode == 0 and TOK_S.fullmatch(done.stderr)
    with Llama() as llama:
        assert done.stdout == llama.generate(seed=1, temperature=0.8, max_tokens=256).read() + "\n"
    assert len(done.stdout.split()) > 40


def test_steps_count_the_prompt(tiny_path: Path) -> None:
    with Llama(tiny_path) as llama:
        prompt = llama.tokenizer.encode("abc de", bos=True)
        for steps in (1, 2, len(prompt), len(prompt) + 5, 96, 0, 1000):
            done = pyllama2c(tiny_path, "-i", "abc de", "-n", steps, "-s", "4", "-t", "0.1")
            limit = steps or 96
            story = llama.generate(
                prompt[: limit + 1],
                max_tokens=max(0, min(limit, 96) - len(prompt) + 1),
                seed=4,
                temperature=0.1,
            )
            shown = llama.tokenizer.decode(story.prompt_tokens) + story.read()
            control = dict.fromkeys([*range(9), *range(14, 32), 127, *range(128, 160)])
            assert done.stdout == shown.translate(control) + "\n"


def test_prompts_that_are_not_utf8(tiny_path: Path) -> None:
    done = pyllama2c(tiny_path, "-i", b"a\xffb", "-n", "4", "-s", "1")
    assert done.returncode == 0 and done.stdout.startswith("a\ufffdb")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["generate", "--no-such"], 2, "unrecognized arguments"),
        (["-t", "warm"], 2, "invalid float value"),
        (["bench", "--tokens", "many"], 2, "invalid int value"),
        (["-m", "sing"], 2, "invalid choice"),
        (["no-such-model"], 1, "'no-such-model' is neither a file nor a known model"),
        (["./no-such.bin"], 1, "error: no-such.bin: No such file or directory"),
        (["/"], 1, "checkpoint is a directory"),
        (["--temperature", "-1"], 1, "temperature is -1.0; it must be 0 to 3.4e+38"),
        (["-t", "nan"], 1, "temperature is nan"),
        (["--top-p", "2"], 1, "top_p is 2.0; it must be 0 to 1"),
        (["--seed", "-3"], 1, "seed is -3"),
        (["--steps", "-1"], 1, "--steps is -1"),
        (["--threads", "0"], 1, "threads is 0; it must be 1 to 256"),
        (["bench", "--synthetic", "gpt"], 1, "unknown shape 'gpt'; known: stories15M"),
        (["bench", "--tokens", "1"], 1, "--tokens is 1; it must be 2 or more"),
        (["bench", "--tokens", "9999"], 1, "the context is 512"),
        (["download", "gpt"], 1, "'gpt' is not a known model"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], status: int, message: str) -> None:
    done = pyllama2c(*arguments)
    assert done.returncode == status
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_a_download_without_network_says_what_to_do(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYLLAMA2C_CACHE": str(tmp_path),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    done = pyllama2c("stories260K", env=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    for part in ("cannot download stories260K.bin", "huggingface.co", str(tmp_path), "SHA-256"):
        assert part in done.stderr


def heed_ctrl_c() -> None:
    """In a shell's background it is ignored, and so by what is started from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_130(tiny_path: Path) -> None:
    command = [sys.executable, "-m", "pyllama2c", "chat", str(tiny_path)]
    pipes = {"stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, cwd=DATA, preexec_fn=heed_ctrl_c) as process:
        assert process.stderr is not None
        process.stderr.read(5)  # "Enter"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=600)
    assert process.returncode == 130


def test_a_reader_that_goes_away(tiny_path: Path) -> None:
    done = shell("$PY $1 -n 0 -t 0 -i abc | head -c 1", tiny_path)
    assert done.stdout == "a" and "Error" not in done.stderr and "Traceback" not in done.stderr


def test_chat(tiny_path: Path) -> None:
    done = pyllama2c("chat", tiny_path, "-s", "3", input="be brief\nab\ncd\n")
    assert done.returncode == 0
    labels = "Enter system prompt (optional): User: Assistant: "
    assert done.stderr.startswith(labels)
    again = pyllama2c(tiny_path, "-m", "chat", "-s", "3", "-y", "be brief", input="ab\ncd\n")
    assert again.stdout == done.stdout


def test_chat_template() -> None:
    from pyllama2c.chat.llama2 import render

    assert render("hi") == "[INST] hi [/INST]"
    assert render("hi", "be brief") == "[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nhi [/INST]"


def test_chat_with_n_ends_there_as_in_run_c(tiny_path: Path) -> None:
    for steps, full in (("40", 40), ("96", 96), ("999", 96)):
        flags = ("-y", "", "-s", "1", "-n", steps)
        done = pyllama2c("chat", tiny_path, *flags, input="ab\n" * 60)
        assert done.returncode == 0
        assert done.stderr.endswith(f"the context of {full} positions is full\n")
        assert done.stderr.count("User: ") < 60


def test_info(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYLLAMA2C_THREADS", raising=False)
    facts = json.loads(pyllama2c("info", tiny_path, "--json").stdout)
    assert facts["config"]["dim"] == 48 and facts["config"]["shared_classifier"] is True
    assert facts["parameters"] == 48 * 300 + 2 * (3 * 48 * 80 + 2 * 48 * 48 + 2 * 48 * 24) + 5 * 48
    assert facts["memory"]["weights"] == facts["file_bytes"] == tiny_path.stat().st_size
    assert facts["memory"]["session_at_full_context"] > 2 * 4 * 2 * 24 * 96
    assert facts["threads"] == 1 and facts["kernels"] in ISAS
    text = pyllama2c("info", tiny_path).stdout
    assert "llama2.c v0, float32" in text and "dim 48, hidden_dim 80, 2 layers" in text
    assert "int8 in groups of" in pyllama2c("info").stdout


def test_bench(tiny_path: Path) -> None:
    arguments = ("--prompt", "5", "--tokens", "20", "--rounds", "2")
    result = json.loads(pyllama2c("bench", tiny_path, *arguments, "--json").stdout)
    assert result["rounds"] == 2 and result["decode_tokens_per_second"] > 0
    assert result["prefill_tokens_per_second"] > 0 and result["weights_gb_per_second"] > 0
    assert result["share_of_read_bandwidth"] > 0
    text = pyllama2c("bench", "--synthetic", "stories15M", *arguments, "--greedy").stdout
    assert text.startswith("synthetic stories15M: ") and "of the" in text


def shell(command: str, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A line of sh, in which $PY is the command, and $1 and so on are the words."""
    line = command.replace("$PY", f"{sys.executable} -m pyllama2c")
    arguments = ["sh", "-c", line, "sh", *map(str, words)]
    options = {"cwd": DATA, "capture_output": True, "text": True, **options}
    return subprocess.run(arguments, stdin=subprocess.DEVNULL, **options)


STORY = "$PY $1 -s 3 -n 20 -i ab"


def test_closed_and_full_streams(tiny_path: Path) -> None:
    told = shell(STORY, tiny_path).stdout
    assert len(told) > 5
    for closed in ("<&-", "2>&-", "2>/dev/full", "<&- 2>&-"):
        done = shell(f"{STORY} {closed}", tiny_path)
        assert (done.returncode, done.stdout) == (0, told), closed
    for command in (STORY, "$PY info $1", "$PY bench $1 --prompt 3 --tokens 3 --rounds 1"):
        for lost, reason in ((">&-", "Bad file descriptor"), (">/dev/full", "No space left")):
            done = shell(f"{command} {lost}", tiny_path)
            assert done.returncode == 1, done.stderr
            assert f"standard output: {reason}" in done.stderr
            assert done.stderr.count("\n") == 1
    assert shell(f"{STORY} >&- 2>&- <&-", tiny_path).returncode == 1
    done = shell("$PY quantize $1 /dev/stdout >&-", tiny_path)
    assert done.returncode == 1 and "/dev/stdout: No space left" in done.stderr
    ended = shell("$PY chat $1 -y '' <&-", tiny_path)
    assert (ended.returncode, ended.stdout) == (0, "") and "Traceback" not in ended.stderr
    assert shell("$PY --help >/dev/full").stderr.count("Traceback") == 0


def test_two_dashes_are_text_behind_a_flag_of_texts(tiny_path: Path) -> None:
    told = pyllama2c(tiny_path, "-s", "3", "-i", "--", "-n", "20")
    with Llama(tiny_path) as llama:
        prompt = llama.tokenizer.encode_prompt("--")
        assert told.stdout.startswith(llama.tokenizer.decode(prompt))
    done = pyllama2c(tiny_path, "-t", "--", "-n", "20")
    assert done.returncode == 2 and "expected one argument" in done.stderr
    for flag in ("--temperature", "--top-k", "--context", "--dtype", "--isa"):
        done = pyllama2c(tiny_path, f"{flag}=--", "-n", "20")
        assert done.returncode == 2 and f"{flag}: invalid " in done.stderr


def test_the_other_commands_mode(tiny_path: Path) -> None:
    one = pyllama2c("chat", tiny_path, "-m", "generate", "-s", "3", "-n", "20", "-i", "ab")
    assert one.returncode == 0 and one.stdout == shell(STORY, tiny_path).stdout


def test_prompts_that_fill_the_context(tiny_path: Path) -> None:
    """run.c forwards the prompt as far as its steps go, and shows it so far."""
    with Llama(tiny_path) as llama:
        for words, steps in ((200, 0), (200, 50), (30, 10)):
            prompt = " ".join(["abc"] * words)
            tokens = llama.tokenizer.encode(prompt, bos=True)
            limit = min(steps or 96, 96)
            assert len(tokens) > limit
            done = pyllama2c(tiny_path, "-i", prompt, "-n", steps, "-s", "1")
            assert done.returncode == 0
            assert done.stdout == llama.tokenizer.decode(tokens[: limit + 1]) + "\n"
            assert f"the prompt has {len(tokens)} tokens" in done.stderr
            assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("prompt", ["-Once", "-i", "-n", "-a=b", "--help", "-1e3"])
def test_prompts_are_any_text(tiny_path: Path, prompt: str) -> None:
    shown = Llama(tiny_path).tokenizer.encode(prompt, bos=True)
    for flag in ("-i", "--prompt"):
        done = pyllama2c(tiny_path, flag, prompt, "-n", len(shown) + 3, "-s", "1")
        assert done.returncode == 0 and done.stdout.startswith(prompt), done.stderr


def test_run_c_reads_its_flags_like_this(tiny_path: Path) -> None:
    def told(*flags: object) -> str:
        done = pyllama2c(tiny_path, "-n", "40", "-i", "ab", *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert told("-s", "-1") == told("--seed", 2**64 - 1)
    assert told("-s-1") == told("-s", "-1")
    for p in ("-0.1", "2", "-1e3"):
        assert told("-s", "5", "-p", p) == told("-s", "5", "-p", "0.9")
    assert told("-s", "5", "-t", "-2") == told("-s", "5", "-t", "0")
    assert told("-s", "5", "-n", "-7") == told("-s", "5", "-n", "0")
    assert len({told("-s", "0") for _ in range(3)}) > 1
    assert len({told("--seed", "-1") for _ in range(3)}) > 1


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_bench_computes_what_was_asked_for(tiny_path: Path, dtype: str) -> None:
    """Whatever ends a story elsewhere: here the likeliest token is one of the ends."""
    from pyllama2c.cli.bench import measure

    with Llama(tiny_path, dtype=dtype) as llama:
        counted: list[int] = []
        generate = llama.generate

        def counting(*arguments: Any, **options: Any) -> Any:
            story = generate(*arguments, **options)
            counted.append(len(story.read() and story.tokens))
            return generate(*arguments, **options)

        llama.tokenizer.ends = frozenset(range(300))
        llama.generate = counting  # type: ignore[method-assign]
        measure(llama, prompt=5, tokens=60, rounds=2, temperature=1.0)
        assert counted == [60] * 3
