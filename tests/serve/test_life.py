"""Clients that leave, wait, or do not read; engines that fail; shutdown."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import signal
import socket
import struct
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from http_server import Running, decoded, served_by_command, serving, wait
from tiny import Shape, TinyLlama, tokenizer_file
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from pyllama2c import Llama
from pyllama2c._ffi import lib
from pyllama2c.engine.memory import Limit
from pyllama2c.errors import DeviceError, OutOfMemoryError
from pyllama2c.generation.batch import Completion
from pyllama2c.generation.request import Request
from pyllama2c.serve import streams
from pyllama2c.serve.job import Job, Story
from pyllama2c.serve.run import _Protocol
from pyllama2c.serve.service import Limits, Service

PROMPT = "Once upon a time"
LONG: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 500, "ignore_eos": True}


def whole_story(llama: Llama, seed: int, max_tokens: int) -> str:
    return llama.generate(PROMPT, seed=seed, max_tokens=max_tokens, top_p=1.0).read()


def post(server: Running, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=None)


def request(body: bytes) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def read_all(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def streamed(server: Running, body: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    return httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=None)


# ---- Clients that leave ----


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_cancels_its_stories(storyteller: Llama, streamed: bool) -> None:
    """llama.cpp 24496, 13262, 15232."""
    with serving(storyteller, slots=2) as server:
        before = server.metric("requests_cancelled_total")
        data = json.dumps(LONG | {"n": 16, "stream": streamed}).encode()
        connection = server.raw(request(data))
        wait(lambda: server.service.engine.n_stories == 2)
        connection.close()
        server.wait_until_idle()
        assert server.metric("requests_cancelled_total") == before + 1
        assert server.metric("tokens_predicted_total") < 16 * 500
        server.ok("/v1/completions", prompt=PROMPT, max_tokens=2)


def test_a_client_that_leaves_the_queue(storyteller: Llama) -> None:
    with serving(storyteller, slots=1) as server, ThreadPoolExecutor() as pool:
        with server.paused():
            first = pool.submit(post, server, **LONG)
            wait(lambda: server.metric("requests_processing") == 1)
            connection = server.raw(request(json.dumps(LONG).encode()))
            wait(lambda: server.metric("requests_deferred") == 1)
            connection.close()
            wait(lambda: server.metric("requests_deferred") == 0)
        assert first.result().status_code == 200
        server.wait_until_idle()
        assert server.metric("requests_cancelled_total") == 1
        assert server.metric("tokens_predicted_total") == 500


def test_a_client_that_does_not_read(storyteller: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllama2c.serve.job.MAX_UNREAD", 20_000)
    with serving(storyteller, slots=16) as server:
        body = LONG | {"n": 16, "stream": True, "return_token_ids": True}
        data = json.dumps(body).encode()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request(data))
        wait(lambda: server.metric("requests_cancelled_total") == 1)
        server.wait_until_idle()
        with connection:
            assert not read_all(connection).endswith(b"0\r\n\r\n")
        server.ok("/v1/completions", prompt=PROMPT, max_tokens=2)


def test_comments_while_nothing_comes(storyteller: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_COMMENT_SECONDS", 0.01)
    with serving(storyteller, slots=1) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(post, server, **LONG, n=4)
        wait(lambda: server.metric("requests_processing") == 1)
        body = {"prompt": [PROMPT] * 2, "max_tokens": 2, "stream": True}
        # In turn with the four: there is silence before its second story.
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=None
        ) as answer:
            lines = list(answer.iter_lines())
        assert first.result().status_code == 200
    assert ": waiting" in lines
    assert list(decoded(iter(lines)))[-1] == "[DONE]"


# ---- Load ----


def test_too_many_requests(storyteller: Llama) -> None:
    limits = Limits(queued=2)
    with serving(storyteller, slots=1, limits=limits) as server, ThreadPoolExecutor(16) as pool:
        with server.paused():
            answers = [pool.submit(post, server, **LONG)]
            wait(lambda: server.metric("requests_processing") == 1)
            answers += [pool.submit(post, server, **LONG) for _ in range(2)]
            wait(lambda: server.metric("requests_deferred") == 2)
            for _ in range(5):
                refused = post(server, **LONG)
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [each.result().status_code for each in answers] == [200] * 3
        assert server.metric("requests_rejected_total") == 5
        server.wait_until_idle()


def test_waiting_and_requests_have_limits(storyteller: Llama) -> None:
    limits = Limits(request=2)
    with serving(storyteller, slots=1, limits=limits) as server, ThreadPoolExecutor() as pool:
        with server.paused():
            first = pool.submit(post, server, **LONG)
            wait(lambda: server.metric("requests_processing") == 1 or first.done())
            server.service.limits = replace(limits, wait=0.1)  # which the first need not keep
            assert post(server, **LONG).status_code == 429
            assert first.result().status_code == 503
            assert first.result().json()["error"]["code"] == "request_timeout"
        server.wait_until_idle()
        server.service.limits = Limits()
        assert post(server, prompt=PROMPT, max_tokens=2).status_code == 200


def test_a_long_prompt_delays_nobody(storyteller: Llama) -> None:
    """llama.cpp 6607, 29175; vLLM 10774: counted in sweeps, not seconds."""
    with serving(storyteller) as server, ThreadPoolExecutor() as pool:
        rng = np.random.default_rng(0)
        prompts = rng.integers(3, 2048, (16, 500)).tolist()
        long = pool.submit(post, server, prompt=prompts, max_tokens=1, ignore_eos=True)
        for seed in range(8):
            chunks = server.events("/v1/completions", prompt="x", seed=seed, max_tokens=3)
            assert chunks[-1] == "[DONE]"
        assert long.result().status_code == 200
        sweeps = server.metric("first_token_sweeps_sum")
        assert server.metric("first_token_sweeps_count") == 8
        assert sweeps <= 8 * 5


def test_a_large_request_delays_no_other(storyteller: Llama) -> None:
    """Its stories take turns with a request that comes after it."""
    with serving(storyteller, slots=2) as server, ThreadPoolExecutor() as pool:
        body = {"prompt": ["x"] * 64, "n": 4, "max_tokens": 10, "ignore_eos": True}
        large = pool.submit(post, server, **body)
        wait(lambda: server.metric("requests_processing") == 1)
        server.ok("/v1/completions", prompt="x", max_tokens=2)
        assert not large.done()
        assert large.result().status_code == 200


# ---- Engines that fail ----


def test_a_model_that_computes_nan(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its stories fail, one by one; the server goes on."""
    tiny = TinyLlama.random(Shape())
    tiny.weights["final_norm"][:] = np.nan
    path = tmp_path / "model.bin"
    path.write_bytes(tiny.v0())
    path.with_name("tokenizer.bin").write_bytes(tokenizer_file())
    with Llama(path) as llama, serving(llama, slots=2) as server:
        for _ in range(3):
            for streamed in (False, True):
                answer = post(server, prompt="ab", stream=streamed)
                assert answer.status_code == 500, answer.text
                assert "NaN" in answer.json()["error"]["message"]
                assert answer.headers["x-should-retry"] == "false"
        assert server.http.get("/health").json() == {"status": "ok"}
        server.wait_until_idle()
    assert not caplog.records


