"""--join-ms: tokens of a stream that are posted together."""

from __future__ import annotations

import queue
from typing import Any

from pyllama2c import Llama
from pyllama2c.generation.batch_story import Completion
from pyllama2c.generation.request import make_request
from pyllama2c.serve.engine import EngineThread
from pyllama2c.serve.job import Job, Started, Story
from pyllama2c.serve.metrics import Metrics


def job_of(llama: Llama, max_tokens: int) -> Job:
    ids = llama.tokenizer.encode_prompt("Once upon a time")
    request = make_request(ids, 512, seed=1, max_tokens=max_tokens, stop_tokens=[])
    answer: Any = None  # which the engine does not use
    return Job([Story(request, {}, prompt=0, choice=0, index=0)], answer, streamed=True)


def test_the_first_and_the_last_token_do_not_wait(storyteller: Llama) -> None:
    """The end of one story posts nothing of another's."""
    posts: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
    engine = EngineThread(storyteller, 4, Metrics(), posts.put, join_seconds=1e9)
    short, long = job_of(storyteller, 5), job_of(storyteller, 20)
    engine.start()
    engine.add(short)
    engine.add(long)
    told: dict[Job, list[list[Any]]] = {short: [], long: []}
    while not any(isinstance(event, Completion) for post in told[long] for event in post):
        post = posts.get()
        for job in told:
            mine = [event for whose, _, event in post if whose is job]
            if mine:
                told[job].append(mine)
    engine.stop()
    for job, n_tokens in ((short, 5), (long, 20)):
        *first, last = told[job]
        events = [event for post in first for event in post]
        assert isinstance(events[0], Started)
        assert list(map(len, events[1:])) == [1]
        pieces, completion = last
        assert len(pieces) == n_tokens - 1
        tokens = [piece.token for piece in (*events[1], *pieces)]
        assert tokens == completion.tokens
