"""What llama.cpp's tests leave out because its server does not do it, in their own terms.

Run among them: `utils` and `unit` are theirs.
"""

from __future__ import annotations

from typing import Any

import pytest
from unit import test_completion as theirs
from utils import ServerPreset, parallel_function_calls

PROMPTS = [
    "Write a very long book.",
    "Write another a poem.",
    "What is LLM?",
    "The sky is blue and I love it.",
    "Write another very long music lyrics.",
    "Write a very long joke.",
]


@pytest.mark.parametrize("n_batch", [16, 32])
def test_consistent_result_different_batch_size_at_temperature_1(n_batch: int) -> None:
    theirs.server = ServerPreset.tinyllama2()
    theirs.test_consistent_result_different_batch_size(n_batch, 1.0)


def _told(server: Any, prompts: list[str]) -> list[str]:
    """At the same time."""
    asked = [{"prompt": prompt, "seed": 42, "temperature": 1.0} for prompt in prompts]
    calls = [(server.make_request, ("POST", "/completion", body)) for body in asked]
    answers = parallel_function_calls(calls)
    assert all(answer.status_code == 200 for answer in answers)
    return [answer.body["content"] for answer in answers]


@pytest.mark.parametrize(("n_slots", "n_requests"), [(1, 3), (2, 2), (2, 4), (4, 2), (4, 6)])
def test_completion_parallel_slots_tell_the_same(n_slots: int, n_requests: int) -> None:
    server = ServerPreset.tinyllama2()
    server.n_slots = n_slots
    server.n_ctx = 256 * n_slots  # as much for a story, whatever the slots
    server.start()
    prompts = PROMPTS[:n_requests]
    alone = [_told(server, [prompt])[0] for prompt in prompts]
    assert len(set(alone)) == n_requests and min(map(len, alone)) > 10
    assert _told(server, prompts) == alone
    assert _told(server, prompts[::-1]) == alone[::-1]
    same = _told(server, prompts[:1] * n_requests)
    assert same == alone[:1] * n_requests
