"""Known models on this disk: which are there, and what `rm` takes away."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pyllama2c import UnknownModelError
from pyllama2c.files.cached import known_models, remove_models
from pyllama2c.files.hub import Registry

CONTENTS = {"a.bin": b"a" * 9, "b.bin": b"b" * 8, "shared.bin": b"s" * 7, "own.bin": b"o" * 6}
MODELS = {
    "a": {"checkpoint": "a.bin", "tokenizer": "shared.bin"},
    "b": {"checkpoint": "b.bin", "tokenizer": "shared.bin"},
    "c": {"checkpoint": "own.bin", "tokenizer": "own.bin"},
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(folder))
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Files that no server has."""
    files = {
        name: {
            "url": f"http://127.0.0.1:9/{name}",
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name, data in CONTENTS.items()
    }
    path = tmp_path / "registry.json"
    path.write_text(json.dumps({"files": files, "models": MODELS}))
    return Registry(path)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(CONTENTS[name])


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_which_models_are_there(cache: Path, registry: Registry) -> None:
    put(cache, "a.bin", "shared.bin")
    (cache / "own.bin").write_bytes(b"half")
    Path("models").mkdir()
    put(Path("models"), "b.bin")
    a, b, c = known_models(registry)
    assert [file.name for file in a.cached] == ["a.bin", "shared.bin"] and a.local is None
    assert [file.name for file in b.cached] == ["shared.bin"]
    assert b.local == Path("models/b.bin")
    assert c.cached == []


def test_a_tokenizer_goes_with_the_last_model_that_needs_it(
    cache: Path, registry: Registry
) -> None:
    put(cache, "a.bin", "b.bin", "shared.bin")
    (cache / "notes.txt").write_text("mine")
    removed = remove_models(["a"], registry)
    assert removed.freed == [(cache / "a.bin", 9)] and removed.left == []
    assert held(cache) == ["b.bin", "notes.txt", "shared.bin"]
    with pytest.raises(FileNotFoundError, match="a is not in the cache, "):
        remove_models(["a"], registry)
    put(cache, "a.bin")
    remove_models(["a", "b", "a"], registry)
    assert held(cache) == ["notes.txt"]


def test_nothing_is_removed_where_a_name_is_wrong(cache: Path, registry: Registry) -> None:
    put(cache, *CONTENTS)
    for wrong in ("d", "a.bin", "../a", ""):
        with pytest.raises(UnknownModelError, match="is not a known model; known: a, b, c"):
            remove_models(["a", wrong], registry)
    (cache / "own.bin").unlink()
    with pytest.raises(FileNotFoundError):
        remove_models(["a", "c"], registry)
    assert held(cache) == ["a.bin", "b.bin", "shared.bin"]


def test_files_of_somebody_else_stay(cache: Path, registry: Registry) -> None:
    """PYLLAMA2C_CACHE may name any folder, and `tokenizer.bin` is a common name."""
    put(cache, "a.bin")
    (cache / "shared.bin").write_bytes(b"mine!!!")
    assert len(CONTENTS["shared.bin"]) == len(b"mine!!!")
    removed = remove_models(["a"], registry)
    assert removed.freed == [(cache / "a.bin", 9)] and removed.left == [cache / "shared.bin"]
    assert held(cache) == ["shared.bin"]
    (cache / "own.bin").mkdir()
    with pytest.raises(FileNotFoundError, match="c is not in the cache"):
        remove_models(["c"], registry)
    assert held(cache) == ["own.bin", "shared.bin"]


def test_a_link_goes_and_what_it_leads_to_stays(
    cache: Path, registry: Registry, tmp_path: Path
) -> None:
    put(tmp_path, "a.bin")
    (cache / "a.bin").symlink_to(tmp_path / "a.bin")
    remove_models(["a"], registry)
    assert held(cache) == [] and (tmp_path / "a.bin").read_bytes() == CONTENTS["a.bin"]
