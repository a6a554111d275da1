"""Compiles kernels.cu to PTX and keeps it as package data: no user needs a CUDA toolkit.

    python csrc/cuda/build_ptx.py            writes pyllama2c/cuda/kernels.ptx.xz
    python csrc/cuda/build_ptx.py --check    compares that with its sources and their text

nvcc is $CUDA_HOME/bin/nvcc, or the one on the PATH. Its text is the same in every folder, so that
--check may compare byte for byte where nvcc has the version that made the committed text.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
KERNELS = FOLDER / "kernels.cu"
PACKAGE = ROOT / "pyllama2c" / "cuda"

# Nothing is fused but what says fmaf; the rest are nvcc's defaults, said because they matter.
FLAGS = ("-O3", "-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
CAPABILITIES = (75, 80)
# What the kernels need: drivers from CUDA 11.4 on take it. nvcc writes its own version.
VERSION = "7.4"


def package() -> ModuleType:
    """pyllama2c.cuda, without the rest of the package, which may not be built yet."""
    spec = importlib.util.spec_from_file_location("pyllama2c_cuda", PACKAGE / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def sources(path: Path = KERNELS) -> list[Path]:
    """A source and what it includes of ours, in the order of the includes."""
    found = [path]
    for name in re.findall(r'^\s*#\s*include "(.+)"', path.read_text(encoding="utf-8"), re.M):
        included = (path.parent / name).resolve()
        if included.exists():  # device_on_cpu.h is for g++ only
            found += sources(included)
    return list(dict.fromkeys(found))


def sources_hash() -> str:
    hashed = hashlib.sha256()
    for path in sources():
        text = path.read_bytes()
        hashed.update(f"{path.relative_to(ROOT).as_posix()} {len(text)}\n".encode() + text)
    return hashed.hexdigest()


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def nvcc_version(nvcc: str) -> str:
    """Such as "13.0.88"."""
    told = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release .*, V([\d.]+)", told)
    if found is None:
        raise RuntimeError(f"{nvcc} --version says nothing of a release: {told!r}")
    return found[1]


def portable(ptx: str) -> str:
    """Without comments, and without what drivers older than this nvcc refuse."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    ptx = re.sub(r'\s*\.pragma "used_bytes_mask [^;]*;', "", ptx)
    ptx, n = re.subn(r"^\.version .*$", f".version {VERSION}", ptx, flags=re.M)
    assert n == 1, f"{n} lines of .version"
    return re.sub(r"[ \t]*\n(\s*\n)*", "\n", ptx).lstrip("\n")


ROUNDED = ("add", "sub", "mul", "fma", "div", "rcp", "sqrt")
OTHERS = ("mad", "rsqrt", "sin", "cos", "ex2", "lg2", "tanh", "red", "atom")


def faults(ptx: str) -> Iterator[str]:
    """What would make results differ from the CPU's, or the text from build to build."""
    for line in ptx.splitlines():
        statement = re.sub(r"^(@!?%\w+)?\s*", "", line.strip())
        operation = statement.split(maxsplit=1)[0].rstrip(";") if statement else ""
        name, *rest = operation.split(".")
        floats = [part for part in rest if part in ("f16", "f16x2", "bf16", "f32", "f64")]
        if {"ftz", "approx", "full", "sat"} & set(rest):
            yield f"not IEEE arithmetic: {statement}"
        elif floats and name in ROUNDED and "rn" not in rest:
            yield f"not rounded to nearest, or may be fused: {statement}"
        elif floats and name in OTHERS:
            yield f"not one IEEE operation: {statement}"
        elif name == "cvt" and floats and not exact(rest):
            yield f"rounded otherwise: {statement}"
        elif re.match(r"(\.visible )?\.(func|global|const)\b|call\b", statement):
            yield f"neither a kernel nor inlined into one: {statement}"
    for found in re.findall(r"^\.visible \.entry (?!l2c_[a-z0-9_]+\()(.*)", ptx, re.M):
        yield f"a kernel without a C name: {found}"


def exact(conversion: list[str]) -> bool:
    """Whether cvt with these parts is exact, rounds to nearest, or to an integer towards zero."""
    to, of = conversion[-2:]
    widens = (of, to) in (("f16", "f32"), ("f32", "f64"), ("bf16", "f32"))
    to_integer = to[0] in "su" and conversion[0] in ("rzi", "rni")
    return widens or to_integer or conversion[0] == "rn"


def compile_text(nvcc: str, capability: int) -> bytes:
    command = [nvcc, *FLAGS, f"-arch=compute_{capability}", "-ptx", "-o", "-", str(KERNELS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    ptx = portable(done.stdout)
    found = list(faults(ptx))
    if found:
        raise RuntimeError(f"PTX for {capability}:\n" + "\n".join(found[:20]))
    return ptx.encode()


def build(nvcc: str) -> Any:
    """The Kernels that nvcc makes of the sources."""
    with ThreadPoolExecutor() as pool:
        texts = pool.map(lambda capability: compile_text(nvcc, capability), CAPABILITIES)
        made = dict(zip(CAPABILITIES, texts, strict=True))
    return package().Kernels(sources_hash(), FLAGS, nvcc_version(nvcc), made)


def committed() -> Any:
    """The Kernels that the package has."""
    return package().unpack((PACKAGE / package().NAME).read_bytes())


def check() -> str:
    """What was compared; RuntimeError where the committed file is not what its sources make."""
    old = committed()
    if old.sources != sources_hash() or old.flags != FLAGS:
        raise RuntimeError("kernels.ptx.xz is older than its sources: run csrc/cuda/build_ptx.py")
    nvcc = find_nvcc()
    if nvcc is None:
        return "its sources are unchanged; there is no nvcc to compile them with"
    built = build(nvcc)
    if built.nvcc != old.nvcc:
        return f"its sources compile with nvcc {built.nvcc}; {old.nvcc} made the committed text"
    if built.texts != old.texts:
        raise RuntimeError(f"nvcc {built.nvcc} makes another kernels.ptx.xz of the same sources")
    return f"nvcc {built.nvcc} makes the same text of its sources"


def main() -> None:
    """Also what `PYLLAMA2C_CUDA=1 pip install .` runs."""
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("There is no nvcc: install the CUDA toolkit, or name its folder in CUDA_HOME.")
    try:
        data = package().pack(build(nvcc))
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))
    (PACKAGE / package().NAME).write_bytes(data)
    print(f"{PACKAGE / package().NAME}: {len(data)} bytes")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        try:
            print(check())
        except RuntimeError as error:
            sys.exit(str(error))
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        main()
