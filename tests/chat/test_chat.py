"""Talking on the terminal: what does not fit, what is no UTF-8, Ctrl-C; and what no chat is."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizer_keys import TEMPLATE, chat_model, sentencepiece_keys

from pyllama2c import ContextLengthError, Llama
from pyllama2c.chat.conversation import Conversation
from pyllama2c.chat.llama2 import Message
from pyllama2c.cli import chat
from pyllama2c.cli.main import main

FULL = "the context of 96 positions is full"


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell's script has what it puts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=[TEMPLATE, None], ids=["template", "llama2"])
def template(request: pytest.FixtureRequest) -> str | None:
    """Of the model's file; without one it is Llama 2's format."""
    if request.param is not None:
        pytest.importorskip("jinja2", reason="chat templates need the jinja2 package")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def chat_path(template: str | None, tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(chat_model(sentencepiece_keys(), template).build())
    return path


def talk(monkeypatch: pytest.MonkeyPatch, path: Path, data: bytes, *flags: str) -> int:
    stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    return main(["chat", str(path), "-y", "", "-s", "1", *flags])


def test_a_message_that_does_not_fit_is_told(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, tiny_path, b"ab" * 200 + b"\n") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "the message does not fit: it makes 216 tokens; the context" in err
    # the chat goes on, as if it had not been said
    assert talk(monkeypatch, tiny_path, b"ab" * 200 + b"\nab\n") == 1
    told, err = capsys.readouterr()
    assert told and "does not fit" in err
    assert talk(monkeypatch, tiny_path, b"ab\n") == 0
    assert capsys.readouterr().out == told


def test_what_was_said_before_is_counted(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # answers end at once
    monkeypatch.setattr(chat, "sampling", lambda _: {"seed": 1, "stop_tokens": range(512)})
    assert talk(monkeypatch, tiny_path, b"ab\n" + b"cd" * 90 + b"\n", "-n", "96") == 1
    err = capsys.readouterr().err
    assert "tokens before it; the context has 96 positions" in err


def test_a_line_that_is_not_utf8(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, tiny_path, b"caf\xe9\n", "-n", "40") == 0
    told = capsys.readouterr().out
    assert talk(monkeypatch, tiny_path, "caf\ufffd\n".encode(), "-n", "40") == 0
    assert capsys.readouterr().out == told
    # and from the shell, which has it in the arguments
    assert talk(monkeypatch, tiny_path, b"", "-i", "caf\udce9", "-n", "40") == 0
    assert capsys.readouterr().out == told


def test_ctrl_c_ends_the_answer(
    chat_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once in the middle of an answer, and the next message has an answer again."""
    monkeypatch.setattr(chat, "sampling", lambda _: {"seed": 1, "stop_tokens": ()})
    pieces: list[str] = []

    def write(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(chat, "write", write)
    assert talk(monkeypatch, chat_path, b"ab\ncd\n") == 0
    assert pieces.index("\n", 2) == 3  # nothing more of that answer
    assert len(pieces) > 5
    assert capsys.readouterr().err.count("Assistant: ") == 2


def test_ctrl_c_at_the_prompt_ends_the_chat(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def readline(self, *_: Any) -> str:
            signal.raise_signal(signal.SIGINT)
            return ""

    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["chat", str(tiny_path), "-y", ""]) == 130


def test_what_no_chat_is(template: str | None) -> None:
    """Refused in the same words, whichever format would say it."""
    with Llama.from_buffer(chat_model(sentencepiece_keys(), template).build()) as llama:
        for messages, words in (
            ([], "there are no messages; the last must be by 'user'"),
            ("hello", "messages is 'hello'; it must be a list of dicts"),
            ({"role": "user"}, "messages is {'role': 'user'}; it must be a list of dicts"),
            (["hello"], "message 0 is not a dict with a role and a content"),
            ([{"content": "hello"}], "message 0 is not a dict with a role and a content"),
        ):
            with pytest.raises(ValueError, match="^" + words.replace("{", r"\{")):
                llama.chat(messages)  # type: ignore[arg-type]
        with pytest.raises(ContextLengthError, match=r"prompt has .* the model's context is 256"):
            llama.chat([{"role": "user", "content": "ab" * 300}])


def test_a_message_may_be_asked_again(template: str | None) -> None:
    with Llama.from_buffer(chat_model(sentencepiece_keys(), template).build()) as llama:
        conversation = Conversation(llama, "be brief")
        first = conversation.ask("ab")
        conversation.ask("something else")
        assert conversation.ask("ab") == first
        answer = llama.generate(first, seed=1, max_tokens=4, stop_tokens=[])
        answer.read()
        conversation.take(answer)
        second = conversation.ask("cd")
        assert second[: len(first) + 4] == first + answer.tokens
        assert conversation.ask("cd") == second


def test_a_conversation_goes_on_from_turns_said_elsewhere(template: str | None) -> None:
    """The prompt is then that of Llama.chat, and grows from there."""
    turns: list[Message] = [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "cd"},
    ]
    with Llama.from_buffer(chat_model(sentencepiece_keys(), template).build()) as llama:
        for system in ("", "be brief"):
            talk = Conversation(llama, system, turns)
            asked = [*talk.messages, {"role": "user", "content": "ef"}]
            assert talk.ask("ef") == llama.chat(asked).prompt_tokens
            answer = llama.generate(talk.ask("ef"), seed=1, max_tokens=4, stop_tokens=[])
            answer.read()
            talk.take(answer)
            assert talk.turns[:2] == turns and len(talk.turns) == 4
            assert talk.messages[-4:] == talk.turns and talk.turns[2]["content"] == "ef"
            later = Conversation(llama, system, talk.turns, 2)
            assert later.messages == talk.messages
            prompt = [*talk.messages[: -len(talk.turns)], *talk.turns[2:]]
            asked = [*prompt, {"role": "user", "content": "gh"}]
            assert later.ask("gh") == llama.chat(asked).prompt_tokens
            assert talk.ask("gh")[: len(talk.tokens)] == talk.tokens
            assert talk.tokens[: len(answer.prompt_tokens)] == answer.prompt_tokens


