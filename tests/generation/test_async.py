"""Stories and batches in an event loop, which no call of the engine blocks."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from pyllama2c import Generation, Llama
from pyllama2c._ffi import lib

CANCELS = {"l2c_session_cancel", "l2c_batch_cancel"}
"""set a flag, and wait for nothing"""


class Calls:
    """Stands before the engine in every module: who called what, and what is to happen then."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(lib, name)
        if not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            self.made.append((name, threading.get_ident()))
            self.before.get(name, int)()
            result = value(*arguments)
            self.after.get(name, int)()
            return result

        return call

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.made)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    for name, module in list(sys.modules.items()):
        if name.startswith("pyllama2c.") and getattr(module, "lib", None) is lib:
            monkeypatch.setattr(module, "lib", found)
    return found


async def pieces_of(story: Generation) -> list[str]:
    return [piece async for piece in story]


def test_the_same_stories(llama: Llama) -> None:
    """Many at once, whole or in pieces."""
    alone = [llama.generate("ab", seed=i, max_tokens=25) for i in range(8)]
    batch = [story.text for story in llama.generate_batch(["ab"] * 8, seed=0, max_tokens=25)]

    async def all_at_once() -> None:
        def stories() -> list[Generation]:
            return [llama.generate("ab", seed=i, max_tokens=25) for i in range(8)]

        pieces = await asyncio.gather(*map(pieces_of, stories()))
        assert pieces == [list(story) for story in alone]
        texts = await asyncio.gather(*(story.aread() for story in stories()))
        assert texts == [story.text for story in alone]
        told = llama.generate_batch(["ab"] * 8, seed=0, max_tokens=25)
        assert [story.text async for story in told] == batch

    asyncio.run(all_at_once())


def test_no_engine_call_on_the_loops_thread(llama: Llama, calls: Calls) -> None:
    async def tell() -> None:
        stories = [llama.generate("ab", seed=i, max_tokens=9, stop=["zz"]) for i in range(9)]
        batch = llama.generate_batch(["ab"] * 3, seed=1, max_tokens=9)
        calls.made.clear()
        first, whole, *others = stories
        async with aclosing(first):
            async for _ in first:
                break
        await whole.aread()
        await asyncio.gather(*map(pieces_of, others))
        assert len([story async for story in batch]) == 3

    asyncio.run(tell())
    assert calls.count("l2c_session_forward") > 8 and calls.count("l2c_batch_step") > 2
    loops = {name for name, thread in calls.made if thread == threading.get_ident()}
    assert loops <= CANCELS


@pytest.mark.parametrize(
    ("kind", "step", "cancel"),
    [
        ("pieces", "l2c_session_forward", "l2c_session_cancel"),
        ("whole", "l2c_session_forward", "l2c_session_cancel"),
        ("batch", "l2c_batch_step", "l2c_batch_cancel"),
    ],
)
def test_a_cancelled_task_stops_the_engine(
    llama: Llama, calls: Calls, kind: str, step: str, cancel: str
) -> None:
    """The call that it was cancelled in is the last, and makes no token."""

    async def tell() -> None:
        options: dict[str, Any] = {"seed": 1, "stop_tokens": []}
        story = llama.generate("ab", **options)
        batch = llama.generate_batch(["ab"] * 3, **options)
        loop, reached, cancelled = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def hold() -> None:
            if calls.count(step) == 5:
                loop.call_soon_threadsafe(reached.set)
                cancelled.wait()

        calls.before[step], calls.after[cancel] = hold, cancelled.set
        told: list[Any] = []

        async def listen() -> None:
            if kind == "whole":
                told.append(await story.aread())
            else:
                async for item in story if kind == "pieces" else batch:
                    told.append(item)

        task = asyncio.create_task(listen())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled.is_set()
        assert calls.count(step) == 5
        if kind != "batch":
            assert story.finish_reason == "cancelled" and len(story.tokens) == 4
            assert not llama._engine.sessions.in_use
        assert [item async for item in story] == [] or kind == "batch"
        assert [item async for item in batch] == [] or kind != "batch"

    asyncio.run(tell())
    assert llama.generate("ab", seed=1, max_tokens=3).read()  # the engine is as it was


def test_a_story_that_is_left(llama: Llama) -> None:
    """By `break`, `aclose` or a task that is gone: its session goes back."""

    async def leave() -> None:
        story = llama.generate("ab", seed=1)
        async for _ in story:
            break
        assert llama._engine.sessions.in_use
        del story
        assert not llama._engine.sessions.in_use
        closed = llama.generate("ab", seed=1)
        await anext(closed)
        await closed.aclose()
        assert closed.finish_reason == "cancelled" and not llama._engine.sessions.in_use
        assert [piece async for piece in closed] == []
        batch = llama.generate_batch(["ab"] * 5, seed=1)
        async with aclosing(batch):
            async for _ in batch:
                break
        assert [story async for story in batch] == []

    asyncio.run(leave())


def test_what_a_processor_raises_and_sees(llama: Llama) -> None:
    from contextvars import ContextVar

    request: ContextVar[str] = ContextVar("request")
    seen = []

    def broken(tokens: list[int], logits: object) -> None:
        seen.append(request.get())
        raise RuntimeError("mine")

    async def tell() -> None:
        request.set("seven")
        with pytest.raises(RuntimeError, match="mine"):
            await llama.generate("ab", logits_processor=broken).aread()
        with pytest.raises(RuntimeError, match="mine"):
            await anext(llama.generate("ab", logits_processor=broken))

    asyncio.run(tell())
    assert seen == ["seven"] * 2


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_a_processor_cannot_end_the_iteration(llama: Llama, kind: type[Exception]) -> None:
    def processor(tokens: list[int], logits: Any) -> None:
        raise kind

    with pytest.raises(RuntimeError, match=f"logits_processor raised {kind.__name__}"):
        list(llama.generate("ab", logits_processor=processor))

    async def pieces() -> list[str]:
        return [piece async for piece in llama.generate("ab", logits_processor=processor)]

    with pytest.raises(RuntimeError, match=f"logits_processor raised {kind.__name__}"):
        asyncio.run(pieces())


def test_a_batch_that_is_cancelled(llama: Llama) -> None:
    batch = llama.generate_batch(["ab"] * 5, seed=1, max_batch=1)
    next(batch)
    batch.cancel()
    assert list(batch) == []
    with llama.generate_batch(["ab"] * 5, seed=1, max_batch=1) as held:
        next(held)
    assert list(held) == []
