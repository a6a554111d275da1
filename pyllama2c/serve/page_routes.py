"""The page and what it asks of the engine: routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllama2c.errors import (
    ContextLengthError,
    NonFiniteLogitsError,
    TokenizerError,
    UnsupportedError,
)
from pyllama2c.serve import explain
from pyllama2c.serve.decoding import decode_any
from pyllama2c.serve.errors import ApiError
from pyllama2c.serve.nodes import Nodes

if TYPE_CHECKING:
    from pyllama2c.model import Llama
    from pyllama2c.serve.service import Service

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/excerpts.json": ("excerpts.json", "application/json"),
}
PAGE_PATHS = frozenset(_FILES)
"""what needs no key"""

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

Answer = Callable[[bytes], Awaitable[Any]]


def page_routes(llama: Llama) -> list[Route]:
    """The page's own files, which hold nothing of anybody's, and what the model is."""
    folder = files("pyllama2c.serve") / "page"

    def route(path: str, name: str, kind: str) -> Route:
        data = (folder / name).read_bytes()

        async def answer(request: Request) -> Response:
            return Response(data, media_type=kind, headers=_HEADERS)

        return Route(path, answer)

    async def about(request: Request) -> Response:
        answer = await asyncio.to_thread(explain.about, llama)
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return [*(route(path, *file) for path, file in _FILES.items()), Route("/api/model", about)]


def page_answers(service: Service) -> dict[str, Answer]:
    """By path: from a request's body to an answer. ApiError for a wrong one."""
    nodes = Nodes()
    asked = {
        "/api/tokens": explain.tokens,
        "/api/next": explain.next_token,
        "/api/attention": explain.attention,
    }
    return {
        path: partial(_answer, service, partial(ask, service.llama, nodes))
        for path, ask in asked.items()
    }


async def _answer(
    service: Service, ask: Callable[[Mapping[str, Any]], dict[str, Any]], body: bytes
) -> Any:
    request = decode_any(body)
    if not isinstance(request, dict):
        raise ApiError(400, "the body is not an object", code="invalid_type")
    try:
        return await service.in_turn(partial(ask, request))
    except ContextLengthError as error:
        raise ApiError(400, str(error), code="context_length_exceeded") from None
    except UnsupportedError as error:
        raise ApiError(400, str(error), code="unsupported") from None
    except NonFiniteLogitsError as error:  # penalties beyond float32 do that to any model
        raise ApiError(400, str(error), code="non_finite_logits") from None
    except (TypeError, ValueError, TokenizerError) as error:
        name = str(error).split(" ")[0].partition("[")[0]
        param = name if name in request else None
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
