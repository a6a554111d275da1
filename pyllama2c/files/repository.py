"""Repositories on the Hugging Face hub: revisions are pinned to commits, and files are checked.

huggingface_hub does the downloading, with its own settings (HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE), into its own cache, which other programs share. A record in our cache adds which
commit a revision was when it was first opened, and which files have been checked against the hub's
hashes. So later calls open the same bytes, online or offline, even if the revision has moved.
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
from urllib.parse import quote, unquote

from pyllama2c.errors import DownloadError, UnknownModelError, UnsupportedError, in_words
from pyllama2c.files.hub import TIMEOUT, cache_folder
from pyllama2c.files.hub_errors import hub_errors
from pyllama2c.files.whole import whole_file
from pyllama2c.progress import announce

_NAME = re.compile(
    r"hf:/+([\w.-]+/[\w.-]+?)"  # one slash is left after pathlib has normalized it
    r"(?:@((?:refs/(?:pr|convert)/)?[^/@\s]{1,80}))?"
    r"(?:/([^/].*))?/*",
    re.ASCII,
)
_LINK = re.compile(
    r"https?:/+(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)"
    r"(?:/(?:blob|resolve|tree)/([^/?\s]{1,80})(?:/([^?]+))?)?/?(?:\?.*)?",
    re.ASCII,
)
_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class HubName(NamedTuple):
    """The parts of hf://owner/name@revision/path."""

    repository: str
    revision: str
    path: str
    """of a file in the repository, or empty"""

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{quote(self.revision, safe='')}"
        return f"hf://{self.repository}{revision}{'/' if self.path else ''}{self.path}"


def parse_name(name: str) -> HubName:
    """The name, which may also be a link to the hub's pages. UnknownModelError if it is neither."""
    match = _NAME.fullmatch(name) or _LINK.fullmatch(name)
    if match is None:
        raise UnknownModelError(
            f"{name!r} does not name a model on the Hugging Face hub: use hf://owner/name, "
            "hf://owner/name/file.gguf or, for a revision, hf://owner/name@revision/file.gguf"
        )
    repository, revision, path = match.groups()
    return HubName(repository, unquote(revision or "main"), path or "")


class RemoteFile(NamedTuple):
    """A file as the hub describes it."""

    size: int | None
    hash: str | None
    """SHA-256 of the content, or git's SHA-1 of the blob"""

    def fault(self, path: Path) -> str | None:
        """What is wrong with a copy of the file, if anything."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size:,} bytes instead of {self.size:,}"
        if self.hash is None:
            return None
        if len(self.hash) == 64:
            digest, kind = hashlib.sha256(), "SHA-256"
        else:
            digest, kind = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), "git hash"
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return None if digest.hexdigest() == self.hash else f"a file with the wrong {kind}"


def _remote_file(size: object, digest: object) -> RemoteFile:
    """ValueError for an impossible size or hash."""
    known_size = size is None or (type(size) is int and size >= 0)
    known_hash = digest is None or (isinstance(digest, str) and _HASH.fullmatch(digest))
    if not known_size or not known_hash:
        raise ValueError(f"not a file's size and hash: {size!r}, {digest!r}"[:200])
    return RemoteFile(size, digest)  # type: ignore[arg-type]


class Repository:
    """A repository at the commit to which a revision is pinned."""

    def __init__(
        self, name: HubName, commit: str, files: dict[str, RemoteFile], checked: Iterable[str]
    ):
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"{commit[:80]!r} is not a commit")
        self.name, self.commit, self.files = name, commit, files
        self._checked = {*checked}

    def fetch(self, names: Sequence[str]) -> Path:
        """The folder that holds these files. Files that are missing or have the wrong size are
        downloaded and checked first; DownloadError says why that failed."""
        folder = _cached(self.name) / "snapshots" / self.commit
        missing = [name for name in names if not self._is_there(name, folder / name)]
        self._announce([name for name in missing if not (folder / name).is_file()])
        for name in missing:
            gone = (
                f"commit {self.commit} is no longer in {self.name.repository}; "
                f"`pyllama2c download {self.name}` gets the current one"
            )
            with hub_errors(f"download {name} of {self.name}", self.name.repository, gone):
                self._download(name)
            self._checked.add(name)
            self.record()
        return folder

    def _is_there(self, name: str, path: Path) -> bool:
        size = self.files[name].size
        return name in self._checked and path.is_file() and size in (None, path.stat().st_size)

    def _announce(self, names: list[str]) -> None:
        """Says what will be downloaded. DownloadError if the disk has no room for it."""
        cache = _cached(self.name)
        blobs = cache / "blobs"  # files that a cached commit has as well
        files = [self.files[name] for name in names]
        new = [file for file in files if not (file.hash and (blobs / file.hash).is_file())]
        if not new:
            return
        size = sum(file.size or 0 for file in new)
        free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.is_dir())).free
        if size > free:
            raise DownloadError(
                f"cannot download {self.name}: it needs {size:,} bytes; {free:,} are free in "
                f"{cache} (HF_HOME names another folder)"
            )
        count = "1 file" if len(new) == 1 else f"{len(new)} files"
        announce(f"{self.name}: downloading {count} ({size:,} bytes) to {cache}")

    def _download(self, name: str) -> None:
        from huggingface_hub import hf_hub_download

        fault = None
        for again in (False, True):  # the cached file, or the first download, may be damaged
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
        raise DownloadError(f"cannot download {name} of {self.name}: the hub sent {fault}")

    def downloaded(self) -> dict[str, Path]:
        """The files that were fetched and are still there."""
        if find_spec("huggingface_hub") is None:
            return {}
        folder = _cached(self.name) / "snapshots" / self.commit
        return {name: folder / name for name in self.files if self._is_there(name, folder / name)}

    def record(self) -> None:
        """Writes the record that `open_repository` reads."""
        files = {
            name: {"size": file.size, "hash": file.hash, "checked": name in self._checked}
            for name, file in self.files.items()
        }
        record = json.dumps({"commit": self.commit, "files": files}, indent=1)
        path = record_path(self.name)
        with _record_errors(self.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(record.encode())


def folder_of(repository: str) -> Path:
    """Where our own cache keeps a repository's records and converted models."""
    return cache_folder() / "hub" / repository.replace("/", "--")


