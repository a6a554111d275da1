"""Known models: names to pinned files, downloaded once, checked, cached."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pyllama2c.errors import DownloadError, TokenizerNotFoundError, UnknownModelError

LLAMA2_VOCAB_SIZE = 32000
RETRIES = 2

_FindTokenizer = Callable[[int], Path]


class File(NamedTuple):
    """A file with its pinned content."""

    name: str
    url: str
    size: int
    sha256: str


class ModelFiles(NamedTuple):
    checkpoint: Path
    tokenizer: _FindTokenizer
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

    def fetch(self, name: str, progress: bool = True, recheck: bool = False) -> Path:
        """The path of a known file, downloading it if it is not in the cache.

        A file enters the cache under its name only after its SHA-256 has been checked, so one
        that is there with the right size is taken as it is, unless `recheck`.
        """
        file, folder = self.files[name], cache_folder()
        path = folder / name
        if not recheck and path.is_file() and path.stat().st_size == file.size:
            return path
        import pooch

        downloader = pooch.HTTPDownloader(progressbar=progress, timeout=30)
        retrieve = pooch.create(
            path=folder,
            base_url="",
            registry={name: f"sha256:{file.sha256}"},
            urls={name: file.url},
            retry_if_failed=RETRIES,
        )
        pooch.get_logger().setLevel("ERROR")
        try:
            return Path(retrieve.fetch(name, downloader=downloader))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong hash is not
            reason = " ".join(str(error).split())
            raise DownloadError(
                f"cannot download {name} ({reason[:300]}). Fetch {file.url} by hand "
                f"({file.size:,} bytes, SHA-256 {file.sha256}) and put it at {path}"
            ) from error


def no_tokenizer(checkpoint: str) -> _FindTokenizer:
    def find(vocab_size: int) -> Path:
        raise TokenizerNotFoundError(
            2,
            f"no tokenizer for its {vocab_size} pieces: name one with tokenizer=... "
            "(-z on the command line) or put a tokenizer.bin beside it",
            checkpoint,
        )

    return find


def _beside(checkpoint: Path) -> _FindTokenizer:
    def find(vocab_size: int) -> Path:
        neighbour = checkpoint.parent / "tokenizer.bin"
        if neighbour.is_file():
            return neighbour
        if vocab_size == LLAMA2_VOCAB_SIZE:
            return Registry().fetch("tokenizer.bin", progress=sys.stderr.isatty())
        return no_tokenizer(str(checkpoint))(vocab_size)

    return find


def find_model(
    model: str | os.PathLike[str] | None, tokenizer: str | os.PathLike[str] | None = None
) -> ModelFiles:
    """The files that `Llama(model, tokenizer)` means. Raises UnknownModelError, DownloadError."""
    if model is None:
        folder = data_folder()
        return ModelFiles(folder / "storyteller.bin", lambda _: folder / "tokenizer.bin")
    name = os.fspath(model)
    if os.path.exists(name) or os.sep in name or name.endswith((".bin", ".gguf")):
        return ModelFiles(Path(name), _beside(Path(name)))
    registry = Registry()
    if name not in registry.models:
        known = ", ".join(registry.models)
        raise UnknownModelError(f"no file and no known model is called {name!r}; known: {known}")
    entry, progress = registry.models[name], sys.stderr.isatty()

    def known_tokenizer(vocab_size: int) -> Path:
        neighbour = Path("models") / entry["tokenizer"]
        return neighbour if neighbour.is_file() else registry.fetch(entry["tokenizer"], progress)

    local = Path("models") / entry["checkpoint"]
    checkpoint = local if local.is_file() else registry.fetch(entry["checkpoint"], progress)
    return ModelFiles(checkpoint, known_tokenizer)


def download_model(name: str) -> list[Path]:
    """Fetches a known model and its tokenizer, with progress; checks again what is there."""
    registry = Registry()
    if name not in registry.models:
        known = ", ".join(registry.models)
        raise UnknownModelError(f"no known model is called {name!r}; known: {known}")
    entry = registry.models[name]
    return [registry.fetch(entry[part], recheck=True) for part in ("checkpoint", "tokenizer")]
