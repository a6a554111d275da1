"""Who may ask what: hosts, origins, keys, kinds of content."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection, Iterable
from typing import Any

from pyllama2c.serve.errors import ApiError
from pyllama2c.serve.page_routes import PAGE_PATHS

PUBLIC = frozenset(["/health", "/v1/health", "/models", "/v1/models"]) | PAGE_PATHS
"""paths that need no key"""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def header(scope: Any, name: bytes) -> str | None:
    return next((v.decode("latin-1") for k, v in scope["headers"] if k == name), None)


def _host_name(value: str) -> str:
    """Of a Host header: without the port."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower().rstrip(".")


class Guard:
    """`hosts`: names that may stand in a Host header, besides localhost and all addresses, which no
    foreign name server can point here (DNS rebinding). `origins`: of pages that may ask, besides
    the server's own; "*": all. `public`: paths that need no key."""

    def __init__(
        self,
        hosts: Iterable[str] = (),
        origins: Collection[str] = (),
        key: str | None = None,
        public: Collection[str] = PUBLIC,
    ):
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self.origins, self._public = tuple(origins), public
        self._key = None if key is None else key.encode("utf-8", "surrogateescape")

    def check_source(self, scope: Any) -> None:
        """ApiError (403) for a host or an origin that is not ours."""
        host = header(scope, b"host") or ""
        if not self._is_allowed(_host_name(host)):
            why = f"the host {host[:100]!r} is not one of this server's; --allowed-host adds one"
            raise ApiError(403, why, code="host_not_allowed")
        origin = header(scope, b"origin")
        if origin is None or origin in self.origins or "*" in self.origins:
            return
        if origin != f"{scope['scheme']}://{host}":
            why = f"pages of {origin[:100]!r} may not ask; --cors-origin lets them"
            raise ApiError(403, why, code="origin_not_allowed")

    def _is_allowed(self, name: str) -> bool:
        if name in self._hosts or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def check_request(self, scope: Any) -> None:
        """ApiError for a missing key (401) or a body of another kind than JSON (415)."""
        if self._key is not None and scope["path"] not in self._public:
            self._check_key(scope)
        if scope["method"] != "POST":
            return
        # A page elsewhere could send any other type without asking first.
        kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            why = f"content-type is {kind[:100]!r}; it must be application/json"
            raise ApiError(415, why, code="unsupported_media_type")
        coding = header(scope, b"content-encoding")
        if coding not in (None, "identity"):
            why = f"content-encoding is {coding[:100]!r}; bodies must not be compressed"
            raise ApiError(415, why, code="unsupported_media_type")

    def _check_key(self, scope: Any) -> None:
        assert self._key is not None
        scheme, _, given = (header(scope, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            given = header(scope, b"x-api-key") or ""
        if not hmac.compare_digest(given.strip(" \t").encode("latin-1"), self._key):
            why = "a key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, why, code="invalid_api_key", headers=headers)