def test_a_full_context_loses_its_oldest_turns(
    chat_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every message has an answer, and the system prompt is in every prompt."""
    monkeypatch.setattr(chat, "sampling", lambda _: {"seed": 1, "stop_tokens": ()})
    asked: list[tuple[list[int], int]] = []
    generate = Llama.generate

    def watching(self: Llama, prompt: list[int], **options: Any) -> Any:
        asked.append((prompt, options["max_tokens"]))
        return generate(self, prompt, **options)

    monkeypatch.setattr(Llama, "generate", watching)
    messages = "".join(f"m{i}\n" for i in range(30)).encode()
    # the later -y counts
    assert talk(monkeypatch, chat_path, messages, "-y", "be brief", "--max-tokens", "9") == 0
    err = capsys.readouterr().err
    assert len(asked) == err.count("Assistant: ") == 30
    with Llama(chat_path) as llama:
        context = llama.config.seq_len
        shown = ["".join(llama.tokenizer.decode(tokens)) for tokens, _ in asked]
    assert max(len(tokens) for tokens, _ in asked) > context // 2
    for i, (tokens, room) in enumerate(asked):
        assert len(tokens) <= context - context // 4 and room == 9
        assert "be brief" in shown[i] and f"m{i}" in shown[i]
    assert "m0" in shown[1] and "m0" not in shown[-1] and "m28" in shown[-1]
    assert err.count("oldest messages are dropped") == sum(
        len(b) < len(a) for (a, _), (b, _) in pairwise(asked)
    )
    # fewer than once in two turns: what stays is computed anew
    assert 0 < err.count("oldest messages are dropped") <= 10


def test_an_answer_that_fills_the_context_does_not_end_the_chat(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chat, "sampling", lambda _: {"seed": 1, "stop_tokens": ()})
    assert talk(monkeypatch, tiny_path, b"ab\ncd\nef\n") == 0
    out, err = capsys.readouterr()
    assert err.count("Assistant: ") == err.count(FULL) == 3
    # a message that could never fit changes nothing
    assert talk(monkeypatch, tiny_path, b"ab\n" + b"ab" * 200 + b"\ncd\nef\n") == 1
    again, err = capsys.readouterr()
    assert again == out and "does not fit: it makes" in err
