"""Known models: names to pinned files, downloaded once, checked, cached."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pyllama2c import validate
from pyllama2c.errors import (
    CheckpointWarning,
    DownloadError,
    TokenizerNotFoundError,
    UnknownModelError,
    in_words,
    warn,
)
from pyllama2c.files.recognize import kind_of_file
from pyllama2c.files.whole import whole_file
from pyllama2c.progress import watched

LLAMA2_VOCAB_SIZE = 32000
RETRIES = 2
TIMEOUT = 30
"""seconds without receiving a byte"""

_FindTokenizer = Callable[[int], Path]


class File(NamedTuple):
    """A file with its pinned content."""

    name: str
    url: str
    size: int
    sha256: str


class ModelFiles(NamedTuple):
    checkpoint: Path
    find_tokenizer: _FindTokenizer
    """vocab_size -> path; may download, so it is called only when a tokenizer is needed"""


def data_folder() -> Path:
    """Where the package keeps its models: `models/` of the repository."""
    import pyllama2c.models

    return Path(next(iter(pyllama2c.models.__path__)))


def cache_folder() -> Path:
    """$PYLLAMA2C_CACHE, else the platform's cache folder for this package."""
    override = os.environ.get("PYLLAMA2C_CACHE")
    if override:
        return Path(override)
    from platformdirs import user_cache_path

    return user_cache_path("pyllama2c", appauthor=False)


class Registry:
    """The models of a registry.json."""

    def __init__(self, path: Path | None = None):
        import json

        source = path or data_folder() / "registry.json"
        table: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
        self.files = {name: File(name=name, **entry) for name, entry in table["files"].items()}
        self.models: dict[str, dict[str, str]] = table["models"]

    def entry(self, name: str, neither: str) -> dict[str, str]:
        """The names of a model's files; UnknownModelError for a name that is `neither`."""
        if name not in self.models:
            known = ", ".join(self.models)
            raise UnknownModelError(f"{name!r} is {neither} a known model; known: {known}")
        return self.models[name]

    def fetch(self, name: str, recheck: bool = False) -> Path:
        """The path of a known file, downloading it if it is not in the cache.

        A file gets its name in the cache only once its SHA-256 has been checked, so a cached file
        of the right size is used as it is, unless `recheck`.
        """
        file, folder = self.files[name], cache_folder()
        path = folder / name
        cached = path.is_file() and path.stat().st_size == file.size
        if not cached or (recheck and sha256_of(path) != file.sha256):
            _download(file, path)
        return path


def sha256_of(path: str | os.PathLike[str]) -> str:
    import pooch

    return str(pooch.file_hash(os.fspath(path), alg="sha256"))


class _WrongContentError(Exception):
    """The downloaded file is not the pinned one."""


def _download(file: File, path: Path) -> None:
    """DownloadError says why it failed, and what to do."""
    from requests import RequestException

    for attempt in range(RETRIES + 1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download_once(file, path)
            return
        except (RequestException, _WrongContentError) as error:
            if attempt < RETRIES and not _is_refusal(error):
                time.sleep(attempt + 1)
                continue
            raise DownloadError(
                f"cannot download {file.name}: {_reason(error, file)}. Fetch {file.url} by hand "
                f"({file.size:,} bytes, SHA-256 {file.sha256}) and put it at {path}"
            ) from error
        except OSError as error:
            raise DownloadError(
                f"cannot download {file.name}: {in_words(error)} (PYLLAMA2C_CACHE names another "
                "folder for downloads)"
            ) from error


def _download_once(file: File, path: Path) -> None:
    import pooch

    download = pooch.HTTPDownloader(progressbar=watched(), timeout=TIMEOUT)
    with whole_file(path) as target:
        download(file.url, target, None)
        if sha256_of(target.name) != file.sha256:
            kind = kind_of_file(target.name)
            what = "something" if kind is None else kind.what
            raise _WrongContentError(f"{what} with another SHA-256")


def _is_refusal(error: Exception) -> bool:
    """Whether the server refused the request, so that retrying is pointless."""
    response = getattr(error, "response", None)
    return response is not None and 400 <= response.status_code < 500


def _reason(error: Exception, file: File) -> str:
    """Why a download failed, without the names of requests' classes and of its sockets."""
    from requests import exceptions

    host = urlsplit(file.url).hostname
    match error:
        case _WrongContentError():
            return f"what {host} sent is {error}"
        case exceptions.HTTPError(response=response) if response is not None:
            return f"{host} answered {response.status_code} {response.reason}"
        case exceptions.Timeout():
            return f"{host} did not answer within {TIMEOUT} seconds"
        case exceptions.ProxyError():
            return f"no connection to {host} through the proxy"
        case exceptions.SSLError():
            return f"no secure connection to {host}: its certificate is not trusted"
        case exceptions.ChunkedEncodingError():
            return f"the connection to {host} broke off"
        case exceptions.ConnectionError():
            return f"no connection to {host} (is there a network?)"
        case _:
            return " ".join(str(error).split())[:300]


def no_tokenizer(checkpoint: str) -> _FindTokenizer:
    def find(vocab_size: int) -> Path:
        raise TokenizerNotFoundError(
            errno.ENOENT,
            f"no tokenizer for its {vocab_size} pieces: pass one with tokenizer=... (-z on the "
            "command line) or put a tokenizer.bin beside it",
            checkpoint,
        )

    return find


def beside(checkpoint: Path) -> _FindTokenizer:
    def find(vocab_size: int) -> Path:
        neighbour = checkpoint.parent / "tokenizer.bin"
        if neighbour.is_file():
            return neighbour
        if vocab_size == LLAMA2_VOCAB_SIZE:
            return Registry().fetch("tokenizer.bin")
        return no_tokenizer(str(checkpoint))(vocab_size)

    return find


def find_model(model: str | os.PathLike[str] | None) -> ModelFiles:
    """The files that `Llama(model)` means. Raises UnknownModelError, DownloadError."""
    validate.file_path("model", model, optional=True)
    if model is None:
        folder = data_folder()
        return ModelFiles(folder / "storyteller.bin", lambda _: folder / "tokenizer.bin")
    name = os.fspath(model)
    if os.path.exists(name) or os.sep in name or name.endswith((".bin", ".gguf")):
        return ModelFiles(Path(name), beside(Path(name)))
    registry = Registry()
    entry = registry.entry(name, "neither a file nor")

    def get(part: str) -> Path:
        local = Path("models") / entry[part]
        if not local.is_file():
            return registry.fetch(entry[part])
        why = f"{part} of {name}: using {local.resolve()}, not the known file of that name"
        warn(why, CheckpointWarning)
        return local

    return ModelFiles(get("checkpoint"), lambda _: get("tokenizer"))


def download_model(name: str) -> list[Path]:
    """Fetches a known model and its tokenizer; rechecks what is cached."""
    registry = Registry()
    entry = registry.entry(name, "not")
    return [registry.fetch(entry[part], recheck=True) for part in ("checkpoint", "tokenizer")]
