"""Compiles the engine to WebAssembly and keeps it as package data: pages need no compiler.

    python csrc/wasm/build_wasm.py            writes pyllama2c/wasm/engine.wasm.xz
    python csrc/wasm/build_wasm.py --check    compares that with its sources, compiled once more

The compiler is the package ziglang of exactly this version (pip install ziglang==0.17.1), whose
output is the same on every machine; --check compares byte for byte where it is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "pyllama2c" / "wasm" / "engine.wasm.xz"
ZIGLANG = "0.17.1"

# What WebAssembly has instead of these is system/wasm.c: no files, one thread, no cards.
SYSTEMS = ("library", "posix", "threads", "windows")
ELSEWHERE = ("csrc/cuda", *(f"csrc/system/{name}.c" for name in SYSTEMS))
# Which matrices would be how large on a card is asked of every model.
BESIDES = ("csrc/cuda/absent.c", "csrc/cuda/layout.c")

FLAGS = (
    *("-target", "wasm32-wasi", "-mexec-model=reactor", "-std=c11", "-O3", "-g0", "-msimd128"),
    *("-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-DL2C_SHARED", "-DNDEBUG"),
    *("-Wall", "-Wextra", "-Werror", "-Wl,--export=malloc", "-Wl,--export=free"),
    *("-Wl,--export-dynamic", "-Wl,--strip-all", "-Wl,-z,stack-size=1048576"),
)


def sources() -> list[Path]:
    found = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.c")]
    kept = [p for p in found if not p.as_posix().startswith(ELSEWHERE)]
    return sorted([*kept, *map(Path, BESIDES)])


def sources_hash() -> str:
    """Of the sources, the headers they may include, and how they are compiled."""
    headers = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.h")]
    hashed = hashlib.sha256(" ".join((ZIGLANG, *FLAGS)).encode())
    for path in sorted([*sources(), *headers]):
        text = (ROOT / path).read_bytes()
        hashed.update(f"{path.as_posix()} {len(text)}\n".encode() + text)
    return hashed.hexdigest()


def compiler() -> list[str] | None:
    """ziglang's C compiler, where that version is installed."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    zig = [sys.executable, "-m", "ziglang"]
    version = subprocess.run([*zig, "version"], check=True, capture_output=True, text=True)
    return [*zig, "cc"] if version.stdout.strip() == ZIGLANG else None


def number(value: int) -> bytes:
    """As WebAssembly writes it: LEB128."""
    low, value = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + number(value) if value else bytes([low])


def section(name: str, content: bytes) -> bytes:
    """A custom section, which engines skip."""
    body = number(len(name)) + name.encode() + content
    return b"\0" + number(len(body)) + body


def build(compile: list[str]) -> bytes:
    """The module, with the hash of its sources in the section "sources"."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "engine.wasm"
        # A cache of its own: what the last build left behind proves nothing.
        cold = dict.fromkeys(("ZIG_LOCAL_CACHE_DIR", "ZIG_GLOBAL_CACHE_DIR"), folder)
        command = [*compile, *FLAGS, "-Icsrc", *map(str, sources()), "-o", str(out)]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **cold}, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        module = out.read_bytes()
    return module + section("sources", sources_hash().encode())


def check() -> str:
    """What was compared; RuntimeError where the committed module is not what its sources make."""
    old = lzma.decompress(TARGET.read_bytes())
    if not old.endswith(section("sources", sources_hash().encode())):
        raise RuntimeError("engine.wasm.xz is older than its sources: run csrc/wasm/build_wasm.py")
    compile = compiler()
    if compile is None:
        return f"its sources are unchanged; there is no ziglang {ZIGLANG} to compile them with"
    if build(compile) != old:
        raise RuntimeError(f"ziglang {ZIGLANG} makes another module of the same sources")
    return f"ziglang {ZIGLANG} makes the same module of its sources"


def main() -> None:
    compile = compiler()
    if compile is None:
        sys.exit(f"There is no ziglang {ZIGLANG}: pip install ziglang=={ZIGLANG}")
    try:
        module = build(compile)
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))
    data = lzma.compress(module, preset=9 | lzma.PRESET_EXTREME)
    whole = TARGET.with_suffix(".new")
    whole.write_bytes(data)
    whole.replace(TARGET)
    print(f"{TARGET.relative_to(ROOT)}: {len(data):,} bytes, unpacked {len(module):,}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        try:
            print(check())
        except RuntimeError as error:
            sys.exit(str(error))
    else:
        main()
