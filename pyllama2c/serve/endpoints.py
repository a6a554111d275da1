"""What is asked of a service, endpoint by endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllama2c import __version__
from pyllama2c.errors import Llama2cError, in_words
from pyllama2c.serve import llama_cpp, openapi, receipts
from pyllama2c.serve.answers import Wanted, encode
from pyllama2c.serve.chat_answer import ChatAnswer
from pyllama2c.serve.chats import chat_prompt, prompt_text
from pyllama2c.serve.completion_answer import CompletionAnswer
from pyllama2c.serve.decoding import decode, decode_any, wrong
from pyllama2c.serve.errors import ApiError
from pyllama2c.serve.job import Format, Job, Scoring, Story
from pyllama2c.serve.page_routes import page_answers, page_routes
from pyllama2c.serve.parameters import for_chat, for_completion, make_stories, tokenized
from pyllama2c.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    LlamaCppRequest,
    TemplateRequest,
    TokenizeRequest,
)
from pyllama2c.serve.service import Service
from pyllama2c.serve.streams import Receive, Scope, Send, read_body, send_job, send_whole

_T = TypeVar("_T", bound=msgspec.Struct)


class Generating:
    """An endpoint that generates; `make` turns a body into a job."""

    def __init__(self, service: Service, make: Callable[[bytes], Awaitable[Job]]):
        self._service, self._make = service, make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        service.check_open()
        body = await read_body(scope, receive, service.limits.body_bytes, service.limits.wait)
        job = await self._make(body)
        await send_job(service, job, scope, receive, send)


class Answering:
    """An endpoint that answers a body at once."""

    def __init__(self, service: Service, answer: Callable[[bytes], Awaitable[Any]]):
        self._service, self._answer = service, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self._service.limits
        body = await read_body(scope, receive, limits.body_bytes, limits.wait)
        await send_whole(send, 200, encode(await self._answer(body)))


class Endpoints:
    """What is asked of a service, endpoint by endpoint."""

    def __init__(self, service: Service, strict_model: bool):
        self._service, self._strict_model = service, strict_model

    def _decode(self, body: bytes, kind: type[_T]) -> _T:
        request = decode(body, kind)
        name = getattr(request, "model", None)
        if self._strict_model and name not in (None, self._service.model_name):
            why = f"there is no model {name!r}; this server has {self._service.model_name!r}"
            raise ApiError(404, why, param="model", code="model_not_found")
        return request

    def _job(
        self, stories: list[Story], answer: Format, streamed: bool, scorings: list[Scoring]
    ) -> Job:
        return Job(stories, answer, streamed, scorings)

    # ---- Generating ----

    async def completion(self, body: bytes) -> Job:
        service, request = self._service, self._decode(body, CompletionRequest)
        _check_stream(request.stream, request.stream_options)
        parameters = for_completion(request, service)
        scored = bool(request.echo) and request.logprobs is not None
        if scored and request.max_tokens == 1:
            # Who scores a prompt so drops the last entry (lm-eval): there has to be one, also
            # where the story would end here.
            parameters["stop_tokens"] = []
        prompts = await tokenized(service, request.prompt)
        stories = await make_stories(
            service, prompts, parameters, seed=request.seed, n=request.n or 1
        )
        wanted = Wanted(
            logprobs=request.logprobs is not None,
            usage=_wants_usage(request.stream_options),
            token_ids=request.return_token_ids,
            receipt=request.receipt,
            echo=bool(request.echo),
        )
        scorings = []
        if scored:
            n_top = request.logprobs or 0
            scorings = [Scoring(i, ids, n_top) for i, ids in enumerate(prompts)]
        answer = CompletionAnswer(service, prompts, wanted)
        return self._job(stories, answer, bool(request.stream), scorings)

    async def chat(self, body: bytes) -> Job:
        service, request = self._service, self._decode(body, ChatRequest)
        _check_stream(request.stream, request.stream_options)
        parameters = for_chat(request, service)
        prompts = [await chat_prompt(service, request.messages)]
        stories = await make_stories(
            service,
            prompts,
            parameters,
            seed=request.seed,
            n=request.n or 1,
            param="messages",
        )
        wanted = Wanted(
            logprobs=bool(request.logprobs),
            usage=_wants_usage(request.stream_options),
            token_ids=request.return_token_ids,
            receipt=request.receipt,
        )
        return self._job(stories, ChatAnswer(service, prompts, wanted), bool(request.stream), [])

    async def llama_cpp(self, body: bytes) -> Job:
        service, request = self._service, self._decode(body, LlamaCppRequest)
        parameters = llama_cpp.parameters_of(request, service)
        prompts = await tokenized(service, request.prompt, special=request.parse_special)
        stories = await make_stories(service, prompts, parameters, seed=request.seed, n=1)
        answer = llama_cpp.LlamaCppAnswer(service, request)
        return self._job(stories, answer, request.stream, [])

    # ---- Answering ----

    async def tokenize(self, body: bytes) -> dict[str, Any]:
        service, request = self._service, self._decode(body, TokenizeRequest)
        text = request.content if request.content is not None else request.prompt
        if text is None:
            raise ApiError(400, "content is required", param="content")
        tokenizer, bos = service.tokenizer, request.add_special_tokens
        bos = tokenizer.add_bos and (request.add_special if bos is None else bos)
        encode = service.names.encode if request.parse_special else tokenizer.encode
        try:
            ids = await asyncio.to_thread(encode, text, bos)
        except ValueError as error:
            raise wrong("content", str(error)) from None
        out: dict[str, Any] = {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": service.llama.config.seq_len,
        }
        if request.with_pieces:
            out["tokens"] = [{"id": i, "piece": _piece(tokenizer.piece(i))} for i in ids]
        if request.return_token_strs:
            out["token_strs"] = [service.names.name(i) for i in ids]
        return out

    async def detokenize(self, body: bytes) -> dict[str, Any]:
        service, request = self._service, self._decode(body, DetokenizeRequest)
        try:
            text = service.tokenizer.decode(request.tokens)
        except ValueError as error:
            raise wrong("tokens", f"tokens: {error}") from None
        return {"content": text, "prompt": text}

    async def apply_template(self, body: bytes) -> dict[str, Any]:
        request = self._decode(body, TemplateRequest)
        tokens = await chat_prompt(self._service, request.messages)
        return {"prompt": prompt_text(self._service, tokens), "tokens": tokens}

    async def verify(self, body: bytes) -> dict[str, Any]:
        service, value = self._service, decode_any(body)
        try:
            return await service.in_turn(partial(receipts.verify, service.llama, value))
        except (TypeError, ValueError, Llama2cError) as error:
            raise ApiError(400, in_words(error), code="invalid_receipt") from None

    # ---- Facts ----

    async def models(self, request: Request) -> Response:
        service, llama = self._service, self._service.llama
        model = {
            "id": service.model_name,
            "object": "model",
            "created": service.created,
            "owned_by": "pyllama2c",
            "meta": {
                "n_vocab": llama.config.vocab_size,
                "n_ctx_train": llama.config.seq_len,
                "n_embd": llama.config.dim,
                "n_params": llama.n_parameters,
                "dtype": llama.config.dtype,
            },
        }
        if name := request.path_params.get("name"):
            if name != service.model_name:
                raise ApiError(404, f"there is no model {name!r}", code="model_not_found")
            return _json(model)
        return _json({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        self._service.check_health()
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        service = self._service
        gauges = {"requests_processing": service.processing, "requests_deferred": service.deferred}
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.metrics.text(gauges), media_type=kind)

    async def props(self, request: Request) -> Response:
        return _json(llama_cpp.props(self._service))

    async def slots(self, request: Request) -> Response:
        return _json(llama_cpp.slots(self._service))

    async def tokenizer_info(self, request: Request) -> Response:
        props = llama_cpp.props(self._service)
        return _json({name: props[name] for name in ("bos_token", "eos_token", "chat_template")})

    async def openapi(self, request: Request) -> Response:
        return _json(openapi.document())

    async def version(self, request: Request) -> Response:
        return _json({"version": __version__})

    def routes(self) -> list[Route]:
        service = self._service
        generating = {
            "/v1/completions": self.completion,
            "/v1/chat/completions": self.chat,
            "/completion": self.llama_cpp,
        }
        answering = {
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
            "/apply-template": self.apply_template,
            "/api/verify": self.verify,
            **page_answers(service),
        }
        facts = {
            "/v1/models": self.models,
            "/v1/models/{name:path}": self.models,
            "/v1/health": self.health,
            "/metrics": self.metrics,
            "/props": self.props,
            "/slots": self.slots,
            "/tokenizer_info": self.tokenizer_info,
            "/openapi.json": self.openapi,
            "/version": self.version,
        }
        posts: list[tuple[str, Any]] = [
            *((path, Generating(service, make)) for path, make in generating.items()),
            *((path, Answering(service, answer)) for path, answer in answering.items()),
        ]
        routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts]
        routes += [Route(path, endpoint) for path, endpoint in facts.items()]
        routes += page_routes(service.llama)
        # Each also without /v1.
        return routes + [
            Route(route.path[3:], route.endpoint, methods=list(route.methods or ["POST"]))
            for route in routes
            if route.path.startswith("/v1/")
        ]


def _json(value: Any) -> Response:
    return Response(encode(value), media_type="application/json")


def _check_stream(stream: bool | None, options: Any) -> None:
    if options is not None and not stream:
        raise wrong("stream_options", "stream_options is for stream: true")


def _wants_usage(options: Any) -> bool:
    return options is not None and bool(options.include_usage)


def _piece(piece: bytes) -> str | list[int]:
    """As llama.cpp has them: text, or bytes where it is none."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
