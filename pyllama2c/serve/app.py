"""The application: routes, and what every request passes before them."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Router

from pyllama2c.serve.endpoints import Endpoints
from pyllama2c.serve.errors import ApiError
from pyllama2c.serve.security import Guard
from pyllama2c.serve.service import Service
from pyllama2c.serve.streams import (
    DisconnectedError,
    Receive,
    Scope,
    Send,
    send_error,
)

log = logging.getLogger("pyllama2c.serve")


class App:
    """ASGI."""

    def __init__(self, service: Service, guard: Guard, *, strict_model: bool = False):
        self._service, self._guard = service, guard
        routes = Endpoints(service, strict_model).routes()
        self._router = Router(routes, redirect_slashes=False)
        self._paths = {route.path for route in routes}
        self._inner: Any = self._guarded
        if guard.origins:
            self._inner = CORSMiddleware(
                self._guarded,
                allow_origins=guard.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                max_age=600,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        scope["app"] = self  # has the router raise what it has no route for
        try:
            self._guard.check_source(scope)
            await self._inner(scope, receive, counted)
        except ApiError as error:
            await send_error(counted, error)
        if status:
            route = scope["path"] if scope["path"] in self._paths else "other"
            self._service.metrics.answered(route, status)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._guard.check_request(scope)
            await self._router(scope, receive, watched)
            return
        except DisconnectedError:
            return
        except ApiError as error:
            answer = error
        except HTTPException as error:
            what = {404: "there is nothing at", 405: f"{scope['method']} is not for"}
            words = what.get(error.status_code, error.detail)
            headers = dict(error.headers or {})
            answer = ApiError(error.status_code, f"{words} {scope['path']}", headers=headers)
        except Exception:
            log.exception("a request failed")
            answer = ApiError(500, "the server failed; its log says why", code="internal_error")
        if begun:
            scope["state"]["transport"].abort()
        else:
            await send_error(send, answer)
