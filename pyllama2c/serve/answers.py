"""OpenAI's answers, to completions and to chats: whole, or as server-sent events."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from pyllama2c.generation.batch import Piece
from pyllama2c.serve.job import Job, Story
from pyllama2c.serve.receipts import big, make_receipt
from pyllama2c.serve.token_texts import (
    Entry,
    TokenTexts,
    chat_logprobs,
    completion_logprobs,
    cut,
    prompt_entries,
)

if TYPE_CHECKING:
    from pyllama2c.serve.service import Service

encode = msgspec.json.encode


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


@dataclass(frozen=True)
class Wanted:
    """What the answer is to have besides text."""

    logprobs: bool = False
    usage: bool = False
    token_ids: bool = False
    receipt: bool = False
    echo: bool = False


@dataclass
class _Streamed:
    """A story's tokens whose log-probabilities wait for the text that they belong to."""

    texts: TokenTexts
    entries: list[Entry] = field(default_factory=list)


class Answer:
    """What both have in common."""

    kind = chunk_kind = prefix = ""

    def __init__(self, service: Service, prompts: list[list[int]], wanted: Wanted):
        self._service, self._prompts, self.wanted = service, prompts, wanted
        self._names = service.names
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._streamed: dict[int, _Streamed] = {}
        self._in_detail = wanted.logprobs or wanted.token_ids
        usage: dict[str, Any] = {"usage": None} if wanted.usage else {}
        self._frame = {**self._base(self.chunk_kind), "choices": [], **usage}
        # Encoded once, with a mark where index and text go.
        whole = encode({**self._frame, "choices": [self._choice(0x7FFFFFFE, "\0", None, None)]})
        before, index, rest = whole.partition(b"2147483646")
        between, mark, after = rest.partition(b'"\\u0000"')
        assert index and mark
        self._parts = b"data: %b%%d%b" % (before.replace(b"%", b"%%"), between), after + b"\n\n"

    def _base(self, kind: str) -> dict[str, Any]:
        service = self._service
        out = {"id": self.id, "object": kind, "created": service.created_now}
        return {**out, "model": service.model_name, "system_fingerprint": service.fingerprint}

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        """A choice of a chunk."""
        raise NotImplementedError

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any]:
        raise NotImplementedError

    def _texts(self, story: Story) -> TokenTexts:
        return TokenTexts(self._service.tokenizer, story.request.prompt_tokens)

    # ---- Streams ----

    def first(self, job: Job) -> bytes:
        return b""

    def scored(self, job: Job, prompt: int) -> bytes:
        return b""

    def chunks(self, story: Story, pieces: list[Piece]) -> bytes:
        if self._in_detail:
            return b"".join([self._detailed(story, piece) for piece in pieces])
        texts = [piece.text for piece in pieces if piece.text]
        if not texts:
            return b""
        story.sent += sum(map(len, texts))
        opening, after = self._parts[0] % story.index, self._parts[1]
        return opening + (after + opening).join(map(encode, texts)) + after

    def _detailed(self, story: Story, piece: Piece) -> bytes:
        story.sent += len(piece.text)
        logprobs = None
        if self.wanted.logprobs:
            streamed = self._streamed.get(story.number)
            if streamed is None:
                streamed = self._streamed[story.number] = _Streamed(self._texts(story))
            streamed.entries.append(streamed.texts.feed(piece.token, piece.logprob))
            logprobs = self._certain(story, streamed)
        if not (piece.text or logprobs or self.wanted.token_ids):
            return b""
        choice = self._choice(story.index, piece.text, logprobs, None)
        if self.wanted.token_ids:
            choice["token_ids"] = [piece.token]
        return self._event(choice)

    def _certain(self, story: Story, streamed: _Streamed) -> dict[str, Any] | None:
        """The log-probabilities of tokens whose text has been sent."""
        entries, end = streamed.entries, self._offset(story) + story.sent
        n = next((i for i, e in enumerate(entries) if e.start + len(e.text) > end), len(entries))
        streamed.entries = entries[n:]
        return self._logprobs(entries[:n]) if n else None

    def _offset(self, story: Story) -> int:
        """Where in the answer's text the story begins."""
        return 0

    def _event(self, choice: dict[str, Any]) -> bytes:
        return event({**self._frame, "choices": [choice]})

    def last(self, job: Job, story: Story) -> bytes:
        done = story.completion
        assert done is not None
        logprobs, streamed = None, self._streamed.pop(story.number, None)
        if streamed is not None:
            end = self._offset(story) + len(done.text)
            entries = cut(streamed.entries, end, whole=streamed.texts.end <= end)
            logprobs = self._logprobs(entries) if entries else None
        return self._ended(story, done.text[story.sent :], logprobs)

    def _ended(self, story: Story, rest: str, logprobs: dict[str, Any] | None) -> bytes:
        assert story.completion is not None
        reason = story.completion.finish_reason
        choice = self._choice(story.index, rest, logprobs, reason)
        return self._event(choice | self._more(story))

    def end(self, job: Job) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self.wanted.usage:
            return done
        return event({**self._frame, "usage": self._usage(job)}) + done

    # ---- Whole answers ----

    def body(self, job: Job) -> bytes:
        choices = [self._whole(job, story) for story in job.stories]
        return encode({**self._base(self.kind), "choices": choices, "usage": self._usage(job)})

    def _whole(self, job: Job, story: Story) -> dict[str, Any]:
        raise NotImplementedError

    def _entries(self, story: Story) -> list[Entry]:
        done = story.completion
        assert done is not None and done.logprobs is not None
        texts = self._texts(story)
        entries = [texts.feed(*each) for each in zip(done.tokens, done.logprobs, strict=True)]
        end = self._offset(story) + len(done.text)
        return cut(entries, end, whole=texts.end <= end)

    def _more(self, story: Story) -> dict[str, Any]:
        """Of a finished choice: what OpenAI's do not have."""
        assert story.completion is not None
        out: dict[str, Any] = {"seed": big(story.request.seed)}
        if self.wanted.token_ids:
            out["prompt_token_ids"] = story.request.prompt_tokens
        if self.wanted.receipt:
            out["receipt"] = make_receipt(self._service.identity, story, self._service.tokenizer)
        return out

    def _usage(self, job: Job) -> dict[str, Any]:
        n_prompt = sum(map(len, self._prompts))
        cached = [len(prompt) for prompt in self._prompts]
        for story in job.stories:  # as one of a prompt's choices reads it for all
            cached[story.prompt] = min(cached[story.prompt], story.n_cached)
        n = sum(len(story.completion.tokens) for story in job.stories if story.completion)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n,
            "total_tokens": n_prompt + n,
            "prompt_tokens_details": {"cached_tokens": sum(cached)},
        }


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
