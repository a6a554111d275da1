"""Errors of huggingface_hub as exceptions of ours, with one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

from pyllama2c.errors import DownloadError, Llama2cError, UnknownModelError, in_words

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_NO_ACCESS = {
    401: ": the token of HF_TOKEN or `hf auth login` is not valid",
    403: ": the token of HF_TOKEN or `hf auth login` lacks the permission",
}
_WRAPPERS = ("LocalEntryNotFoundError", "ValueError")
"""what huggingface_hub raises from the error that matters"""


@contextmanager
def hub_errors(what: str, repository: str, no_revision: str) -> Iterator[None]:
    """Turns whatever is raised while we `what` into UnknownModelError (with the message
    `no_revision`, if it is the revision that is missing) or DownloadError."""
    from huggingface_hub import errors

    try:
        yield
    except Llama2cError:
        raise
    except errors.GatedRepoError as error:
        url = f"{_endpoint()}/{repository}"
        raise DownloadError(
            f"cannot {what}: access is restricted; request it at {url}, then {_LOG_IN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnknownModelError(no_revision) from error
    except Exception as error:  # of huggingface_hub, httpx, requests or hf_xet: no common base
        if isinstance(error, errors.RepositoryNotFoundError) or _needs_login(error):
            raise UnknownModelError(
                f"{_host()} has no repository {repository}, or it is private: to access it, "
                f"{_LOG_IN}"
            ) from error
        raise DownloadError(f"cannot {what}: {_reason(error)}") from error


def _needs_login(error: Exception) -> bool:
    """Whether the hub wants a login, as it also does for repositories that do not exist."""
    from huggingface_hub import get_token

    return _status(error) == 401 and get_token() is None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return str(ENDPOINT)


def _host() -> str:
    return urlsplit(_endpoint()).hostname or _endpoint()


def _reason(error: BaseException) -> str:
    """Why a request failed. The names of classes tell, whether they are of httpx or requests."""
    if error.__cause__ is not None and type(error).__name__ in _WRAPPERS:
        return _reason(error.__cause__)
    classes = {each.__name__ for each in type(error).__mro__}
    status = _status(error)
    if "OfflineModeIsEnabled" in classes:
        return "HF_HUB_OFFLINE is set"
    if status is not None:
        known = status in {*HTTPStatus}
        phrase = f" {HTTPStatus(status).phrase}" if known else ""
        return f"{_host()} answered {status}{phrase}{_NO_ACCESS.get(status, '')}"
    if "ProxyError" in classes:
        return f"no connection to {_host()} through the proxy"
    if classes & {"TimeoutException", "Timeout"}:
        return f"{_host()} did not answer in time"
    if "CERTIFICATE" in str(error):
        return f"no secure connection to {_host()}: its certificate is not trusted"
    if classes & {"ReadError", "RemoteProtocolError", "ChunkedEncodingError"}:
        return f"the connection to {_host()} broke off"
    if classes & {"TransportError", "ConnectionError"}:
        return f"no connection to {_host()} (is there a network?)"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{in_words(error)} (HF_HOME names another folder for downloads)"
    return " ".join(str(error).split())[:300]
