"""What a client is told of its mistakes and of the server's: OpenAI's error shape."""

from __future__ import annotations

from typing import Any

import msgspec

from pyllama2c.errors import GrammarError, NonFiniteLogitsError, in_words

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {"x-should-retry": "false"} if status == 500 else {}
        self.headers |= headers or {}
        self._more = more

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error | self._more}

    def encoded(self) -> bytes:
        return msgspec.json.encode(self.body)


def busy(message: str, seconds: int) -> ApiError:
    """Overload: the client may come again."""
    headers = {"retry-after": str(seconds)}
    return ApiError(429, message, code="rate_limit_exceeded", headers=headers)


def draining() -> ApiError:
    headers = {"retry-after": "30"}
    return ApiError(503, "the server is shutting down", code="shutting_down", headers=headers)


def as_api_error(error: BaseException, changes_logits: bool = False) -> ApiError:
    """What the engine raised in the middle of a request. `changes_logits`: the request has
    penalties or biases, which can take any model's logits beyond float32."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GrammarError):  # one that is too much work only in the middle of a story
        name = str(error).partition(":")[0]
        return ApiError(400, str(error), param=name, code="invalid_value")
    if isinstance(error, NonFiniteLogitsError) and changes_logits:
        return ApiError(400, str(error), code="non_finite_logits")
    return ApiError(500, f"{type(error).__name__}: {in_words(error)}", code="engine_error")


def too_long(n_prompt_tokens: int, n_ctx: int, param: str) -> ApiError:
    return ApiError(
        400,
        f"the prompt has {n_prompt_tokens} tokens; the model's context is {n_ctx}",
        param=param,
        code="context_length_exceeded",
        n_prompt_tokens=n_prompt_tokens,
        n_ctx=n_ctx,
    )
