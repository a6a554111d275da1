"""What a model's name means: a file, a known model, or one of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from fnmatch import filter as matching
from pathlib import Path
from posixpath import dirname, join
from typing import TYPE_CHECKING
from urllib.parse import quote

from pyllama2c import convert, validate
from pyllama2c.errors import (
    DownloadError,
    Llama2cError,
    UnknownModelError,
    UnsupportedError,
    in_words,
)
from pyllama2c.files import hub
from pyllama2c.files.hub import ModelFiles
from pyllama2c.progress import announce, watched

if TYPE_CHECKING:
    from pyllama2c.files.repository import Repository

_SCHEME = "hf:/"
"""what a path that is normalized leaves of hf://"""
_DTYPE = "float16"
"""of the matrices of converted folders"""


def find_model(model: str | os.PathLike[str] | None) -> ModelFiles:
    """The files that `Llama(model)` means, downloaded and converted where need be.

    Raises UnknownModelError and DownloadError, and what `convert` raises.
    """
    validate.file_path("model", model, optional=True)
    if model is None or not os.fspath(model).startswith(_SCHEME):
        return hub.find_model(model)
    return _from_hub(os.fspath(model), refresh=False)


def download_model(model: str) -> list[Path]:
    """Fetches a known model and its tokenizer, or what a name on the hub means by now; checks again
    what is there."""
    if not model.startswith(_SCHEME):
        return hub.download_model(model)
    return [_from_hub(model, refresh=True).checkpoint]


def hub_name(repo_id: str, filename: str | None, revision: str | None) -> str:
    """hf://owner/name@revision/filename of its parts."""
    for argument, value in (("repo_id", repo_id), ("filename", filename), ("revision", revision)):
        if not isinstance(value, str) and (value is not None or argument == "repo_id"):
            raise validate.wrong(argument, value, "text", TypeError)
    name = "hf://" + repo_id.removeprefix("hf://")
    if revision is not None:
        name += "@" + quote(revision, safe="")
    return name if filename is None else f"{name}/{filename}"


def _from_hub(name: str, refresh: bool) -> ModelFiles:
    from pyllama2c.files.repository import open_repository, parse_name

    parsed = parse_name(name)
    repository = open_repository(parsed, refresh=refresh)
    path, names = parsed.path, [*repository.files]
    models = [n for n in names if n.endswith((".gguf", ".bin")) and "pytorch_model" not in n]
    if path in names:
        return _one_file(repository, path)
    if path:
        found = matching(models, path)
    elif settings := convert.settings_files(names):
        converted = _converted(repository, settings)
        return ModelFiles(converted, hub.no_tokenizer(str(converted)))
    else:
        found = matching(models, "*.gguf")
    if len(found) == 1:
        return _one_file(repository, found[0])
    there = ", ".join(sorted(found or models)[:20]) or "nothing that this package reads"
    is_what = "could be any of several files" if found else "is no model"
    raise UnknownModelError(f"{parsed} {is_what}; name one of those in the repository: {there}")


def _one_file(repository: Repository, path: str) -> ModelFiles:
    if not path.endswith((".gguf", ".bin")):
        raise UnsupportedError(
            f"{repository.name}: {path} is neither GGUF nor a llama2.c checkpoint; without "
            "it the name means the whole folder, which is converted"
        )
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path):
        raise UnsupportedError(
            f"{repository.name}: {path} is a part of a model; merge its parts into one file "
            "(llama-gguf-split --merge)"
        )
    file = repository.fetch([path]) / path
    beside = join(dirname(path), "tokenizer.bin")

    def find_tokenizer(vocab_size: int) -> Path:
        if beside in repository.files:
            repository.fetch([beside])
        return hub.beside(file)(vocab_size)

    return ModelFiles(file, find_tokenizer)


def _converted(repository: Repository, settings: list[str]) -> Path:
    """The repository as a GGUF file, which is written once."""
    from pyllama2c.files.repository import folder_of

    name = repository.name
    target = folder_of(name.repository) / f"{repository.commit}-{_DTYPE}.gguf"
    if target.is_file():
        return target
    convert.check_packages()
    folder = repository.fetch(settings)
    convert.check_settings(folder)  # before gigabytes of weights come
    repository.fetch(convert.weight_files(folder, [n for n in repository.files if "/" not in n]))
    announce(f"{name}: converting to GGUF, once; {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        called = name.repository.rpartition("/")[2]
        convert.convert(folder, target, dtype=_DTYPE, name=called, progress=watched())
    except OSError as error:
        if isinstance(error, Llama2cError):  # a file of the model's
            raise
        raise DownloadError(
            f"cannot convert {name}: {in_words(error)} (PYLLAMA2C_CACHE names another folder)"
        ) from error
    return target
