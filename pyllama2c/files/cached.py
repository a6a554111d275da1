"""Known models that are on this disk, and their removal. Nothing here asks the network."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pyllama2c.files.hub import File, Registry, cache_folder, sha256_of


class KnownModel(NamedTuple):
    """A model of the registry, and which of its files are in the cache."""

    name: str
    checkpoint: File
    tokenizer: File
    local: Path | None
    """`models/` in the working directory has a checkpoint of this name, which is used instead"""
    cached: list[File]
    """those in the cache with their size; their hashes were checked when they entered it"""


def known_models(registry: Registry | None = None) -> list[KnownModel]:
    registry = registry or Registry()
    models = []
    for name, entry in registry.models.items():
        checkpoint = registry.files[entry["checkpoint"]]
        tokenizer = registry.files[entry["tokenizer"]]
        local = Path("models") / checkpoint.name
        cached = [file for file in (checkpoint, tokenizer) if _has_size_of(file)]
        used = local if local.is_file() else None
        models.append(KnownModel(name, checkpoint, tokenizer, used, cached))
    return models


def _has_size_of(file: File) -> bool:
    try:
        status = (cache_folder() / file.name).stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == file.size


class Removed(NamedTuple):
    freed: list[tuple[Path, int]]
    """files that are gone, and their sizes"""
    left: list[Path]
    """files of a known name and size whose content is another: somebody else's"""


def remove_models(names: Iterable[str], registry: Registry | None = None) -> Removed:
    """Removes known models from the cache, and tokenizers that no other model there needs.

    PYLLAMA2C_CACHE may name a folder with other files in it, so only what has the known content
    goes. UnknownModelError for a name that is not known, FileNotFoundError for a model that is not
    there; nothing is removed then.
    """
    registry = registry or Registry()
    models = {model.name: model for model in known_models(registry)}
    chosen = set(names)
    kept = [m for m in models.values() if m.name not in chosen and m.checkpoint in m.cached]
    needed = {model.tokenizer for model in kept}
    files: set[File] = set()
    for name in chosen:
        registry.entry(name, "not")
        own = set(models[name].cached) - needed
        if not own:
            raise FileNotFoundError(f"{name} is not in the cache, {cache_folder()}")
        files |= own
    freed, left = [], []
    for file in sorted(files):
        path = cache_folder() / file.name
        if sha256_of(path) != file.sha256:
            left.append(path)
            continue
        n_bytes = path.lstat().st_size  # a link's own: what it leads to stays
        path.unlink()
        freed.append((path, n_bytes))
    return Removed(freed, left)
