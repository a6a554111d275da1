"""From requests to Completions: what is added to a batch when, and when a larger one is needed."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from pyllama2c.generation.batch import Batch
from pyllama2c.generation.batch_story import Completion
from pyllama2c.generation.request import Request

_ROUND_UP = 64
"""positions: a batch that is reopened for a longer story has room for slightly longer ones, too"""


def without_computing(i: int, j: int, request: Request | Exception) -> Completion | None:
    """The Completion of a wrong prompt, or of a story of no tokens."""
    if isinstance(request, Exception):
        return Completion(i, j, [], [], "", 0, "error", error=request)
    if request.max_tokens == 0:
        logprobs = None if request.logprobs is None else ()
        return Completion(i, j, request.prompt_tokens, [], "", request.seed, "length", logprobs)
    return None


def run_batch(
    new_batch: Callable[[int, int], Batch],
    requests: Iterator[tuple[int, int, Request | Exception]],
    max_batch: int,
) -> Iterator[Completion]:
    """Stories in the order in which they end. `new_batch` takes n_sequences and a context: what the
    first stories need. Where one needs a longer context, those before it are finished first, and a
    larger batch goes on."""
    waiting: deque[tuple[int, int, Request]] = deque()  # taken from `requests`, but not added

    def fill(n: int) -> Iterator[Completion]:
        """Takes requests until n wait; yields those that need no computing."""
        while len(waiting) < n:
            i, j, request = next(requests, (-1, -1, None))
            if request is None:
                return
            completion = without_computing(i, j, request)
            if completion is not None:
                yield completion
            elif isinstance(request, Request):
                waiting.append((i, j, request))

    for round_up in itertools.chain([1], itertools.repeat(_ROUND_UP)):
        yield from fill(max_batch)
        if not waiting:
            return
        longest = max(request.context for _, _, request in waiting)
        batch = new_batch(len(waiting), -(-longest // round_up) * round_up)
        while True:
            while not batch.full:
                yield from fill(1)
                if not waiting or not batch.has_room(waiting[0][-1]):
                    break
                batch.add(*waiting.popleft())
            if not len(batch):
                break
            yield from batch.step()
        del batch  # freed before the next one is allocated


def in_prompt_order(stories: Iterable[Completion], n: int) -> Iterator[Completion]:
    """The same, the `n` of each prompt side by side: one that overtakes others is held back."""
    held: dict[int, Completion] = {}
    number = 0
    for story in stories:
        held[story.prompt_index * n + story.choice] = story
        while number in held:
            yield held.pop(number)
            number += 1
