"""Imports run downwards: every module imports only from the layers below its own, and there are no
cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pyllama2c

PACKAGE = Path(pyllama2c.__file__).parent
LAYERS = """
    errors handle progress models cuda dialects wasm
    _ffi validate
    files
    engine
    tokenizers
    generation
    chat
    convert
    pretrained
    opened
    model
    meta
    cli integrations
    __main__
"""
"""the lowest first; those on one line do not import each other, but validate imports _ffi"""

RANK = {part: rank for rank, line in enumerate(LAYERS.split("\n")) for part in line.split()}


def names(nodes: list[ast.stmt]) -> Iterator[str]:
    """What is imported when the code runs: in functions as well, for type checkers not."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        yield from names(
            [
                child
                for child in ast.iter_child_nodes(node)
                if isinstance(child, ast.stmt | ast.ExceptHandler)
            ]
        )


def graph() -> dict[str, set[str]]:
    """Modules, and those of the package that each imports."""
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "_build.py" and path != PACKAGE / "__init__.py"
    }
    found = {}
    for module, path in paths.items():
        known = set()
        for name in names(ast.parse(path.read_text(encoding="utf-8")).body):
            if name.startswith("pyllama2c."):
                name = name.removeprefix("pyllama2c.")
                known |= {name, name.rpartition(".")[0]} & paths.keys()
        # A package is imported before what lies in it, which it may import when it is called.
        found[module] = {name for name in known if not f"{module}.".startswith(f"{name}.")}
    return found


def test_no_import_cycles() -> None:
    modules = graph()
    assert len(modules) > 60 and any(modules.values())
    TopologicalSorter(modules).prepare()  # CycleError names the cycle


def test_imports_run_downwards() -> None:
    upwards = [
        f"{module} imports {name}"
        for module, known in graph().items()
        for name in known
        if (part := module.split(".")[0]) != (other := name.split(".")[0])
        and (RANK[other] >= RANK[part] and (part, other) != ("validate", "_ffi"))
    ]
    assert not upwards
