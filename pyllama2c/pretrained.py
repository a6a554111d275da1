"""From the name of a model to its files: a path, a known model, or one on the Hugging Face hub."""

from __future__ import annotations

import errno
import os
import re
from fnmatch import filter as matching
from pathlib import Path
from posixpath import dirname, join
from typing import TYPE_CHECKING
from urllib.parse import quote

from pyllama2c import convert, validate
from pyllama2c.errors import (
    CheckpointNotFoundError,
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

_SCHEMES = ("hf:/", "https:/", "http:/")
"""with the one slash that pathlib leaves of two"""
_LOOKS_LIKE_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.bin)(?<!\.gguf)", re.ASCII)


def is_hub_name(model: str) -> bool:
    """Whether a name is one of the Hugging Face hub's, or a link to its pages."""
    return model.startswith(_SCHEMES)


def find_model(model: str | os.PathLike[str] | None) -> ModelFiles:
    """The files of `Llama(model)`, downloaded and converted if necessary.

    Raises UnknownModelError, DownloadError, and the exceptions of `convert`.
    """
    validate.file_path("model", model, optional=True)
    name = "" if model is None else os.fspath(model)
    if is_hub_name(name):
        return _from_hub(name, refresh=False)
    if _LOOKS_LIKE_HUB.fullmatch(name) and not os.path.exists(name):
        why = f"no such file; hf://{name} would name a model on the Hugging Face hub"
        raise CheckpointNotFoundError(errno.ENOENT, why, name)
    return hub.find_model(model)


def download_model(model: str) -> list[Path]:
    """Fetches a known model and its tokenizer, or the current commit of one on the hub; rechecks
    what is cached."""
    if not is_hub_name(model):
        return hub.download_model(model)
    return [_from_hub(model, refresh=True).checkpoint]


def hub_name(repo_id: str, filename: str | None, revision: str | None) -> str:
    """Joins the parts to hf://owner/name@revision/filename."""
    for argument, value in (("repo_id", repo_id), ("filename", filename), ("revision", revision)):
        if not isinstance(value, str) and (value is not None or argument == "repo_id"):
            raise validate.wrong(argument, value, "a string", TypeError)
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
    if not models:
        raise UnknownModelError(
            f"{parsed.repository} has no GGUF file, llama2.c checkpoint or folder to convert"
        )
    listed = sorted(found or models)
    text = ", ".join(listed[:20]) + (", ..." if len(listed) > 20 else "")
    matches = "several files; name one:" if found else "no file; the repository has"
    raise UnknownModelError(f"{parsed} matches {matches} {text}")


def _one_file(repository: Repository, path: str) -> ModelFiles:
    name = repository.name
    if not path.endswith((".gguf", ".bin")):
        raise UnsupportedError(
            f"{name.repository}: {path} is neither a GGUF file nor a llama2.c checkpoint; "
            f"{name._replace(path='')} converts the whole repository"
        )
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path):
        raise UnsupportedError(
            f"{name.repository}: {path} is one part of a split model; download and merge the "
            "parts (llama-gguf-split --merge)"
        )
    file = repository.fetch([path]) / path
    beside = join(dirname(path), "tokenizer.bin")

    def find_tokenizer(vocab_size: int) -> Path:
        if beside in repository.files:
            repository.fetch([beside])
        return hub.beside(file)(vocab_size)

    return ModelFiles(file, find_tokenizer)


def _converted(repository: Repository, settings: list[str]) -> Path:
    """The repository as a GGUF file, converted on first use."""
    from pyllama2c.files.cached_hub import CONVERTED, converted_path

    name = repository.name
    target = converted_path(name.repository, repository.commit)
    if target.is_file():
        return target
    convert.check_packages()
    folder = repository.fetch(settings)
    convert.check_settings(folder)  # before gigabytes of weights are downloaded
    repository.fetch(convert.weight_files(folder, [n for n in repository.files if "/" not in n]))
    announce(f"{name}: converting once to {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        called = name.repository.rpartition("/")[2]
        convert.convert(folder, target, dtype=CONVERTED, name=called, progress=watched())
    except OSError as error:
        if isinstance(error, Llama2cError):  # about the model's own files
            raise
        raise DownloadError(
            f"cannot convert {name}: {in_words(error)} (PYLLAMA2C_CACHE names another folder)"
        ) from error
    return target