def test_an_engine_that_fails_in_the_middle(storyteller: Llama) -> None:
    """A sweep that fails ends its stories with an error event; those that wait are told by a new
    batch, as is what comes later."""
    with serving(storyteller, slots=2) as server, ThreadPoolExecutor() as pool:
        with contextlib.ExitStack() as stack:
            resume = stack.enter_context(contextlib.ExitStack())
            resume.enter_context(server.paused())
            body = LONG | {"n": 2, "seed": 1, "stream": True}
            url = f"{server.url}/v1/completions"
            answer = stack.enter_context(httpx.stream("POST", url, json=body, timeout=None))
            wait(lambda: server.metric("requests_processing") == 1)
            waiting = pool.submit(post, server, prompt=PROMPT, seed=5, max_tokens=30)
            wait(lambda: server.metric("requests_deferred") == 1)
            batch = server.service.engine._batch
            assert batch is not None
            lib.l2c_batch_cancel(batch._handle)
            resume.close()
            events = list(decoded(answer.iter_lines()))
        assert events[-1]["error"]["type"] == "server_error"
        assert "Cancelled" in events[-1]["error"]["message"]
        (choice,) = waiting.result().json()["choices"]
        assert choice["text"] == whole_story(storyteller, 5, 30)
        (choice,) = server.ok("/v1/completions", prompt=PROMPT, seed=6, max_tokens=30)["choices"]
        assert choice["text"] == whole_story(storyteller, 6, 30)
        server.wait_until_idle()


