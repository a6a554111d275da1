"""OpenAI's answer to /v1/completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyllama2c.serve.answers import Answer, Wanted
from pyllama2c.serve.job import Job, Story
from pyllama2c.serve.token_texts import Entry, TokenTexts, completion_logprobs, prompt_entries

if TYPE_CHECKING:
    from pyllama2c.serve.service import Service


class CompletionAnswer(Answer):
    """Of /v1/completions."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, service: Service, prompts: list[list[int]], wanted: Wanted):
        super().__init__(service, prompts, wanted)
        self._echoed: dict[int, list[Entry]] = {}

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any]:
        return completion_logprobs(entries, self._names)

    def _echo(self, job: Job, prompt: int) -> list[Entry]:
        """The prompt's entries, with scores where they were asked for."""
        if prompt not in self._echoed:
            tokens = self._prompts[prompt]
            scores = job.prompt_logprobs.get(prompt, [None] * len(tokens))
            self._echoed[prompt] = prompt_entries(self._service.tokenizer, tokens, scores)
        return self._echoed[prompt]

    def _offset(self, story: Story) -> int:
        return sum(len(entry.text) for entry in self._echoed.get(story.prompt, ()))

    def _texts(self, story: Story) -> TokenTexts:
        prompt = story.request.prompt_tokens
        return TokenTexts(self._service.tokenizer, prompt, self._offset(story))

    def first(self, job: Job) -> bytes:
        if not self.wanted.echo or self.wanted.logprobs:
            return b""
        return b"".join(self.scored(job, prompt) for prompt in range(len(self._prompts)))

    def scored(self, job: Job, prompt: int) -> bytes:
        entries = self._echo(job, prompt)
        text = "".join(entry.text for entry in entries)
        logprobs = self._logprobs(entries) if self.wanted.logprobs else None
        stories = [story for story in job.stories if story.prompt == prompt]
        return b"".join(
            self._event(self._choice(story.index, text, logprobs, None)) for story in stories
        )

    def _whole(self, job: Job, story: Story) -> dict[str, Any]:
        done = story.completion
        assert done is not None
        echoed = self._echo(job, story.prompt) if self.wanted.echo else []
        text = "".join(entry.text for entry in echoed) + done.text
        logprobs = None
        if self.wanted.logprobs:
            logprobs = self._logprobs([*echoed, *self._entries(story)])
        choice = self._choice(story.index, text, logprobs, done.finish_reason)
        ids = {"token_ids": done.tokens} if self.wanted.token_ids else {}
        return choice | ids | self._more(story)
