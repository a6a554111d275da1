"""Compiles what tests/cuda is made of. Objects are kept in build/cuda, each under a hash of all
that it comes from."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "cuda"
BUILD = ROOT / "build" / "cuda"
INCLUDED = (ROOT / "csrc", SOURCES)

FLAGS = ("-O1", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-fvisibility=hidden")
STRICT = ("-Wall", "-Werror")
NEEDS = "needs gcc and g++ on an x86-64 machine, where the emulator runs"


def possible() -> bool:
    """Whether the emulator can be built; where CI runs, it has to be."""
    found = all(shutil.which(name) for name in ("gcc", "g++")) and platform.machine() == "x86_64"
    return found or os.environ.get("CI") == "true"


def toolkit() -> Path | None:
    """The folder of a CUDA toolkit, from $CUDA_HOME or by nvcc."""
    named = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc")
    places = [Path(named)] if named else []
    places += [Path(nvcc).resolve().parents[1]] if nvcc else []
    places.append(Path("/usr/local/cuda"))
    return next((place for place in places if (place / "include" / "cuda.h").exists()), None)


@cache
def script(path: str) -> ModuleType:
    """A program of this repository, such as "tests/cuda/translate_ptx.py", as a module."""
    folder, name = str((ROOT / path).parent), Path(path).stem
    if folder not in sys.path:
        sys.path.append(folder)
    return __import__(name)


@cache
def includes(path: Path) -> tuple[Path, ...]:
    """A source, and what it includes of this repository."""
    found = [path]
    for name in re.findall(r'^\s*#\s*include "(.+)"', path.read_text(encoding="utf-8"), re.M):
        for folder in (path.parent, *INCLUDED):
            if (folder / name).exists():
                found += includes((folder / name).resolve())
                break
    return tuple(dict.fromkeys(found))


def digest(paths: Iterable[Path], *texts: str) -> str:
    hashed = hashlib.sha256("\0".join(texts).encode())
    for path in paths:
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def compile_object(source: Path, *flags: str) -> Path:
    """The object of a source, from the last time if nothing changed."""
    compiler = ["gcc", "-std=c11"] if source.suffix == ".c" else ["g++", "-std=c++17"]
    command = [*compiler, *FLAGS, *flags]
    name = f"{source.stem}-{digest(includes(source), *command)}.o"
    made = BUILD / name
    if not made.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = BUILD / f"{name}.{os.getpid()}"
        command += [f"-I{folder}" for folder in INCLUDED]
        subprocess.run([*command, "-c", source, "-o", unfinished], check=True, cwd=ROOT)
        unfinished.replace(made)
    return made


def compile_objects(sources: Iterable[tuple[Path, tuple[str, ...]]]) -> list[Path]:
    """Those of sources, each with its own flags. The largest take longest, and begin first."""
    ordered = sorted(sources, key=lambda source: -source[0].stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compile_object(source[0], *source[1]), ordered))


def link(name: str, objects: list[Path], *flags: str) -> Path:
    """A program or library; name: its folder, without a hash, and file."""
    folder, _, file = name.partition("/")
    made = BUILD / f"{folder}-{digest(sorted(objects), *flags)}" / file
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        unfinished = made.with_name(f"{os.getpid()}")
        subprocess.run(["g++", *flags, "-o", unfinished, *objects, "-lm", "-pthread"], check=True)
        unfinished.replace(made)
    return made


def translated() -> list[Path]:
    """The C++ of the shipped PTX: fake_cuda's table of texts, then the kernels."""
    ptx = script("tests/cuda/translate_ptx.py")
    return list(ptx.write_kernels(ptx.shipped(), BUILD / "ptx"))


def engine() -> Iterator[Path]:
    yield from sorted((ROOT / "csrc").rglob("*.c"))
    yield SOURCES / "oracle.c"


def check_objects() -> list[Path]:
    """The tests of kernels and what they stand on, without kernels."""
    # Unrolled, the engine would take minutes to compile.
    sources = [(path, ("-DUNROLL=",)) for path in engine()]
    sources += [(path, STRICT) for path in SOURCES.glob("*.cpp") if path.stem != "source_kernels"]
    return compile_objects(sources)


def checks(kernels: str) -> Path:
    """The program that compares kernels with the CPU's. "sources": compiled by g++; "75", "80":
    those of the PTX for compute capability 7.5 or 8.0."""
    if kernels == "sources":
        sources = [(SOURCES / "source_kernels.cpp", STRICT)]
    else:
        ptx = script("tests/cuda/translate_ptx.py")
        table = ptx.write_table(int(kernels), ptx.shipped()[int(kernels)], BUILD / "ptx")
        needed = set(re.findall(r"void (\w+)\(", table.read_text()))
        sources = [(table, STRICT)]
        sources += [(path, ("-w",)) for path in translated()[1:] if path.stem in needed]
    return link(f"check_{kernels}/check", [*compile_objects(sources), *check_objects()])


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("sources", "75", "80"):
        sys.exit("usage: python tests/helpers/cuda_build.py sources|75|80")
    print(checks(sys.argv[1]))
