"""`--shard i/n`: parts of a run that other machines tell are the run itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from environment import DATA, run_python

from pyllama2c import Llama, StoryFileError
from pyllama2c.cli.jsonl import write_stories
from pyllama2c.cli.shard import Shard

OPTIONS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 30, "stop": ["d", "w"]}


def run(
    llama: Llama, path: Path, count: int, shard: Shard | None = None, batch: int = 8, seed: int = 5
) -> str:
    return write_stories(llama, path, count, b"ab", batch, {**OPTIONS, "seed": seed}, shard)


def by_index(*paths: Path) -> list[bytes]:
    lines = [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    return sorted(lines, key=lambda line: json.loads(line)["index"])


@pytest.fixture(scope="module")
def whole(module_llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories 0 to 39 in one file; of several lengths, so that they end in another order."""
    path = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    run(module_llama, path, 40)
    assert by_index(path) != path.read_bytes().splitlines(keepends=True)
    return path


@pytest.fixture(scope="module")
def module_llama(tiny_path: Path) -> Iterator[Llama]:
    with Llama(tiny_path) as llama:
        yield llama


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_shards_sorted_by_index_are_the_whole(
    module_llama: Llama, whole: Path, tmp_path: Path, n: int
) -> None:
    paths = [tmp_path / f"{i}.jsonl" for i in range(n)]
    for i, path in enumerate(paths):
        told = run(module_llama, path, 40, Shard(i, n), batch=1 + i % 5)
        assert told.startswith(f"{len(range(i, 40, n))} stories, 0 already there")
    assert by_index(*paths) == by_index(whole)
    if shutil.which("sort"):  # as the help says
        joined = subprocess.run(["sort", "-nk2,2", *paths], capture_output=True, check=True)
        assert joined.stdout == b"".join(by_index(whole))


def test_the_command_line_and_xargs(tiny_path: Path, tmp_path: Path) -> None:
    """Processes side by side, whose standard input is whatever they were given."""
    words = [sys.executable, "-m", "pyllama2c", str(tiny_path), "-N", "9", "-s", "3", "-n", "20"]
    words += ["-i", "ab"]
    subprocess.run([*words, "--jsonl", tmp_path / "whole"], check=True, cwd=DATA)
    numbered = [*words, "--shard", "{}/3", "--jsonl", str(tmp_path / "part{}")]
    subprocess.run(
        ["xargs", "-P", "2", "-I{}", *numbered], input=b"0\n1\n2\n", check=True, cwd=DATA
    )
    parts = [tmp_path / f"part{i}" for i in range(3)]
    assert by_index(*parts) == by_index(tmp_path / "whole")
    streamed = run_python(*words[1:], "--shard", "2/3", "--jsonl", "-")
    assert streamed.stdout.encode() == parts[2].read_bytes()


def test_a_killed_shard_is_completed(tiny_path: Path, tmp_path: Path) -> None:
    path, once = tmp_path / "killed", tmp_path / "once"
    words = ["-m", "pyllama2c", str(tiny_path), "-N", "1000", "-s", "3", "-i", "ab"]
    words += ["--shard", "1/2", "--jsonl"]
    process = subprocess.Popen([sys.executable, *words, str(path)], cwd=DATA)
    while process.poll() is None and not (path.exists() and path.stat().st_size > 20_000):
        sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run_python(*words, str(once))
    lines = path.read_bytes().count(b"\n")
    assert 0 < lines < 500
    again = run_python(*words, str(path))
    assert f"{500 - lines} stories, {lines} already there" in again.stderr
    assert path.read_bytes() == once.read_bytes()


def test_wherever_it_was_cut(module_llama: Llama, tmp_path: Path) -> None:
    path = tmp_path / "f"
    run(module_llama, path, 40, Shard(3, 7))
    told = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(told) if byte == 10]
    for end in (0, ends[0] - 1, *ends, *(e + 30 for e in ends[:-1]), *(e - 2 for e in ends)):
        path.write_bytes(told[:end])
        run(module_llama, path, 40, Shard(3, 7), batch=2)
        assert path.read_bytes() == told
    run(module_llama, path, 60, Shard(3, 7))  # a longer run has the same stories, and more
    assert path.read_bytes().startswith(told) and path.read_bytes().count(b"\n") == 9


@pytest.mark.parametrize(
    ("made", "resumed", "message"),
    [
        (Shard(1, 7), Shard(2, 7), "line 1: story 1 where shard 2/7 has story 2: another shard's"),
        (Shard(0, 4), Shard(0, 2), "line 2: story 4 where shard 0/2 has story 2"),
        (Shard(0, 2), Shard(0, 4), "line 2: story 2 where shard 0/4 has story 4"),
        (Shard(1, 7), Shard(1, 8), "line 2: story 8 where shard 1/8 has story 9"),
        (None, Shard(0, 7), "where shard 0/7 has story"),
    ],
)
def test_the_file_of_another_shard_is_refused(
    module_llama: Llama, tmp_path: Path, made: Shard | None, resumed: Shard, message: str
) -> None:
    path = tmp_path / "f"
    run(module_llama, path, 40, made)
    before = path.read_bytes()
    with pytest.raises(StoryFileError, match=message):
        run(module_llama, path, 40, resumed)
    with pytest.raises(StoryFileError, match="begun with seed 5"):
        run(module_llama, path, 40, made, seed=6)
    assert path.read_bytes() == before


def test_joined_shards_are_completed_without_the_flag(
    module_llama: Llama, whole: Path, tmp_path: Path
) -> None:
    """A machine that is lost: the others' lines are a file of the whole run."""
    path = tmp_path / "f"
    run(module_llama, path, 40, Shard(0, 2))
    assert run(module_llama, path, 40).startswith("20 stories, 20 already there")
    assert by_index(path) == by_index(whole)


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--shard", "7/7", "-s", "1"], 2, "'7/7' is not a shard, i/n with 0 <= i < n"),
        (["--shard", "0/0", "-s", "1"], 2, "'0/0' is not a shard"),
        (["--shard=-1/7", "-s", "1"], 2, "'-1/7' is not a shard"),
        (["--shard", "3", "-s", "1"], 2, "'3' is not a shard"),
        (["--shard", "1/2/3", "-s", "1"], 2, "is not a shard"),
        (["--shard", " 1/2", "-s", "1"], 2, "is not a shard"),
        (["--shard", "١/2", "-s", "1"], 2, "is not a shard"),
        (["--shard", "0/" + "9" * 5000, "-s", "1"], 2, "is not a shard"),
        (["--shard", "0/7"], 1, "--shard needs --seed, the same one for all shards; 0 draws"),
        (["--shard", "0/7", "-s", "0"], 1, "--shard needs --seed"),
        (["--shard", "0/7", "--seed", "-1"], 1, "--shard needs --seed"),
    ],
)
def test_wrong_values(flags: list[str], status: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    done = run_python("-m", "pyllama2c", "-N", "3", "--jsonl", os.fspath(path), *flags, check=False)
    assert (done.returncode, path.exists()) == (status, False) and message in done.stderr


def test_a_shard_of_one_story() -> None:
    done = run_python("-m", "pyllama2c", "--shard", "0/7", "-s", "1", "-i", "a", check=False)
    assert done.returncode == 1 and "-N and --jsonl belong together" in done.stderr
