"""A plugin for `llm`, the command and library (`pip install 'pyllama2c[llm]'`, or `llm install
pyllama2c`), which finds it by its entry point.

"pyllama2c" is the embedded storyteller, "pyllama2c/stories15M" a known model. Any other is named by
an alias: after `llm aliases set tiny pyllama2c/hf://owner/name` (or pyllama2c/ and a path) there is
a model of that id, which `llm`'s logs record, so that a conversation goes on with the same model.

A model whose file has a chat template answers messages; any other continues text, and a
conversation with it is one text, to which each prompt adds a line.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, cast

try:
    import llm
except ImportError as error:
    raise ImportError(f"{error}: pip install 'pyllama2c[llm]'") from None
from llm.parts import ReasoningPart, TextPart
from pydantic import Field, field_validator

if TYPE_CHECKING:
    from pyllama2c.chat.llama2 import Message
    from pyllama2c.engine.options import Dtype
    from pyllama2c.generation.story import Generation
    from pyllama2c.model import Llama

_NAME = "pyllama2c"
_OF_THE_MODEL = ("dtype", "context")
_OPENING = Lock()
"""two threads do not open one model twice"""


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """The storyteller, known models, and those that aliases name."""
    from pyllama2c.files.hub import Registry

    known = {f"{_NAME}/{name}": name for name in Registry().models}
    aliases = llm.user_dir() / "aliases.json"
    named = json.loads(aliases.read_text(encoding="utf-8")).values() if aliases.exists() else ()
    others = sorted({each for each in named if each.startswith(f"{_NAME}/")} - known.keys())
    register(Pyllama2c(_NAME), AsyncPyllama2c(_NAME), aliases=("storyteller",))
    for model_id in [*known, *others]:
        short = (known[model_id],) if model_id in known else ()
        register(Pyllama2c(model_id), AsyncPyllama2c(model_id), aliases=short)


class Options(llm.Options):
    """Those of Llama.generate, which has the defaults and says more, and of opening the model."""

    max_tokens: int | None = Field(
        None, ge=0, description="New tokens at most (default: as many as the context has room for)"
    )
    temperature: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="0 takes the likeliest token (default: 1)"
    )
    top_p: float | None = Field(
        None, ge=0, le=1, description="Only the likeliest, with so much probability (default: 0.9)"
    )
    top_k: int | None = Field(
        None, ge=0, lt=2**31, description="Only so many of the likeliest tokens (default: 0, all)"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Only tokens at least so likely beside the likeliest"
    )
    repetition_penalty: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Above 1: repeated tokens are unlikelier"
    )
    presence_penalty: float | None = Field(
        None, allow_inf_nan=False, description="Taken from the logits of tokens of the answer"
    )
    frequency_penalty: float | None = Field(
        None, allow_inf_nan=False, description="The same, as many times as the answer has the token"
    )
    logit_bias: dict[int, float] | None = Field(
        None, description='Added to the logits of token ids, as JSON: {"42": -5}'
    )
    seed: int | None = Field(
        None, ge=-1, lt=2**64, description="The same seed gives the same answer (-1: a fresh one)"
    )
    stop: str | list[str] | None = Field(
        None, description="Text that ends the answer, and is not part of it"
    )
    regex: str | None = Field(None, description="The whole answer matches it")
    grammar: str | None = Field(
        None, description="The whole answer matches this grammar, in Lark's syntax or GBNF"
    )
    chat: bool | None = Field(
        None,
        description="Answer messages (default: where the file has a chat template; without one, "
        "in Llama 2's format), or continue the text",
    )
    dtype: Literal["auto", "float32", "int8", "int4"] | None = Field(
        None, description="What weights are computed with"
    )
    context: int | None = Field(
        None, ge=1, lt=2**31, description="Positions of prompt and answer (default: the model's)"
    )

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value


@lru_cache(maxsize=2)
def _opened(name: str | None, dtype: Dtype | None, context: int | None) -> Llama:
    """Kept: a program that asks again gets the open model, and what it has cached."""
    from pyllama2c.model import Llama

    return Llama(name, dtype=dtype or "auto", context=context)


class _Model:
    """What both kinds of models have in common."""

    can_stream = True
    supports_schema = True
    Options = Options

    def __init__(self, model_id: str):
        self.model_id = model_id

    def _story(self, prompt: llm.Prompt) -> Generation:
        """The story that answers, not begun."""
        given = {name: value for name, value in prompt.options if value is not None}
        name = self.model_id.removeprefix(_NAME).removeprefix("/")
        with _OPENING:
            llama = _opened(
                os.path.expanduser(name) or None, *(given.pop(each, None) for each in _OF_THE_MODEL)
            )
        chat = given.pop("chat", llama.chat_template is not None)
        messages = _messages(prompt)
        if prompt.schema is not None:
            given["json_schema"] = prompt.schema
        if chat:
            return llama.chat(messages, **given)
        return llama.generate(self._as_text(messages), **given)

    def _as_text(self, messages: list[Message]) -> str:
        text = ""
        for message in messages:
            if message["role"] == "system":
                raise ValueError(
                    f"{self.model_id} has no chat template, so that it takes no system prompt; "
                    "the option chat asks in Llama 2's format"
                )
            text += "\n" if text and message["role"] == "user" else ""
            text += message["content"]
        return text


def _messages(prompt: llm.Prompt) -> list[Message]:
    messages = []
    for message in prompt.messages:
        texts = []
        for part in message.parts:
            if isinstance(part, TextPart):
                texts.append(part.text)
            elif not isinstance(part, ReasoningPart):
                kind = part.to_dict()["type"]
                raise ValueError(f"a message by {message.role!r} has a {kind}; text alone is taken")
        messages.append({"role": message.role, "content": "".join(texts)})
    return cast("list[Message]", messages)


def _report(story: Generation, response: llm.Response | llm.AsyncResponse) -> None:
    """Usage, and what tells the same story again, for the logs."""
    cached = story.stats.cached_tokens
    response.set_usage(
        input=len(story.prompt_tokens),
        output=len(story.tokens),
        details={"cached_tokens": cached} if cached else None,
    )
    response.response_json = {"seed": story.seed, "finish_reason": story.finish_reason}


class Pyllama2c(_Model, llm.Model):
    """A model of llm's Python API and of its command."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None = None,
    ) -> Iterator[str]:
        with self._story(prompt) as story:
            if stream:
                yield from story
            else:
                yield story.read()
        _report(story, response)


class AsyncPyllama2c(_Model, llm.AsyncModel):
    """The same for an event loop, which neither the model's opening nor a token keeps waiting."""

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None = None,
    ) -> AsyncIterator[str]:
        async with aclosing(await asyncio.to_thread(self._story, prompt)) as story:
            if stream:
                async for piece in story:
                    yield piece
            else:
                yield await story.aread()
        _report(story, response)
