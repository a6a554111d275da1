"""What the server costs, beside the library on the same engine.

    python benchmarks/serve.py [--rounds 5] [--slots 64] [--tokens 200] [--model MODEL]
        [--peer NAME=PORT:PID ...]

Medians over interleaved rounds: tokens per second with all slots busy; processor time; what one
request takes alone; sweeps of the engine until a request's first token. A peer is a server that
runs already, on this machine and with the same model: llama.cpp's, or llama-cpp-python's. The
client is another process.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from serve_client import Body, Client, Load

from pyllama2c import Llama
from pyllama2c.serve.app import App
from pyllama2c.serve.run import HttpServer, listen
from pyllama2c.serve.security import Guard
from pyllama2c.serve.service import Limits, Service

PROMPT = "Once upon a time"
BURST = 24
PROMPT_TOKENS_A_SWEEP = 64
JOIN_SECONDS = 0.025


class Sweeps(list[float]):
    """In the place of the server's histogram: every value."""

    observe = list.append


class Background:
    """A server in a thread of this process."""

    def __init__(self, llama: Llama, slots: int, join_seconds: float):
        self.service = Service(llama, slots=slots, limits=Limits(join_seconds=join_seconds))
        self.sweeps = Sweeps()
        self.service.metrics.first_token_sweeps = self.sweeps  # type: ignore[assignment]
        self._listener = listen("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
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


def body_of(
    tokens: int, stream: bool, seed: int, prompt: str = PROMPT, *, peer: bool = False
) -> Body:
    body: Body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
        "temperature": 1,
        "top_p": 1,
        "seed": seed,
    }
    if peer:  # whose defaults cut the distribution; llama-cpp-python has no ignore_eos
        body |= {"top_k": 0, "min_p": 0, "repeat_penalty": 1, "min_tokens": tokens}
    return body


