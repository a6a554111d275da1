"""Builds tests/cuda's fake libcuda.so.1 (fake/fake_cuda.h says what it is) and finds it again.

python tests/helpers/fake_cuda.py source    over csrc/cuda/kernels.cu as g++ compiles it
python tests/helpers/fake_cuda.py ptx       over the shipped PTX, translated to C++
python tests/helpers/fake_cuda.py trial     over the small kernels of fake/trial.cpp
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cuda_build import (
    NEEDS,
    ROOT,
    SOURCES,
    STRICT,
    compile_objects,
    link,
    possible,
    toolkit,
    translated,
)

__all__ = ["NEEDS", "build", "possible", "symbols", "toolkit"]

DRIVER = [SOURCES / "fake" / f"{name}.cpp" for name in ("device", "memory", "launch", "module")]


def build(kernels: str) -> Path:
    """The fake library over `kernels`: "source", "ptx" or "trial"."""
    sources = [(path, STRICT) for path in (*DRIVER, SOURCES / "emulator.cpp")]
    sources.append((ROOT / "csrc" / "kernels" / "quantized_scalar.c", ("-DUNROLL=",)))
    if kernels == "ptx":
        sources += [(path, ("-w",)) for path in translated()]
    else:
        sources.append((SOURCES / "fake" / f"{kernels}.cpp", STRICT))
    flags = ("-shared", "-Wl,-z,defs", "-Wl,-soname,libcuda.so.1")
    return link(f"fake_{kernels}/libcuda.so.1", compile_objects(sources), *flags)


def symbols(*, real_header: bool) -> set[str]:
    """What the driver's sources export, compiled with our declarations or with the toolkit's."""
    flags = (*STRICT, "-DFAKE_CUDA_REAL_HEADER", f"-isystem{toolkit()}/include")
    objects = compile_objects((path, flags if real_header else STRICT) for path in DRIVER)
    listed = subprocess.run(["nm", *objects], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1] for line in listed.splitlines() if " T cu" in line}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("source", "ptx", "trial"):
        sys.exit(__doc__)
    print(build(sys.argv[1]))