def record_path(name: HubName) -> Path:
    return folder_of(name.repository) / f"{quote(name.revision, safe='')}.json"


@contextmanager
def _record_errors(name: HubName) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"cannot record the commit of {name}: {in_words(error)} (PYLLAMA2C_CACHE names another "
            "folder)"
        ) from error


def read_record(name: HubName) -> Repository | None:
    path = record_path(name)
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
            f"{path} is damaged; `pyllama2c download {name}` replaces it"
        ) from error


def _cached(name: HubName) -> Path:
    """Where huggingface_hub's cache keeps a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, f"models--{name.repository.replace('/', '--')}")


def _look_up(name: HubName) -> Repository:
    from huggingface_hub import HfApi

    missing = f"{name.repository} has no revision {name.revision!r}"
    with hub_errors(f"look up {name}", name.repository, missing):
        info = HfApi().model_info(
            name.repository, revision=name.revision, timeout=TIMEOUT, files_metadata=True
        )
        files = {
            file.rfilename: _remote_file(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in info.siblings or ()
        }
        return Repository(name, str(info.sha), files, checked=())


def _from_cache(name: HubName) -> Repository | None:
    """What other programs have downloaded of the repository."""
    cache = _cached(name)
    reference = cache / "refs" / name.revision
    commit = name.revision
    if reference.is_file():
        commit = reference.read_text(errors="replace").strip()
    folder = cache / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Repository(name, commit, dict.fromkeys(names, RemoteFile(None, None)), names)


def open_repository(name: HubName, *, refresh: bool = False) -> Repository:
    """The repository at the commit that the revision was when it was first opened; with `refresh`,
    at its current commit.

    If the hub cannot be reached, falls back to what huggingface_hub has cached. UnknownModelError
    if the hub has no such repository or revision, or hides it; DownloadError if it cannot be asked.
    """
    if find_spec("huggingface_hub") is None:
        raise UnsupportedError(f"{name} needs huggingface_hub: pip install 'pyllama2c[hub]'")
    known = None if refresh else read_record(name)
    if known is not None:
        return known
    try:
        repository = _look_up(name)
    except DownloadError as error:
        found = None if refresh else _from_cache(name)
        if found is None:
            raise
        announce(f"{error}; using the cached commit {found.commit}")
        return found
    if refresh:
        _announce_move(repository)
    repository.record()
    return repository


def _announce_move(repository: Repository) -> None:
    name = repository.name
    with suppress(DownloadError):  # for a damaged record
        before = read_record(name)
        if before is not None and before.commit != repository.commit:
            announce(f"{name} moved from commit {before.commit} to {repository.commit}")
