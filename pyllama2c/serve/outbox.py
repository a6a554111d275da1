"""What the engine thread has to tell, and when it is posted to the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from time import perf_counter

from pyllama2c.generation.batch_story import Piece
from pyllama2c.serve.job import Event, Job, Scoring, Story

Told = tuple[Job, Story | Scoring | None, Event]


class Outbox:
    """Tokens wait for those of the next `join_seconds`; all else is posted at once, and so are a
    story's first token and its end. What is told of a request is posted in the order in which it
    was told."""

    def __init__(self, post: Callable[[list[Told]], None], join_seconds: float):
        self._post, self._join_seconds, self._posted_at = post, join_seconds, 0.0
        self._told: list[Told] = []
        self._urgent: set[Job] = set()
        self._pieces: dict[int, list[Piece]] = {}
        """those in `_told`, by story"""

    def tell(self, job: Job, story: Story | Scoring | None, event: Event) -> None:
        """With the next post, which then does not wait."""
        self._told.append((job, story, event))
        self._urgent.add(job)

    def tell_pieces(
        self, pieces: Iterable[Piece], stories: Mapping[int, tuple[Job, Story]]
    ) -> list[Job]:
        """Tokens of `stories`, given by number. Returns the job of each story that begins."""
        begun, pieces_of = [], self._pieces
        for piece in pieces:
            earlier = pieces_of.get(piece.prompt_index)
            if earlier is not None:
                earlier.append(piece)
                continue
            job, story = stories[piece.prompt_index]
            pieces_of[piece.prompt_index] = together = [piece]
            self._told.append((job, story, together))
            if not story.is_told:
                story.is_told = True
                self._urgent.add(job)
                begun.append(job)
        return begun

    def post(self) -> None:
        """Posts what is not to wait, if anything."""
        now, told, urgent = perf_counter(), self._told, self._urgent
        if not told:
            return
        if now - self._posted_at >= self._join_seconds:
            self._told, self._pieces, self._posted_at = [], {}, now
        elif urgent:  # all of their requests, whose events keep their order
            self._told = [each for each in told if each[0] not in urgent]
            told = [each for each in told if each[0] in urgent]
            for job in urgent:
                for story in job.stories:
                    self._pieces.pop(story.number, None)
        else:
            return
        self._urgent = set()
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._post(told)
