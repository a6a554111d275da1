"""On a terminal: editing, history, commands of a chat, Ctrl-C, colour."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c.cli.typed import history_path

pytest.importorskip("readline", reason="this Python has no readline")

PROMPT = "\nUser: "
UP, HOME, CTRL_C, CTRL_D = "\x1b[A", "\x01", "\x03", "\x04"
FLAGS = ("-s", "1", "--max-tokens", "3")


@contextmanager
def chatting(home: Path, model: Path, *flags: str, **environment: str) -> Iterator[Terminal]:
    with Terminal(home, "chat", model, *(flags or ("-y", "", *FLAGS)), **environment) as terminal:
        terminal.read_until(PROMPT)
        yield terminal


def say(terminal: Terminal, line: str) -> str:
    """Types a line; what is shown until the next prompt."""
    terminal.type(line + "\n")
    return terminal.read_until(PROMPT).removesuffix(PROMPT)


def leave(terminal: Terminal) -> None:
    """Ctrl-C at the prompt. Python notices it only while it waits for a key, or after a line: one
    that comes between the two would wait for the next key."""
    terminal.type(CTRL_C)
    terminal.type("\n")


def saved(terminal: Terminal, path: Path) -> list[dict[str, str]]:
    say(terminal, f"/save {path}")
    messages: list[dict[str, str]] = json.loads(path.read_text())
    return messages


def said(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command keeps it for the user whose folder is `tmp_path`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return history_path()


def test_lines_are_edited_and_remembered(tiny_path: Path, tmp_path: Path, history: Path) -> None:
    with chatting(tmp_path, tiny_path) as terminal:
        say(terminal, "ab")
        say(terminal, UP + HOME + "x")
        say(terminal, "ué\x7fv\x7f\x7f\x7fcd")  # backspaces, one a character
        assert said(saved(terminal, tmp_path / "f.json")) == ["ab", "xab", "cd"]
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    kept = ["ab", "xab", "cd", f"/save {tmp_path / 'f.json'}"]
    assert history.read_text().splitlines() == kept
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    with chatting(tmp_path, tiny_path) as terminal:
        say(terminal, UP * 3 + "!")
        assert said(saved(terminal, tmp_path / "g.json")) == ["xab!"]


def test_history_is_only_its_owners(tiny_path: Path, tmp_path: Path, history: Path) -> None:
    history.parent.mkdir(parents=True)
    history.write_bytes(b"ab\xff\n")
    history.chmod(0o644)
    with chatting(tmp_path, tiny_path, "-s", "1", "--max-tokens", "3", "-y", "") as terminal:
        say(terminal, UP)
        assert said(saved(terminal, tmp_path / "f.json")) == ["ab\ufffd"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_kept_is_no_reason_not_to_talk(
    tiny_path: Path, tmp_path: Path, history: Path
) -> None:
    history.parent.parent.mkdir(parents=True)
    history.parent.write_text("a file where a folder should be")
    with chatting(tmp_path, tiny_path) as terminal:
        say(terminal, "ab")
        say(terminal, UP)
        assert said(saved(terminal, tmp_path / "f.json")) == ["ab", "ab"]


def test_what_can_be_said_instead_of_a_message(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    with chatting(tmp_path, tiny_path) as terminal:
        helped = say(terminal, "/help")
        for name in ("/clear", "/system", "/save", "/load", "chat_history"):
            assert name in helped
        assert "There is no system prompt" in say(terminal, "/system")
        say(terminal, "/system be brief")
        assert "The system prompt is: be brief" in say(terminal, "/system")
        say(terminal, "ab")
        messages = saved(terminal, path)
        assert messages[0] == {"role": "system", "content": "be brief"}
        assert [m["role"] for m in messages[1:]] == ["user", "assistant"]
        say(terminal, "/clear")
        assert saved(terminal, tmp_path / "g.json") == messages[:1]
        say(terminal, '/system ""')
        assert "3 messages" in say(terminal, f"/load {path}")
        assert saved(terminal, tmp_path / "g.json") == messages
        say(terminal, "cd")
        assert said(saved(terminal, path)) == ["ab", "cd"]
        say(terminal, " /ef")
        assert said(saved(terminal, path)) == ["ab", "cd", " /ef"]


def test_a_file_of_somebody_else_does_no_harm(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(
        json.dumps(
            [
                {"role": "system", "content": "be \x1b[31mred\x9b0m", "tool_calls": []},
                {"role": "user", "content": "a\ud800b"},
                {"role": "assistant", "content": "\x1b]0;title\x07"},
            ]
        )
    )
    with chatting(tmp_path, tiny_path, NO_COLOR="1") as terminal:
        say(terminal, f"/load {path}")
        say(terminal, "/system")
        assert "be [31mred0m" in terminal.raw and "\x1b[31m" not in terminal.raw
        say(terminal, "cd")
        messages = saved(terminal, path)
    assert said(messages) == ["a?b", "cd"]
    assert messages[2] == {"role": "assistant", "content": "\x1b]0;title\x07"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sing", "unknown command /sing; known: /clear, /system"),
        ("/save", "/save needs a file name"),
        ("/save {}/none/f", "none/f: No such file"),
        ("/save {}/notes.txt", "is not a saved conversation"),
        ("/save {}", "is a folder"),
        ("/load {}/none", "none: No such file or directory"),
        ("/load {}/notes.txt", "notes.txt is not a saved conversation"),
        ("/load {}/model.bin", "is a llama2.c checkpoint"),
        ("/load {}/deep.json", "deep.json is not a saved conversation"),
        ("/load {}/user.json", "is by 'user', not 'assistant'"),
        ("/load {}/number.json", "number.json is not a saved conversation"),
        ("/load {}/words.json", "words.json is not a saved conversation"),
        ("/load {}", "Is a directory"),
    ],
)
def test_what_cannot_be_done_is_told_and_the_chat_goes_on(
    tiny_path: Path, tmp_path: Path, line: str, message: str
) -> None:
    contents: dict[str, Any] = {
        "notes.txt": "buy milk",
        "deep.json": "[" * 100_000,
        "user.json": json.dumps([{"role": "user", "content": "ab"}]),
        "number.json": "7",
        "words.json": '["ab", "cd"]',
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "model.bin").write_bytes(tiny_path.read_bytes())
    with chatting(tmp_path, tiny_path) as terminal:
        say(terminal, "ab")
        shown = say(terminal, line.format(tmp_path))
        assert message in shown.replace("\n", "") and "Traceback" not in shown
        assert said(saved(terminal, tmp_path / "f.json")) == ["ab"]
    assert (tmp_path / "notes.txt").read_text() == "buy milk"


def test_ctrl_c_at_the_prompt_leaves(tiny_path: Path, tmp_path: Path) -> None:
    with chatting(tmp_path, tiny_path) as terminal:
        leave(terminal)
        assert terminal.end() == 130 and "Traceback" not in terminal.raw


def test_ctrl_c_ends_an_answer_and_not_the_chat(tmp_path: Path) -> None:
    """The answer is longer than what a terminal holds before somebody reads it, so it cannot have
    ended by itself when Ctrl-C comes."""
    path = tmp_path / "model.bin"
    path.write_bytes(TinyLlama.random(Shape(seq_len=1 << 18)).v0())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file())
    with chatting(tmp_path, path, "-y", "", "-t", "0") as terminal:
        terminal.type("ab\n")
        terminal.read_until("Assistant: ")
        terminal.type(CTRL_C)
        terminal.read_until(PROMPT)
        messages = saved(terminal, tmp_path / "f.json")
        assert said(messages) == ["ab"] and len(messages) == 2
        assert len(messages[1]["content"]) < 1 << 17
        leave(terminal)
        assert terminal.end() == 130


def test_colour_is_for_terminals_and_those_who_want_it(tiny_path: Path, tmp_path: Path) -> None:
    def shown(*words: object, **environment: str) -> str:
        with Terminal(tmp_path, *words, **environment) as terminal:
            terminal.end()
            return terminal.raw

    story = (tiny_path, "-i", "ab", "-s", "3", "-n", "20")
    assert "\x1b[1mab\x1b[0m" in shown(*story)
    assert "\x1b[31m" in shown("no-such-model")
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b[" not in shown(*story, **environment)
        assert "\x1b[" not in shown("no-such-model", **environment)
    assert "\x1b[1m" in shown(*story, NO_COLOR="")
    with chatting(tmp_path, tiny_path) as terminal:
        assert "\x1b[36m" in terminal.raw
    with chatting(tmp_path, tiny_path, NO_COLOR="1") as terminal:
        assert "\x1b[36m" not in terminal.raw