class Peer(NamedTuple):
    name: str
    port: int
    pid: int

    @classmethod
    def of(cls, text: str) -> Peer:
        name, _, place = text.rpartition("=")
        port, _, pid = place.partition(":")
        return cls(name, int(port), int(pid))

    def process_time(self) -> float:
        """Seconds, to hundredths (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Throughput:
    """All slots busy."""

    def __init__(self, n: int, tokens: int):
        self._n, self._tokens = n, tokens
        self._speeds: dict[str, list[float]] = {}
        self._work: dict[str, list[float]] = {}

    def library(self, llama: Llama, seed: int) -> None:
        def told() -> Load:
            started = time.perf_counter()
            stories = llama.generate_batch(
                [PROMPT] * self._n, seed=seed, max_tokens=self._tokens, stop_tokens=[], top_p=1.0
            )
            tokens = sum(len(story.tokens) for story in stories)
            return Load(time.perf_counter() - started, tokens)

        self._measure("generate_batch", told)

    def served(self, name: str, client: Client, port: int, seed: int, stream: bool) -> None:
        bodies = [body_of(self._tokens, stream, seed + i) for i in range(self._n)]
        self._measure(name, lambda: client.call("load", port, bodies))

    def peer(self, peer: Peer, client: Client, seed: int, stream: bool) -> None:
        bodies = [body_of(self._tokens, stream, seed + i, peer=True) for i in range(self._n)]
        name = f"{peer.name}, {'streamed' if stream else 'not streamed'}"
        self._measure(name, lambda: client.call("load", peer.port, bodies), peer.process_time)

    def _measure(
        self,
        name: str,
        call: Callable[[], Load],
        process_time: Callable[[], float] = time.process_time,
    ) -> None:
        before = process_time()
        done = call()
        work = process_time() - before
        self._speeds.setdefault(name, []).append(done.tokens / done.seconds)
        self._work.setdefault(name, []).append(1e6 * work / done.tokens)

    def print(self) -> None:
        asked = f"{self._n} requests of {self._tokens} tokens"
        print(f"| {asked} | tok/s | share | processor us a token | more |")
        print("|---|---|---|---|---|")
        base = self._speeds["generate_batch"], self._work["generate_batch"]
        for name, speeds in self._speeds.items():
            share = statistics.median(a / b for a, b in zip(speeds, base[0], strict=True))
            more = statistics.median(a - b for a, b in zip(self._work[name], base[1], strict=True))
            work = statistics.median(self._work[name])
            speed = statistics.median(speeds)
            print(f"| {name} | {speed:,.0f} | {share:.1%} | {work:.1f} | {more:.1f} |")


class Alone:
    """One request at a time, over a connection that stays open, against Llama.generate."""

    def __init__(self, tokens: int, n: int = 30):
        self._tokens, self._n = tokens, n
        self._asked = (1, False), (tokens, False), (tokens, True)
        self._ms: dict[str, tuple[list[float], ...]] = {}

    def run(self, llama: Llama, client: Client, port: int, peers: Sequence[Peer]) -> None:
        for kind, (tokens, stream) in enumerate(self._asked):
            times = [self._library(llama, tokens, seed) for seed in range(self._n)]
            self._keep("generate", kind, times)
            bodies = [body_of(tokens, stream, i) for i in range(self._n)]
            self._keep("pyllama2c serve", kind, client.call("alone", port, bodies))
            bodies = [body_of(tokens, stream, i, peer=True) for i in range(self._n)]
            for peer in peers:
                self._keep(peer.name, kind, client.call("alone", peer.port, bodies))

    def _library(self, llama: Llama, tokens: int, seed: int) -> float:
        started = time.perf_counter()
        llama.generate(PROMPT, max_tokens=tokens, seed=seed, top_p=1.0, stop_tokens=[]).read()
        return time.perf_counter() - started

    def _keep(self, name: str, kind: int, times: list[float]) -> None:
        rounds = self._ms.setdefault(name, ([], [], []))
        rounds[kind].append(1e3 * statistics.median(times))

    def print(self) -> None:
        k = self._tokens
        print(f"| alone, ms | 1 token | more | {k} tokens | streamed | more a token |")
        print("|---|---|---|---|---|---|")
        library = self._ms["generate"]
        for name, (one, whole, streamed) in self._ms.items():
            figures = [
                f"{statistics.median(one):.2f}",
                f"{self._more(one, library[0]):.2f}",
                f"{statistics.median(whole):.1f}",
                f"{statistics.median(streamed):.1f}",
                f"{self._more(streamed, library[2]) / k:.3f}",
            ]
            print(f"| {name} | {' | '.join(figures)} |")

    def _more(self, times: list[float], library: list[float]) -> float:
        return statistics.median(a - b for a, b in zip(times, library, strict=True))


class FirstToken:
    """Sweeps from the engine's inbox to a request's first token."""

    def __init__(self, slots: int):
        self._slots = slots
        self._arrived: list[float] = []
        self._bursts: list[tuple[float, float]] = []

    def run(self, llama: Llama, client: Client, server: Background, seed: int) -> None:
        """Short requests that arrive while three of four slots are busy; then a burst of different
        prompts."""
        n_busy = self._slots * 3 // 4
        other = Client()
        busy = [body_of(400, True, seed + i) for i in range(n_busy)]
        server.sweeps.clear()
        other.begin("load", server.port, busy)
        while len(server.sweeps) < n_busy:
            time.sleep(0.01)
        short = [body_of(4, True, seed + i, "A cat sat") for i in range(40)]
        client.call("arrive", server.port, short, 0.013)
        self._arrived += server.sweeps[n_busy:]
        other.result()
        other.close()
        words = "The lion and the rabbit went to the park with a big red ball and saw a bird. " * 2
        prompts = [f"{i} {words}" for i in range(BURST)]
        waiting = sum(len(llama.tokenizer.encode_prompt(prompt)) for prompt in prompts)
        server.sweeps.clear()
        client.call("load", server.port, [body_of(8, True, seed, prompt) for prompt in prompts])
        limit = 2 + math.ceil(waiting / PROMPT_TOKENS_A_SWEEP)
        self._bursts.append((max(server.sweeps), limit))

    def print(self) -> None:
        print("| sweeps until the first token | | limit |")
        print("|---|---|---|")
        values = sorted(self._arrived)
        p95 = values[math.ceil(0.95 * len(values)) - 1]
        print(f"| a free slot, prompts of up to 8 tokens: p95 of {len(values)} | {p95} | 5 |")
        most, limit = max(self._bursts)
        print(f"| {BURST} prompts at once: the last | {most} | {limit} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PORT:PID")
    arguments = parser.parse_args()
    n, tokens = arguments.slots, arguments.tokens
    peers = list(map(Peer.of, arguments.peer))
    client = Client()
    sys.setswitchinterval(0.0005)  # as `pyllama2c serve` does
    throughput, alone, first = Throughput(n, tokens), Alone(tokens), FirstToken(n)
    with (
        Llama(arguments.model, speculative=False) as llama,
        closing(Background(llama, n, 0.0)) as plain,
        closing(Background(llama, n, JOIN_SECONDS)) as joined,
    ):
        for i in range(-1, arguments.rounds):  # the first warms up
            if i == 0:
                throughput = Throughput(n, tokens)
                alone, first = Alone(tokens), FirstToken(n)
            seed = 1 + (i + 1) * n
            throughput.library(llama, seed)
            throughput.served("not streamed", client, plain.port, seed, False)
            throughput.served("one event a token", client, plain.port, seed, True)
            throughput.served("joined within 25 ms", client, joined.port, seed, True)
            for peer in peers:
                throughput.peer(peer, client, seed, False)
                throughput.peer(peer, client, seed, True)
            alone.run(llama, client, plain.port, peers)
            first.run(llama, client, plain, seed)
    client.close()
    for figures in (throughput, alone, first):
        figures.print()
        print()


if __name__ == "__main__":
    main()
