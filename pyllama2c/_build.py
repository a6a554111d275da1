"""The cffi builder that setup.py runs. The C declarations are slices of the headers themselves."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from zlib import crc32

from cffi import FFI

# setuptools wants paths relative to setup.py, which is where it runs.
CSRC = Path("csrc")


def cdef() -> str:
    """What stands between cdef-begin and cdef-end in llama2c.h, then in testing.h."""
    regions = []
    for name in ("llama2c.h", "testing.h"):
        header = (CSRC / name).read_text(encoding="utf-8")
        match = re.search(r"/\* cdef-begin.*?\*/(.*)/\* cdef-end \*/", header, re.DOTALL)
        if match is None:
            raise RuntimeError(f"csrc/{name} has lost its cdef-begin or cdef-end mark")
        regions.append(match[1])
    return "".join(regions)


# What the engine was built from, for _ffi.py to compare with what it finds.
ORIGIN = f"""
#define PYLLAMA2C_HEADER_CRC {crc32((CSRC / "llama2c.h").read_bytes())}u
"""

# Per-instruction-set code sits in target regions of its own files, so one set of flags serves all.
# Never -ffast-math (it changes denormals for the whole process) nor -march (wheels travel). -g0:
# Python's own flags ask for debugging information, which was five sixths of the extension.
CFLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno"]
LDFLAGS: list[str] = []
LIBRARIES: list[str] = []
if sys.platform == "win32":  # clang-cl (setup.py), which reads MSVC's flags and, marked, its own
    CFLAGS = ["/O2", *(f"/clang:{flag}" for flag in CFLAGS), "-Wno-unused-command-line-argument"]
else:
    CFLAGS += ["-g0", "-fvisibility=hidden", "-pthread"]
    LDFLAGS += ["-pthread"]
    LIBRARIES += ["m"]

ffibuilder = FFI()
ffibuilder.cdef(cdef())
ffibuilder.cdef("#define PYLLAMA2C_HEADER_CRC ...\nstatic char *const L2C_VERSION;")
ffibuilder.set_source(
    "pyllama2c._llama2c",
    '#include "llama2c.h"\n#include "testing.h"' + ORIGIN,
    sources=sorted(str(path) for path in CSRC.rglob("*.c")),
    depends=sorted(str(path) for path in CSRC.rglob("*.h")),
    include_dirs=[str(CSRC)],
    extra_compile_args=[*CFLAGS, *os.environ.get("PYLLAMA2C_CFLAGS", "").split()],
    extra_link_args=[*LDFLAGS, *os.environ.get("PYLLAMA2C_LDFLAGS", "").split()],
    libraries=LIBRARIES,
)
