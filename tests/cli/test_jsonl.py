"""Stories as JSON Lines: nobody's file is harmed, and two runs' stories are not mixed."""

from __future__ import annotations

import fcntl
import json
import math
import os
import stat
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from environment import DATA, run_python
from gguf_files import model_file
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import Llama, StoryFileError
from pyllama2c.cli.jsonl import write_stories

OPTIONS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 12}
PROMPT = "ab"


def run(
    llama: Llama,
    path: Path,
    count: int = 3,
    prompt: str = PROMPT,
    seed: int | None = 11,
    **changes: Any,
) -> str:
    return write_stories(
        llama, path, count, os.fsencode(prompt), 8, {**OPTIONS, **changes, "seed": seed}
    )


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.fixture
def told(llama: Llama, tmp_path: Path) -> Path:
    """A file of three stories."""
    path = tmp_path / "stories.jsonl"
    run(llama, path)
    return path


def refused(llama: Llama, path: Path, message: str, **changes: Any) -> None:
    before = path.read_bytes()
    with pytest.raises(StoryFileError, match=message):
        run(llama, path, count=5, **changes)
    assert path.read_bytes() == before


# ---- Somebody's file ----


@pytest.mark.parametrize(
    "content",
    [
        b'{"precious": true}',
        b'{"precious": true}\n',
        b"one line\nand one without its end",
        b"precious",
        b"\n",
        b"{",
        b'{"index":0,"precious": true}',
        b"[" * 100_000,
        b'{"index": 0}\n{"index": ',
        b'{"index": {"precious": true}}',
        b'{"index": 0, "precious": true}',
        b'{"index": 0, "precious": tr',
        b'{"index": 0, "seed": 1, "prompt": "ab", "text": 7}',
        b'{"index": 0, "seed": 1, "prompt": "precious',
        b'{"index": 0, "seed": 1, "prompt": "ab", "text": 7}\n',
        b'{"index": -1, "seed": 1, "prompt": "ab", "text": ""}\n',
        b'{"index": 1.0, "seed": 1, "prompt": "ab", "text": ""}\n',
        bytes(1000),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(
    llama: Llama, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    refused(llama, path, "line 1: not a story")


def test_a_model_named_by_mistake(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.with_name("tokenizer.bin").write_bytes(tokenizer_file())
    for data, what in (
        (TinyLlama.random(Shape()).v0(), "a llama2.c checkpoint"),
        (model_file(TinyLlama.random(Shape())).build(), "a GGUF file"),
    ):
        path.write_bytes(data)
        with Llama(path, path.with_name("tokenizer.bin")) as llama:
            refused(llama, path, rf"model\.bin is {what}, not stories; it is left")
            refused(llama, path.with_name("tokenizer.bin"), "is a llama2.c tokenizer.bin")


def test_something_else_behind_our_stories(llama: Llama, told: Path) -> None:
    ours = told.read_bytes()
    for tail in (b"a note", b"a note\n", b'{"precious": true}', b'{"index": 3}\n', b"\n"):
        told.write_bytes(ours + tail)
        refused(llama, told, "line 4: not a story of pyllama2c; the file is left")
    told.write_bytes(b"note\n" + ours + b'{"index": 3, "se')
    refused(llama, told, "line 1")


def test_a_line_too_long_to_be_ours(
    llama: Llama, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning alone must not pass for a last line that was cut."""
    monkeypatch.setattr("pyllama2c.cli.story_records._LONGEST_LINE", 2000)
    told.write_bytes(told.read_bytes() + b'{"index": ' + b" " * 5000 + b"precious")
    refused(llama, told, "line 4")


# ---- Our file ----


def test_a_last_line_that_was_cut_is_told_again(llama: Llama, told: Path) -> None:
    run(llama, told, 5)
    whole = told.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, 5, 12, len(lines[-1]) - 2):
        told.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        assert run(llama, told, 5).startswith("1 stories, 4 already there")
        assert told.read_bytes() == whole
    # The first line of all: only where enough is left to see that it is ours.
    first = json.dumps(records(told)[0])
    told.write_text(first[:20])
    assert run(llama, told, 5).startswith("5 stories, 0 already there")
    assert sorted(r["index"] for r in records(told)) == [0, 1, 2, 3, 4]


def test_only_the_last_newline_is_missing(llama: Llama, told: Path) -> None:
    whole = told.read_bytes()
    told.write_bytes(whole[:-1])
    assert run(llama, told).startswith("0 stories, 3 already there")
    assert told.read_bytes() == whole
    told.write_bytes(whole[:-1])
    run(llama, told, 4)
    assert told.read_bytes().startswith(whole) and len(records(told)) == 4


def test_files_of_one_run_can_be_joined(llama: Llama, tmp_path: Path) -> None:
    whole, shard, joined = (tmp_path / name for name in ("whole", "shard", "joined"))
    run(llama, whole, 6)
    lines = whole.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines[3:]))
    # Shuffled, some twice, with the ends of lines that Windows writes.
    joined.write_bytes((shard.read_bytes() + b"".join(lines[:4])).replace(b"\n", b"\r\n"))
    before = joined.read_bytes()
    assert run(llama, joined, 6, seed=None).startswith("0 stories, 6 already there")
    assert run(llama, joined, 4).startswith("0 stories, 4 already there")  # others stay
    assert joined.read_bytes() == before
    assert run(llama, joined, 8).startswith("2 stories, 6 already there")
    assert joined.read_bytes().startswith(before)


def test_an_empty_file_and_a_new_one_are_the_same(llama: Llama, told: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    run(llama, tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == told.read_bytes()


# ---- Settings ----


def test_a_record_says_with_what_it_was_made(llama: Llama, told: Path) -> None:
    for index, record in enumerate(records(told)):
        settings = record.pop("settings")
        assert len(settings.pop("weights")) == len(settings.pop("tokenizer")) == 16
        assert settings == {"model": "model.bin", "dtype": "float32", **OPTIONS}
        story = llama.generate(PROMPT, seed=11 + index, **OPTIONS)
        assert record == {
            "index": index,
            "seed": 11 + index,
            "prompt": PROMPT,
            "text": story.read(),
            "tokens": len(story.tokens),
            "finish_reason": story.finish_reason,
        }


def test_biases_and_logprobs_in_a_record(llama: Llama, tmp_path: Path) -> None:
    """All of it JSON as others read it, which has no infinity; and such a file can be continued."""
    path, changes = tmp_path / "new.jsonl", {"logit_bias": {9: -math.inf, 5: 1.5}, "logprobs": 2}
    run(llama, path, **changes)
    run(llama, path, count=5, **changes)

    def refuse(word: str) -> None:
        raise ValueError(word)

    lines = path.read_bytes().splitlines()
    read = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [record["index"] for record in read] == [0, 1, 2, 3, 4]
    for record in read:
        assert record["settings"]["logit_bias"] == {"5": 1.5, "9": "-inf"}
        story = llama.generate(PROMPT, seed=record["seed"], **OPTIONS, **changes)
        assert story.read() == record["text"]
        assert record["logprobs"] == [
            {
                "token": told.token,
                "logprob": told.logprob,
                "top": [{"token": t, "logprob": p} for t, p in told.top],
            }
            for told in story.logprobs
        ]
    refused(llama, path, "is now {'5': 1.5}", logit_bias={5: 1.5}, logprobs=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "line 1: temperature was 1.0 and is now 0.0; name another file"),
        ({"top_p": 0.5}, "top_p was 0.9 and is now 0.5"),
        ({"max_tokens": 13}, "max_tokens was 12 and is now 13"),
        ({"min_p": 0.1}, "min_p was 0.0 and is now 0.1"),
        ({"top_k": 5, "temperature": 0.5}, "temperature was .*, top_k was 0 and is now 5"),
        ({"presence_penalty": 0.5}, "presence_penalty was 0.0 and is now 0.5"),
        ({"logit_bias": {5: 1.0}}, "logit_bias was None and is now {'5': 1.0}"),
        ({"logprobs": 2}, "logprobs was None and is now 2"),
        ({"stop": ["x"]}, r"stop was \[\] and is now \['x'\]"),
        ({"prompt": "abc"}, "the prompt was 'ab', and is now 'abc'"),
        ({"seed": 12}, "begun with seed 11"),
    ],
)
def test_other_settings_are_refused_by_name(
    llama: Llama, told: Path, changes: dict[str, Any], message: str
) -> None:
    refused(llama, told, message, **changes)
    run(
        llama, told, repetition_penalty=1.0, presence_penalty=0.0, logit_bias=None, top_k=0, stop=()
    )  # what is off is the same, said or not


def test_another_model_is_refused(tiny_path: Path, told: Path, tmp_path: Path) -> None:
    tokenizer = tiny_path.with_name("tokenizer.bin")
    other = tmp_path / "other.bin"
    other.write_bytes(TinyLlama.random(Shape(), seed=5).v0())
    with Llama(other, tokenizer) as llama:
        refused(llama, told, "model was 'model.bin' and is now 'other.bin'")
    other.write_bytes(tiny_path.read_bytes())
    with Llama(other, tokenizer) as llama:  # a copy is the same model
        run(llama, told)
    with Llama(tiny_path, dtype="int8") as llama:
        refused(llama, told, "line 1: dtype was 'float32' and is now 'int8'; name")
    with Llama(tiny_path, kv_dtype="float16") as llama:
        refused(llama, told, "kv_dtype was 'float32' and is now 'float16'")
    with Llama(tiny_path, threads=2, isa="scalar", speculative=True) as llama:
        run(llama, told)  # which change no story
    pieces = tmp_path / "tokenizer.bin"
    pieces.write_bytes(tokenizer.read_bytes().replace(b"abc", b"abd"))
    with Llama(tiny_path, pieces) as llama:
        refused(llama, told, "tokenizer was '")


def test_runq_is_named(tmp_path: Path) -> None:
    path, told = tmp_path / "model.bin", tmp_path / "told"
    path.write_bytes(TinyLlama.random(Shape(dim=64, hidden_dim=96, group_size=32)).v2())
    path.with_name("tokenizer.bin").write_bytes(tokenizer_file())
    with Llama(path) as llama:
        run(llama, told)
    with Llama(path, isa="runq") as llama:
        refused(llama, told, "line 1: isa was None and is now 'runq'; name")


def test_stories_of_two_runs_in_one_file(llama: Llama, told: Path, tmp_path: Path) -> None:
    run(llama, tmp_path / "b", seed=20)
    told.write_bytes(told.read_bytes() + (tmp_path / "b").read_bytes())
    refused(llama, told, "line 4: its stories begin with seed 20, those before with 11", seed=None)


def test_a_file_of_an_older_release(llama: Llama, told: Path) -> None:
    old = records(told)[0]
    del old["settings"]
    told.write_text(json.dumps(old) + "\n")
    refused(llama, told, "line 1 does not say how it was made")


# ---- Prompts that are not UTF-8 ----


def test_the_bytes_of_a_prompt_that_is_not_utf8(llama: Llama, tmp_path: Path) -> None:
    path, prompt = tmp_path / "f", os.fsdecode(b"caf\xe9")
    run(llama, path, 2, prompt)
    for record in records(path):
        assert (
            record["prompt"] == "caf\ufffd" and bytes.fromhex(record["prompt_bytes"]) == b"caf\xe9"
        )
        story = llama.generate(b"caf\xe9", seed=record["seed"], **OPTIONS)
        assert record["text"] == story.read()
    assert run(llama, path, 3, prompt).startswith("1 stories, 2 already there")
    refused(llama, path, "the prompt was", prompt="caf\ufffd")
    refused(llama, path, "the prompt was", prompt=os.fsdecode(b"caf\xe8"))


def test_a_model_whose_name_is_not_utf8(tiny_path: Path, tmp_path: Path) -> None:
    model = tmp_path / os.fsdecode(b"mod\xe8le.bin")
    model.write_bytes(tiny_path.read_bytes())
    with Llama(model, tiny_path.with_name("tokenizer.bin")) as llama:
        run(llama, tmp_path / "f")
    assert records(tmp_path / "f")[0]["settings"]["model"] == "mod\ufffdle.bin"


# ---- Streams ----


def command(tiny_path: Path, target: str | bytes, *more: str) -> list[str | bytes]:
    words = ["-m", "pyllama2c", str(tiny_path), "-N", "3", "-s", "11", "-n", "20"]
    return [*words, *more, "--jsonl", target]


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
def test_standard_output(tiny_path: Path, tmp_path: Path, target: str) -> None:
    shown = run_python(*command(tiny_path, target, "-i", "ab"))
    assert shown.returncode == 0, shown.stderr
    streamed = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [r["seed"] for r in sorted(streamed, key=lambda r: r["index"])] == [11, 12, 13]
    assert "3 stories, 0 already there" in shown.stderr
    run_python(*command(tiny_path, str(tmp_path / "f"), "-i", "ab"))
    assert records(tmp_path / "f") == streamed
    # Into a file, which a second run finds as it would under its own name.
    with (tmp_path / "g").open("ab") as out:
        for there in (
            "3 stories, 0 already",
            "0 stories, 3 already" if target != "-" else "3 stories",
        ):
            shown = run_python(
                *command(tiny_path, target, "-i", "ab"),
                stdout=out, capture_output=False, stderr=subprocess.PIPE,
            )  # fmt: skip
            assert there in shown.stderr


def test_a_reader_that_leaves(tiny_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    shown = run_python(
        *command(tiny_path, "-"), stdout=writing, capture_output=False, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert shown.returncode == 141 and shown.stderr == ""


def test_a_named_pipe(llama: Llama, tmp_path: Path) -> None:
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    run(llama, path)
    reader.join(timeout=600)
    run(llama, tmp_path / "f")
    assert got == [(tmp_path / "f").read_bytes()] and stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_device(tiny_path: Path) -> None:
    shown = run_python(*command(tiny_path, "/dev/full"))
    assert shown.returncode == 1
    assert shown.stderr == "pyllama2c: error: /dev/full: No space left on device\n"
    with open("/dev/full", "wb") as full:
        shown = run_python(
            *command(tiny_path, "-"), stdout=full, capture_output=False, stderr=subprocess.PIPE
        )
    assert shown.returncode == 1
    assert shown.stderr == "pyllama2c: error: standard output: No space left on device\n"


# ---- What cannot be written ----


def test_a_disk_that_fills_up_leaves_whole_lines(tiny_path: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for it."""
    path = tmp_path / "f"
    code = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
runpy.run_module("pyllama2c", run_name="__main__", alter_sys=True)
"""
    words = command(tiny_path, str(path), "-i", "ab")[2:]
    shown = run_python("-c", code, *words)
    assert shown.returncode == 1, shown.stderr
    assert shown.stderr == f"pyllama2c: error: {path}: File too large\n"
    assert path.read_bytes().count(b"\n") == len(records(path)) == 1
    shown = run_python(*command(tiny_path, str(path), "-i", "ab"))
    assert "2 stories, 1 already there" in shown.stderr


def test_targets_that_cannot_be_opened(llama: Llama, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as folder:
        run(llama, tmp_path)
    assert os.fspath(folder.value.filename) == str(tmp_path)
    with pytest.raises(FileNotFoundError) as missing:
        run(llama, tmp_path / "nowhere" / "f")
    assert os.fspath(missing.value.filename) == str(tmp_path / "nowhere" / "f")


@pytest.fixture
def other_run(told: Path) -> Iterator[None]:
    with told.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("other_run")
def test_two_runs_at_once(llama: Llama, told: Path) -> None:
    refused(llama, told, "is being written by another pyllama2c")


def test_no_progress_bar_in_a_log(tiny_path: Path, tmp_path: Path) -> None:
    shown = run_python(*command(tiny_path, str(tmp_path / "f")))
    assert shown.returncode == 0 and "\r" not in shown.stderr
    assert len(shown.stderr.splitlines()) == 2


def test_a_progress_bar_on_a_terminal(tiny_path: Path, tmp_path: Path) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    words = [sys.executable, *command(tiny_path, str(tmp_path / "f"))]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=slave, cwd=DATA)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # the terminal has closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait(timeout=600) == 0 and b"3/3" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-N", "99999999999999999999"], "-N is 99999999999999999999; it must be 1 to 10000000"),
        (["-N", "0"], "-N is 0"),
        (["-N", "3", "--batch", "0"], "--batch is 0; it must be 1 to 256"),
        (["-N", "3", "--temperature", "-1"], "temperature is -1.0"),
        (["-N", "3", "--logprobs", "65"], "logprobs is 65; it must be 0 to 64"),
        (["-N", "3", "--logit-bias", "99999=1"], "a key of logit_bias is 99999; it must be"),
    ],
)
def test_numbers_are_checked_before_the_file_is_made(
    flags: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "new.jsonl"
    done = run_python("-m", "pyllama2c", "generate", "--jsonl", str(path), *flags, check=False)
    assert (done.returncode, path.exists()) == (1, False) and message in done.stderr
