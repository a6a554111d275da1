"""`list` and `rm`: known models and those of the hub, and which of them are on this disk."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pyllama2c.cli.streams import complain, say, show
from pyllama2c.engine.plan import size
from pyllama2c.files.cached import KnownModel, known_models, remove_models
from pyllama2c.files.cached_hub import HubModel, hub_models, remove_hub_model
from pyllama2c.files.hub import File, cache_folder, data_folder, sha256_of
from pyllama2c.files.repository import parse_name
from pyllama2c.pretrained import is_hub_name


def list_models(arguments: argparse.Namespace) -> int:
    models, (opened, faults) = known_models(), hub_models()
    for fault in faults:
        complain(f"pyllama2c: {fault}")
    if arguments.json:
        listed = {"models": [*map(_facts, models)], "hub": [*map(_hub_facts, opened)]}
        show(json.dumps({"cache": str(cache_folder()), **listed}, indent=2))
        return 0
    embedded = data_folder() / "storyteller.bin"
    rows = [
        ("NAME", "SIZE", "WHERE", "SHA-256, COMMIT"),
        ("(default)", size(embedded.stat().st_size)),
    ]
    rows[1] += ("embedded", sha256_of(embedded))
    for model in models:
        file = model.checkpoint
        rows.append((model.name, size(file.size), _where(model), file.sha256))
    for each in opened:
        where = "converted" if each.converted else "hub cache" if each.downloaded else "not there"
        rows.append((each.name, size(each.n_bytes), where, each.commit))
    width = max(len(name) for name, *_ in rows)
    for name, n_bytes, where, content in rows:
        show(f"{name:{width}}  {n_bytes:>7}  {where:14}  {content}")
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


def _hub_facts(model: HubModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "commit": model.commit,
        "size": model.n_bytes,
        "downloaded": {name: str(path) for name, path in model.downloaded.items()},
        "converted": None if model.converted is None else str(model.converted),
    }


def remove(arguments: argparse.Namespace) -> int:
    hub = [name for name in arguments.name if is_hub_name(name)]
    removed = remove_models(name for name in arguments.name if name not in hub)
    for path, n_bytes in removed.freed:
        say(f"{path}: removed, {size(n_bytes)} freed")
    for path in removed.left:
        say(f"{path}: kept; it is not the file known by that name")
    for name in hub:
        for path, n_bytes in remove_hub_model(name):
            say(f"{path}: removed, {size(n_bytes)} freed")
        repository = parse_name(name).repository
        say(f"its downloads are huggingface_hub's: hf cache rm model/{repository} removes them")
    return 0
