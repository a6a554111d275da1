"""OpenAI's answer to /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from pyllama2c.serve.answers import Answer
from pyllama2c.serve.job import Job, Story
from pyllama2c.serve.token_texts import Entry, chat_logprobs


class ChatAnswer(Answer):
    """Of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return self._delta(index, {"content": text}, logprobs, reason)

    def _delta(
        self, index: int, delta: dict[str, str], logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any]:
        return chat_logprobs(entries, self._names)

    def first(self, job: Job) -> bytes:
        role = {"role": "assistant", "content": ""}
        return b"".join(self._event(self._delta(story.index, role)) for story in job.stories)

    def _ended(self, story: Story, rest: str, logprobs: dict[str, Any] | None) -> bytes:
        assert story.completion is not None
        before = b""
        if rest or logprobs:
            before = self._event(self._choice(story.index, rest, logprobs, None))
        choice = self._delta(story.index, {}, None, story.completion.finish_reason)
        return before + self._event(choice | self._more(story))

    def _whole(self, job: Job, story: Story) -> dict[str, Any]:
        done = story.completion
        assert done is not None
        logprobs = self._logprobs(self._entries(story)) if self.wanted.logprobs else None
        ids = {"token_ids": done.tokens} if self.wanted.token_ids else {}
        return {
            "index": story.index,
            "message": {"role": "assistant", "content": done.text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": done.finish_reason,
            **ids,
            **self._more(story),
        }
