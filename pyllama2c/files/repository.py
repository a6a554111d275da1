"""Repositories of the Hugging Face hub: a revision becomes a commit once, its files are checked.

huggingface_hub does the downloading, under its own settings (HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE) and into its own cache, which other programs share. What it does not keep is in a
record of ours: which commit a revision was when it was first asked for, and which files had the
content that the hub says they have. So the next call opens the same bytes, with a network or
without, wherever the revision has moved since.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from pyllama2c.errors import (
    DownloadError,
    Llama2cError,
    UnknownModelError,
    UnsupportedError,
    in_words,
)
from pyllama2c.files.hub import TIMEOUT, cache_folder
from pyllama2c.files.whole import whole_file
from pyllama2c.progress import announce

_NAME = re.compile(
    r"hf:/+([\w.-]+/[\w.-]+?)"  # a path that was normalized has lost a slash
    r"(?:@((?:refs/(?:pr|convert)/)?[^/@\s]{1,80}))?"
    r"(?:/([^/].*))?/*",
    re.ASCII,
)
_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_WRAPPERS = ("LocalEntryNotFoundError", "ValueError")
"""what huggingface_hub raises from the error that matters"""


class HubName(NamedTuple):
    """hf://owner/name@revision/path, taken apart."""

    repository: str
    revision: str
    path: str
    """of a file; empty: none is named"""

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{quote(self.revision, safe='')}"
        return f"hf://{self.repository}{revision}{'/' if self.path else ''}{self.path}"


def parse_name(name: str) -> HubName:
    """UnknownModelError for what is no such name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UnknownModelError(
            f"{name!r} is no name on the Hugging Face hub; those are hf://owner/name, "
            "hf://owner/name/file.gguf and, of a revision, hf://owner/name@revision/file.gguf"
        )
    repository, revision, path = match.groups()
    return HubName(repository, unquote(revision or "main"), path or "")


class RemoteFile(NamedTuple):
    """What the hub says of a file."""

    size: int | None
    hash: str | None
    """SHA-256 of the content, or git's SHA-1 of it as a blob"""

    def fault(self, path: Path) -> str | None:
        """What is wrong with a copy of the file."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size:,} bytes, not {self.size:,}"
        if self.hash is None:
            return None
        if len(self.hash) == 64:
            digest, kind = hashlib.sha256(), "SHA-256"
        else:
            digest, kind = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), "git hash"
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return None if digest.hexdigest() == self.hash else f"a file with another {kind}"


def _remote_file(size: object, digest: object) -> RemoteFile:
    """ValueError for what cannot be a file's size and hash."""
    known_size = size is None or (type(size) is int and size >= 0)
    known_hash = digest is None or (isinstance(digest, str) and _HASH.fullmatch(digest))
    if not known_size or not known_hash:
        raise ValueError(f"no size and hash of a file: {size!r}, {digest!r}"[:200])
    return RemoteFile(size, digest)  # type: ignore[arg-type]


class Repository:
    """A repository at the commit that a revision is pinned to."""

    def __init__(
        self, name: HubName, commit: str, files: dict[str, RemoteFile], checked: Iterable[str]
    ):
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"{commit[:80]!r} is no commit")
        self.name, self.commit, self.files = name, commit, files
        self._checked = {*checked}

    def fetch(self, names: Sequence[str]) -> Path:
        """The folder that has these files. Those that are not in it yet, or not with the size that
        they should have, are downloaded and checked. DownloadError says why not."""
        folder = _cached(self.name) / "snapshots" / self.commit
        missing = [name for name in names if not self._is_there(name, folder / name)]
        self._announce([name for name in missing if not (folder / name).is_file()])
        for name in missing:
            with _hub_errors(self.name, f"download {name} of {self.name}"):
                self._download(name)
            self._checked.add(name)
            self.record()
        return folder

    def _is_there(self, name: str, path: Path) -> bool:
        size = self.files[name].size
        return name in self._checked and path.is_file() and size in (None, path.stat().st_size)

    def _announce(self, names: list[str]) -> None:
        """Says what will be downloaded, if there is room for it."""
        cache = _cached(self.name)
        blobs = cache / "blobs"  # what another commit has as well is there already
        files = [self.files[name] for name in names]
        new = [file for file in files if not (file.hash and (blobs / file.hash).is_file())]
        if not new:
            return
        size = sum(file.size or 0 for file in new)
        free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.is_dir())).free
        if size > free:
            raise DownloadError(
                f"cannot download {self.name}: {size:,} bytes are to come, {free:,} are free in "
                f"{cache} (HF_HOME names another folder)"
            )
        count = "1 file" if len(new) == 1 else f"{len(new)} files"
        announce(f"{self.name}: downloading {count}, {size:,} bytes, to {cache}")

    def _download(self, name: str) -> None:
        from huggingface_hub import hf_hub_download

        fault = None
        for again in (False, True):  # a copy may be damaged, or become so on its way
            path = Path(
                hf_hub_download(
                    self.name.repository, name, revision=self.commit, force_download=again
                )
            )
            fault = self.files[name].fault(path)
            if fault is None:
                return
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
        raise DownloadError(f"cannot download {name} of {self.name}: what came is {fault}")

    def record(self) -> None:
        """Writes the record that `open_repository` reads."""
        files = {
            name: {"size": file.size, "hash": file.hash, "checked": name in self._checked}
            for name, file in self.files.items()
        }
        record = json.dumps({"commit": self.commit, "files": files}, indent=1)
        path = _record_path(self.name)
        with _record_errors(self.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(record.encode())


def folder_of(repository: str) -> Path:
    """Where our cache keeps what belongs to a repository."""
    return cache_folder() / "hub" / repository.replace("/", "--")


def _record_path(name: HubName) -> Path:
    return folder_of(name.repository) / f"{quote(name.revision, safe='')}.json"


@contextmanager
def _record_errors(name: HubName) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"no record of {name} can be kept: {in_words(error)} (PYLLAMA2C_CACHE names another "
            "folder)"
        ) from error