def test_memory_runs_out_as_a_story_begins(
    storyteller: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told so at once, and the next request is answered."""

    def no_memory(*_: Any, **__: Any) -> None:
        raise OutOfMemoryError("no memory for a story")

    with serving(storyteller, slots=2, limits=Limits(request=5)) as server:
        with monkeypatch.context() as patch:
            patch.setattr("pyllama2c.generation.batch.Batch.add", no_memory)
            failed = post(server, prompt=PROMPT, n=2)
        assert failed.status_code == 500, failed.text
        assert "no memory for a story" in failed.json()["error"]["message"]
        assert post(server, prompt=PROMPT, max_tokens=5).status_code == 200
        server.wait_until_idle()


def test_health_after_a_card_is_lost(storyteller: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it said to be well while no batch can be opened; a story that is told mends that."""

    def fails(error: Exception) -> Any:
        def call(*_: Any, **__: Any) -> None:
            raise error

        return call

    with serving(storyteller, slots=2) as server:

        def health() -> tuple[int, str]:
            answer = server.http.get("/health")
            return answer.status_code, answer.json().get("error", {}).get("message", "")

        with monkeypatch.context() as patch:
            lost = DeviceError("the card is lost to this process")
            patch.setattr("pyllama2c.generation.batch.Batch.step", fails(lost))
            assert health() == (200, "")
            assert post(server, prompt=PROMPT).status_code == 500
            assert health() == (503, f"the engine cannot compute: {lost}")
        with monkeypatch.context() as patch:
            full = OutOfMemoryError("no memory for a batch")
            patch.setattr(server.service.engine, "_new_batch", fails(full))
            assert post(server, prompt=PROMPT).status_code == 500
            assert health() == (503, f"the engine cannot compute: {full}")
        assert post(server, prompt=PROMPT).status_code == 200
        assert health() == (200, "")
        with monkeypatch.context() as patch:
            scored = {"echo": True, "logprobs": 1, "max_tokens": 0}
            patch.setattr("pyllama2c.engine.session.Session.feed", fails(lost))
            assert post(server, prompt=PROMPT, **scored).status_code == 500
            assert health()[0] == 503
        assert post(server, prompt=PROMPT, **scored).status_code == 200
        assert health() == (200, "")
        server.service.engine.stop()
        assert health() == (503, "the engine cannot compute: its thread has ended")


def test_calls_outside_the_batch_take_turns(
    storyteller: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a whole context's keys and values: of any number, two at a time."""
    gate, running, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def held(*_: Any) -> dict[str, Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait()
        with lock:
            running -= 1
        return {}

    monkeypatch.setattr("pyllama2c.serve.receipts.verify", held)
    monkeypatch.setattr("pyllama2c.serve.explain.next_token", held)
    limits = Limits(wait=1.5, request=1.5)
    with serving(storyteller, limits=limits) as server, ThreadPoolExecutor(8) as pool:
        url = f"{server.url}/api"
        asked = [
            pool.submit(httpx.post, f"{url}/{path}", json={}, timeout=None)
            for path in ("verify", "next") * 4
        ]
        answers = [each.result() for each in asked]
        assert sorted(answer.status_code for answer in answers) == [429] * 6 + [503] * 2
        assert all(a.headers["retry-after"] for a in answers if a.status_code == 429)
        server.ok("/v1/completions", prompt=PROMPT, max_tokens=2)
        gate.set()  # they are given up, but have the turns until they end
        wait(lambda: running == 0)
        assert most == 2
        assert server.ok("/api/verify") == {}


# ---- Shutdown ----


def test_draining(storyteller: Llama) -> None:
    """Streams under way end, new requests are refused, and so is /health."""
    with serving(storyteller, slots=2) as server:
        body = LONG | {"n": 2, "seed": 1, "stream": True}
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=None
        ) as answer:
            lines = answer.iter_lines()
            with server.paused():
                next(lines)
                server.server.stop_threadsafe()
                wait(lambda: server.service.draining)
                health = server.http.get("/health")
                assert health.status_code == 503
                assert health.json()["error"]["type"] == "unavailable_error"
                assert post(server, prompt="x").status_code == 503
            assert list(decoded(lines))[-1] == "[DONE]"


def test_fewer_slots_where_memory_is_short(
    storyteller: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = storyteller._engine
    options = engine.session_options
    twenty = lib.l2c_session_bytes(engine.model, 20, options.context, options.kv, engine.threads)
    short = [Limit("memory", "left", twenty)]
    monkeypatch.setattr("pyllama2c.serve.engine.limits", lambda: short)
    assert Service(storyteller).engine.slots == 16
    with pytest.raises(OutOfMemoryError, match="no memory for 32 stories of 512 positions"):
        Service(storyteller, slots=32)


def test_a_second_signal_ends_streams(storyteller: Llama) -> None:
    with serving(storyteller, slots=2) as server:
        body = LONG | {"prompt": [PROMPT] * 64, "n": 16, "stream": True}
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=None
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.server.stop_threadsafe()
            wait(lambda: server.service.draining)
            server.server.stop_threadsafe()
            last = list(decoded(lines))[-1]
            assert last["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_with_open_streams(number: int) -> None:
    """uvicorn 451: it hangs on streams that nobody reads to their end."""
    with served_by_command("--slots", "2", "--drain-timeout", "0.2") as (process, url, lines):
        body = LONG | {"prompt": [PROMPT] * 64, "n": 16, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=None) as answer:
            stream = answer.iter_lines()
            next(stream)
            process.send_signal(number)
            last = list(decoded(stream))[-1]
            assert last["error"]["code"] == "shutting_down"
        assert process.wait(600) == 0
    assert len(lines) == 1, lines


def test_the_first_line_says_where(storyteller: Llama) -> None:
    with served_by_command("--slots", "3", "--alias", "teller") as (process, url, lines):
        assert lines == [f"teller: int8, 3 slots, {url}\n"]
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "teller"
        assert httpx.get(f"{url}/props").json()["total_slots"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 0


def test_memory_does_not_grow(
    storyteller: Llama, resident_kilobytes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), serving(storyteller, slots=8) as server:

        def rounds(n: int) -> None:
            for seed in range(n):
                server.events("/v1/completions", prompt=PROMPT, seed=seed, n=8, max_tokens=20)
            server.wait_until_idle()

        rounds(15)
        before = resident_kilobytes()
        rounds(30)
        assert resident_kilobytes() - before < 4096
    assert not caplog.records


def live_objects() -> Counter[type]:
    """What a request or a connection is made of."""
    kinds = {Job, Story, Request, Completion, _Protocol, RequestResponseCycle}
    gc.collect()
    return Counter(kind for kind in map(type, gc.get_objects()) if kind in kinds)


def test_nothing_is_kept_of_requests_that_are_over(storyteller: Llama) -> None:
    """However they end: uvicorn keeps a connection that is reset until its keep-alive ends."""
    one = request(json.dumps({"prompt": PROMPT, "max_tokens": 1}).encode())
    long = request(json.dumps(LONG | {"stream": True}).encode())
    asked = (
        (one, b"}"),
        (long, b"data: "),
        (request(b'{"prompt": 5}'), b"}"),
        (request(b"{" * 99)[:-9], b""),
    )
    with serving(storyteller, slots=2) as server:
        connections = server.server._uvicorn.server_state.connections
        server.wait_until_idle()
        before = live_objects()
        for data, until in asked:
            for resets in (False, True):
                with server.raw(data) as connection:
                    answer = b""
                    while until not in answer:
                        answer += connection.recv(1 << 16)
                    if resets:
                        lingers_for_0_s = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingers_for_0_s)
        wait(lambda: len(connections) <= 1)  # the metrics'
        server.wait_until_idle()
        assert live_objects() <= before


def test_no_packet_waits_for_an_acknowledgement(server: Running) -> None:
    """Nagle's algorithm would put 40 ms between an answer's headers and its body."""
    with server.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        for each in server.server._uvicorn.server_state.connections:
            taken = each.transport.get_extra_info("socket")
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
