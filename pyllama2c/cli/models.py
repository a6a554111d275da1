"""`list` and `rm`: known models, and those of them that are on this disk."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pyllama2c.cli.streams import say, show
from pyllama2c.engine.plan import size
from pyllama2c.files.cached import KnownModel, known_models, remove_models
from pyllama2c.files.hub import File, cache_folder, data_folder, sha256_of


def list_models(arguments: argparse.Namespace) -> int:
    models = known_models()
    if arguments.json:
        show(json.dumps({"cache": str(cache_folder()), "models": [*map(_facts, models)]}, indent=2))
        return 0
    embedded = data_folder() / "storyteller.bin"
    rows = [("NAME", "SIZE", "WHERE", "SHA-256"), ("(default)", size(embedded.stat().st_size))]
    rows[1] += ("embedded", sha256_of(embedded))
    for model in models:
        file = model.checkpoint
        rows.append((model.name, size(file.size), _where(model), file.sha256))
    for name, n_bytes, where, sha256 in rows:
        show(f"{name:12}  {n_bytes:>7}  {where:14}  {sha256}")
    files = {file for model in models for file in model.cached}
    used = size(sum(file.size for file in files))
    say(f"{cache_folder()}: {used} of known models and tokenizers")
    return 0


def _where(model: KnownModel) -> str:
    if model.local is not None:
        return str(model.local.parent) + "/"
    return "cached" if model.checkpoint in model.cached else "not downloaded"


def _facts(model: KnownModel) -> dict[str, Any]:
    def facts(file: File) -> dict[str, Any]:
        path = str(cache_folder() / file.name) if file in model.cached else None
        return {**file._asdict(), "path": path}

    return {
        "name": model.name,
        "checkpoint": facts(model.checkpoint),
        "tokenizer": facts(model.tokenizer),
        "used_instead": None if model.local is None else str(model.local.resolve()),
    }


def remove(arguments: argparse.Namespace) -> int:
    removed = remove_models(arguments.name)
    for path, n_bytes in removed.freed:
        say(f"{path}: removed, {size(n_bytes)} freed")
    for path in removed.left:
        say(f"{path}: kept; it is not the file known by that name")
    return 0
