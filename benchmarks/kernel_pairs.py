"""The float kernels of two builds against each other, in turn, in one process.

    python benchmarks/kernel_pairs.py HEAD~3 [NEW] [--isa avx2] [--pairs 41]

OLD and NEW are git revisions, or folders that hold csrc; NEW is the working tree if left out. gcc
compiles each with the package's own flags. A ratio is the median of old / new over the pairs, in
processor time, which other programs on the machine disturb least: below 1 the new build is slower.
Both builds must have the kernels' table (kernels.h) in the same layout.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from common import table

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-w"]


def source(name: str, scratch: Path) -> Path:
    """The csrc of a git revision, extracted to `scratch`, or of a folder."""
    if Path(name).is_dir():
        return Path(name) / "csrc"
    command = ["git", "-C", str(ROOT), "archive", name, "csrc"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    folder = scratch / name.replace("/", "_")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "csrc"


def compiled(csrc: Path, to: Path) -> Path:
    """A shared library that, unlike the package's, exports the kernels' tables."""
    files = sorted(str(path) for path in csrc.rglob("*.c"))
    include = [f"-I{csrc}", f"-I{csrc / 'kernels'}"]
    command = ["gcc", *FLAGS, *include, "-shared", "-fPIC", "-Wl,-Bsymbolic", *files, "-lm"]
    subprocess.run([*command, "-o", str(to)], check=True)
    return to


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("old")
    made.add_argument("new", nargs="?", default=str(ROOT))
    made.add_argument("--isa", default="avx2,avx512", help="tables, with commas [avx2,avx512]")
    made.add_argument("--pairs", type=int, default=41)
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        new = source(arguments.new, scratch)
        libraries = [
            compiled(source(arguments.old, scratch), scratch / "old.so"),
            compiled(new, scratch / "new.so"),
        ]
        driver = scratch / "kernel_pairs"
        include = [f"-I{new}", f"-I{new / 'kernels'}"]
        code = str(Path(__file__).with_suffix(".c"))
        subprocess.run(["gcc", "-O2", "-w", *include, code, "-ldl", "-o", str(driver)], check=True)
        rows = []
        for isa in arguments.isa.split(","):
            command = [driver, *libraries, f"l2c_kernels_{isa}", str(arguments.pairs)]
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows += [[isa, *line.split(",")] for line in lines.splitlines()]
    sys.stdout.write(table(["table", "kernel", "n", "old ns", "new ns", "ratio"], rows) + "\n")


if __name__ == "__main__":
    main()