def _read_record(name: HubName) -> Repository | None:
    path = _record_path(name)
    with _record_errors(name):
        if not path.is_file():
            return None
        text = path.read_bytes()
    try:
        values = json.loads(text)
        files = values["files"].items()
        known = {file: _remote_file(entry["size"], entry["hash"]) for file, entry in files}
        checked = [file for file, entry in files if entry["checked"] is True]
        return Repository(name, values["commit"], known, checked)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DownloadError(
            f"{path} is damaged: `pyllama2c download {name}` asks the hub again"
        ) from error


def _cached(name: HubName) -> Path:
    """Where huggingface_hub's cache keeps a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, f"models--{name.repository.replace('/', '--')}")


def _ask(name: HubName) -> Repository:
    from huggingface_hub import HfApi

    with _hub_errors(name, f"ask the hub for {name}"):
        info = HfApi().model_info(
            name.repository, revision=name.revision, timeout=TIMEOUT, files_metadata=True
        )
        files = {
            file.rfilename: _remote_file(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in info.siblings or ()
        }
        return Repository(name, str(info.sha), files, checked=())


def _from_cache(name: HubName) -> Repository | None:
    """What other programs have downloaded of it."""
    cache = _cached(name)
    reference = cache / "refs" / name.revision
    commit = name.revision
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    folder = cache / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Repository(name, commit, dict.fromkeys(names, RemoteFile(None, None)), names)


def open_repository(name: HubName, *, refresh: bool = False) -> Repository:
    """The repository, at the commit that the revision was when it was first asked for or, to
    `refresh` that, is now.

    Where the hub cannot be asked, what huggingface_hub's cache has of it. UnknownModelError for a
    repository or revision that the hub does not have, or does not show; DownloadError says why it
    cannot be asked.
    """
    if find_spec("huggingface_hub") is None:
        raise UnsupportedError(f"{name} needs huggingface_hub: pip install 'pyllama2c[hub]'")
    known = None if refresh else _read_record(name)
    if known is not None:
        return known
    try:
        repository = _ask(name)
    except DownloadError as error:
        found = None if refresh else _from_cache(name)
        if found is None:
            raise
        announce(f"{error}; what is here of commit {found.commit} is used")
        return found
    if refresh:
        _tell_of_move(repository)
    repository.record()
    return repository


def _tell_of_move(repository: Repository) -> None:
    name = repository.name
    with suppress(DownloadError):  # of a record that is damaged
        before = _read_record(name)
        if before is not None and before.commit != repository.commit:
            announce(f"{name} was {before.commit}, and is now {repository.commit}")


@contextmanager
def _hub_errors(name: HubName, what: str) -> Iterator[None]:
    """Errors of huggingface_hub, which raises what httpx, requests and hf_xet do as well."""
    from huggingface_hub import errors

    try:
        yield
    except Llama2cError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"cannot {what}: its owner gives it to those who ask at "
            f"{_endpoint()}/{name.repository} and log in: `hf auth login`, or HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnknownModelError(
            f"{name.repository} has no revision {name.revision!r}, or not any more what it was: "
            f"`pyllama2c download {name}` asks the hub again"
        ) from error
    except Exception as error:
        if isinstance(error, errors.RepositoryNotFoundError) or _asks_for_login(error):
            raise UnknownModelError(
                f"{_host()} has no repository {name.repository}, or it is private and needs a "
                "login that may read it: `hf auth login`, or HF_TOKEN"
            ) from error
        raise DownloadError(f"cannot {what}: {_reason(error)}") from error


def _asks_for_login(error: Exception) -> bool:
    """Whether the hub asks who it is, which it does of what is not there as well."""
    from huggingface_hub import get_token

    return _status(error) == 401 and get_token() is None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return str(ENDPOINT)


def _host() -> str:
    return urlsplit(_endpoint()).hostname or _endpoint()


_NO_ACCESS = {
    401: ": the token of HF_TOKEN or `hf auth login` is not valid",
    403: ": the token of HF_TOKEN or `hf auth login` may not read it",
}


def _reason(error: BaseException) -> str:
    """Why a request failed, whichever package made it: they do not share their classes."""
    if error.__cause__ is not None and type(error).__name__ in _WRAPPERS:
        return _reason(error.__cause__)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = _status(error)
    if "OfflineModeIsEnabled" in kinds:
        return "HF_HUB_OFFLINE is set, and no good copy of it is here"
    if status is not None:
        from http.client import responses

        answer = f"{status} {responses.get(status, '')}{_NO_ACCESS.get(status, '')}"
        return f"{_host()} answered {answer}"
    if "ProxyError" in kinds:
        return f"the proxy gives no connection to {_host()}"
    if kinds & {"TimeoutException", "Timeout"}:
        return f"{_host()} did not answer in time"
    if "CERTIFICATE" in str(error):
        return f"no secure connection to {_host()}: its certificate is not trusted here"
    if kinds & {"ReadError", "RemoteProtocolError", "ChunkedEncodingError"}:
        return f"the connection to {_host()} broke off"
    if kinds & {"TransportError", "ConnectionError"}:
        return f"no connection to {_host()} (is there a network?)"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{in_words(error)} (HF_HOME names another folder for downloads)"
    return " ".join(str(error).split())[:300]
