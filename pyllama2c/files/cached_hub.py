"""Models of the Hugging Face hub that were opened here, and their removal. Nothing here asks the
network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from pyllama2c.errors import DownloadError, UnknownModelError
from pyllama2c.files.hub import cache_folder
from pyllama2c.files.repository import (
    HubName,
    folder_of,
    parse_name,
    read_record,
    record_path,
)

CONVERTED = "float16"
"""dtype of matrices in converted models"""
_CONVERTED = re.compile(rf"[0-9a-f]{{40}}-{CONVERTED}\.gguf")


def converted_path(repository: str, commit: str) -> Path:
    """Where the GGUF file that a repository's folder was converted to is kept."""
    return folder_of(repository) / f"{commit}-{CONVERTED}.gguf"


class HubModel(NamedTuple):
    """A repository at the commit that a revision was when it was first opened."""

    name: str
    commit: str
    downloaded: dict[str, Path]
    """its files in huggingface_hub's cache, which other programs share"""
    converted: Path | None
    """the GGUF file in our cache that its folder was converted to"""

    @property
    def n_bytes(self) -> int:
        """what it takes on the disk"""
        paths = [*self.downloaded.values(), *([self.converted] if self.converted else [])]
        return sum(path.stat().st_size for path in paths)


def _recorded() -> Iterator[HubName]:
    for path in sorted((cache_folder() / "hub").glob("*--*/*.json")):
        yield HubName(path.parent.name.replace("--", "/", 1), unquote(path.stem), "")


def hub_models() -> tuple[list[HubModel], list[str]]:
    """Those with a record, and what is wrong with records that cannot be read."""
    models, faults = [], []
    for name in _recorded():
        try:
            repository = read_record(name)
        except DownloadError as error:
            faults.append(str(error))
            continue
        if repository is not None:
            path = converted_path(name.repository, repository.commit)
            converted = path if path.is_file() else None
            there = repository.downloaded()
            models.append(HubModel(str(name), repository.commit, there, converted))
    return models, faults


def remove_hub_model(name: str) -> list[tuple[Path, int]]:
    """Removes what our cache has of hf://owner/name[@revision]: the record of its commit, and the
    converted file unless another revision is that commit. Downloads stay: other programs use them.

    Returns the files and their sizes. UnknownModelError for a name with a file in it,
    FileNotFoundError for what was not opened here.
    """
    parsed = parse_name(name)
    if parsed.path:
        whole = parsed._replace(path="")
        raise UnknownModelError(f"{name} names a file; {whole} names all that is kept of it")
    record, folder = record_path(parsed), folder_of(parsed.repository)
    if not record.is_file():
        raise FileNotFoundError(f"{name} is not in the cache, {folder}")
    kept = {model.commit for model in hub_models()[0] if parse_name(model.name) != parsed}
    found = [path for path in folder.iterdir() if _CONVERTED.fullmatch(path.name)]
    mine = [path for path in sorted(found) if path.name[:40] not in kept]
    removed = []
    for path in [record, *mine]:
        removed.append((path, path.lstat().st_size))
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return removed
