"""Builds tests/cuda's fake libcuda.so.1 (fake_cuda.h says what it is) and finds it again.

    python tests/helpers/fake_cuda.py source    over csrc/cuda/kernels.cu as g++ compiles it
    python tests/helpers/fake_cuda.py ptx       over the shipped PTX, translated to C++
    python tests/helpers/fake_cuda.py trial     over the small kernels of fake_trial.cpp

Objects are kept in build/cuda, each under a hash of all that it is made of.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "cuda"
BUILD = ROOT / "build" / "cuda"
FLAGS = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"]
STRICT = ["-Wall", "-Wextra", "-Werror"]
DRIVER = ["fake_device", "fake_memory", "fake_launch", "fake_module", "emulator"]

NEEDS = "needs g++ on an x86-64 machine, where the emulator runs"


def possible() -> bool:
    """Where CI runs, it has to be."""
    found = shutil.which("g++") is not None and platform.machine() == "x86_64"
    return found or os.environ.get("CI") == "true"


def toolkit() -> Path | None:
    """The folder of a CUDA toolkit, from $CUDA_HOME or by nvcc."""
    named = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc")
    places = [Path(named)] if named else []
    places += [Path(nvcc).resolve().parents[1]] if nvcc else []
    places.append(Path("/usr/local/cuda"))
    return next((place for place in places if (place / "include" / "cuda.h").exists()), None)


def digest(paths: Iterable[Path], *texts: str) -> str:
    hashed = hashlib.sha256("\0".join(texts).encode())
    for path in sorted(paths):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def headers() -> list[Path]:
    """Everything that may be included: small enough to be one thing."""
    folders = (SOURCES, ROOT / "csrc" / "cuda", ROOT / "csrc" / "kernels")
    return [path for folder in folders for path in folder.glob("*") if path.suffix != ".cpp"]


def compile_object(source: Path, flags: list[str], includes: list[Path]) -> Path:
    """The object of a source, from the last time if nothing changed."""
    compiler = "gcc" if source.suffix == ".c" else "g++"
    name = f"{source.stem}-{digest([source, *includes], compiler, *flags)}.o"
    made = BUILD / name
    if not made.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = BUILD / f"{name}.{os.getpid()}"
        include = [f"-I{ROOT / 'csrc'}", f"-I{SOURCES}"]
        command = [compiler, *flags, *include, "-c", str(source), "-o", str(unfinished)]
        subprocess.run(command, check=True, cwd=ROOT)
        unfinished.replace(made)
    return made


def build(kernels: str) -> Path:
    """The fake library over `kernels`: "source", "ptx" or "trial"."""
    included = headers()
    sources = [(SOURCES / f"{name}.cpp", [*FLAGS, *STRICT]) for name in DRIVER]
    sources.append((ROOT / "csrc" / "kernels" / "quantized_scalar.c", ["-std=c11", *FLAGS[1:]]))
    if kernels == "ptx":
        import translate_ptx

        sources += [(path, [*FLAGS, "-w"]) for path in translate_ptx.translate_shipped(BUILD)]
    else:
        sources.append((SOURCES / f"fake_{kernels}.cpp", FLAGS))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda s: compile_object(*s, included), sources))
    library = BUILD / f"fake_{kernels}-{digest(objects)}" / "libcuda.so.1"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        link = ["g++", "-shared", "-Wl,-z,defs", "-Wl,-soname,libcuda.so.1"]
        subprocess.run([*link, "-o", str(unfinished), *map(str, objects), "-lm"], check=True)
        unfinished.replace(library)
    return library


def symbols(*, real_header: bool) -> set[str]:
    """What the driver's sources export, compiled with our declarations or with the toolkit's."""
    flags = [*FLAGS, *STRICT]
    if real_header:
        flags += ["-DFAKE_CUDA_REAL_HEADER", f"-isystem{toolkit()}/include"]
    objects = [compile_object(SOURCES / f"{name}.cpp", flags, headers()) for name in DRIVER]
    listed = subprocess.run(["nm", *map(str, objects)], check=True, capture_output=True, text=True)
    return {line.split()[-1] for line in listed.stdout.splitlines() if " T cu" in line}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("source", "ptx", "trial"):
        sys.exit(__doc__)
    print(build(sys.argv[1]))
