"""What OpenAI's answers have in common: whole ones, and streams of server-sent events."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from pyllama2c.generation.batch_story import Piece
from pyllama2c.serve.job import Job, Story
from pyllama2c.serve.receipts import big, make_receipt
from pyllama2c.serve.token_texts import Entry, TokenTexts, cut

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
    """Of completions or of chats, as its subclasses say."""

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
