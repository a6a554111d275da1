"""What the server costs: tokens per second through HTTP, beside generate_batch on the same engine.

    python benchmarks/serve.py [--rounds 5] [--slots 64] [--tokens 200] [--model MODEL]

The client is another process, on the same machine. Medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import threading
import time
from functools import partial
from typing import Any

from pyllama2c import Llama
from pyllama2c.serve.app import App
from pyllama2c.serve.run import HttpServer, listen
from pyllama2c.serve.security import Guard
from pyllama2c.serve.service import Limits, Service

PROMPT = "Once upon a time"


async def ask(port: int, body: dict[str, Any]) -> int:
    """A whole request over a bare socket; the bytes of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    size = 0
    while part := await reader.read(1 << 16):
        size += len(part)
    writer.close()
    return size


def client(requests: Any, answers: Any) -> None:
    """Runs in a process of its own: rounds of (port, bodies) to seconds."""

    async def round_of(port: int, bodies: list[dict[str, Any]]) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(ask(port, body) for body in bodies))
        return time.perf_counter() - started

    while (work := requests.get()) is not None:
        answers.put(asyncio.run(round_of(*work)))


class Background:
    """A server in a thread of this process."""

    def __init__(self, llama: Llama, slots: int, join_seconds: float):
        self.service = Service(llama, slots=slots, limits=Limits(join_seconds=join_seconds))
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        ready = threading.Event()

        async def run() -> None:
            self.server = HttpServer(self.service, App(self.service, Guard()), self._listener)
            await self.server.run(ready.set, signals=False)

        self._thread = threading.Thread(target=lambda: asyncio.run(run()))
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        self.server.stop_threadsafe()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    n, tokens = arguments.slots, arguments.tokens
    requests: Any = multiprocessing.Queue()
    answers: Any = multiprocessing.Queue()
    process = multiprocessing.Process(target=client, args=(requests, answers))
    process.start()
    sys.setswitchinterval(0.0005)
    figures: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with Llama(arguments.model) as llama:

        def library(seed: int) -> float:
            started = time.perf_counter()
            stories = llama.generate_batch(
                [PROMPT] * n, seed=seed, max_tokens=tokens, stop_tokens=[], top_p=1.0
            )
            list(stories)
            return time.perf_counter() - started

        servers = {"one event a token": 0.0, "joined within 25 ms": 0.025}
        running = {name: Background(llama, n, seconds) for name, seconds in servers.items()}

        def served(name: str, seed: int, stream: bool) -> float:
            body = {
                "prompt": PROMPT,
                "max_tokens": tokens,
                "ignore_eos": True,
                "stream": stream,
                "temperature": 1,
            }
            bodies = [body | {"seed": seed + i} for i in range(n)]
            requests.put((running[name].port, bodies))
            return float(answers.get())

        def measured(name: str, seconds_of: Any) -> None:
            before = time.process_time()
            seconds = seconds_of()
            figures.setdefault(name, []).append(n * tokens / seconds)
            cpu.setdefault(name, []).append(1e6 * (time.process_time() - before) / (n * tokens))

        plain, joined = servers
        library(0)
        for i in range(arguments.rounds):
            seed = 1 + i * n
            measured("generate_batch", partial(library, seed))
            measured("not streamed", partial(served, plain, seed, False))
            measured(plain, partial(served, plain, seed, True))
            measured(joined, partial(served, joined, seed, True))
        for each in running.values():
            each.close()
    requests.put(None)
    process.join()
    base = statistics.median(figures["generate_batch"])
    for name, values in figures.items():
        speed, work = statistics.median(values), statistics.median(cpu[name])
        print(f"{name:<22} {speed:9,.0f} tok/s {speed / base:6.1%}", end=" ")
        print(f"{work:6.1f} us of processor a token")


if __name__ == "__main__":
    main()
