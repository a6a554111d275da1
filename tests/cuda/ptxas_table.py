"""What ptxas makes of the shipped PTX for each architecture: registers and spills by kernel, and
the instructions of the inner loops around the tensor cores' products.

    python tests/cuda/ptxas_table.py [75 80 86 ...]

prints the tables of docs/cuda-kernels.md; its status is 1 where a limit is passed. ptxas is the
toolkit's, so is nvdisasm, which `pip install nvidia-cuda-nvdisasm` brings as well: without it there
are no loops.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import translate_ptx

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
SPILLS_FORBIDDEN = re.compile(r"l2c_(decode|linear)_")
MOST_SPILLED = 128
"""bytes, in other kernels"""
MOST_PER_IMMA = {"l2c_linear_q8_128": 20, "l2c_linear_q8_64": 24, "l2c_linear_q4_64": 26}
"""instructions of the inner loop for each m16n8k32, on sm_80 and later"""


def assemble(ptx: Path, architecture: int, cubin: Path) -> dict[str, tuple[int, int]]:
    """Registers and bytes spilled (the larger of stores and loads) of each kernel."""
    command = ["ptxas", "-v", f"-arch=sm_{architecture}", "-o", str(cubin), str(ptx)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ptxas for sm_{architecture}: {done.stderr}")
    found = re.findall(
        r"Function properties for (\w+)\s.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        done.stderr,
        re.S,
    )
    return {
        name: (int(registers), max(int(stores), int(loads)))
        for name, stores, loads, registers in found
    }


def functions(disassembly: str) -> Iterator[tuple[str, list[str]]]:
    """Each kernel's labels (with their colon) and instructions."""
    for part in re.split(r"^\.text\.", disassembly, flags=re.M)[1:]:
        lines = []
        for line in part.splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                lines.append(f"{label[1]}:")
            elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
                lines.append(instruction[1])
        yield part.partition(":")[0], lines


def innermost_loops(lines: list[str]) -> Iterator[list[str]]:
    """The instructions of loops that hold no other."""
    labels = {line[:-1]: at for at, line in enumerate(lines) if line.endswith(":")}
    loops = []
    for at, line in enumerate(lines):
        target = re.search(r"\bBRA(?:\.\w+)*\b.*?(\.L_x_\d+)", line)
        if target and labels.get(target[1], at) < at:
            loops.append((labels[target[1]], at))
    for begin, end in loops:
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops):
            yield [line for line in lines[begin : end + 1] if not line.endswith(":")]


def mnemonic(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].partition(".")[0]


def per_product(lines: list[str], architecture: int) -> float | None:
    """Instructions for each m16n8k32 in the loop that has most of them; None without any."""
    counted = [Counter(map(mnemonic, loop)) for loop in innermost_loops(lines)]
    best = max(counted, key=lambda loop: loop["IMMA"], default=Counter())
    if best["IMMA"] == 0:
        return None
    # Turing's instruction is a quarter of the others'.
    return best.total() / best["IMMA"] * (4 if architecture == 75 else 1)


def nvdisasm() -> str | None:
    """The toolkit's, or the package's of this Python."""
    packages = Path(sysconfig.get_paths()["purelib"])
    found = next(packages.glob("nvidia/*/bin/nvdisasm"), None)
    return shutil.which("nvdisasm") or (str(found) if found else None)


def products(cubin: Path, architecture: int) -> dict[str, float]:
    """Instructions for each product, of those kernels that have some."""
    command = [nvdisasm() or "nvdisasm", "-c", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    each = {name: per_product(lines, architecture) for name, lines in functions(text)}
    return {name: n for name, n in each.items() if n is not None}


def only(ptx: str, kernels: Iterable[str]) -> str:
    """The text of some kernels, which is soon assembled."""
    head, *parts = re.split(r"(?=^\.visible \.entry )", ptx, flags=re.M)
    wanted = tuple(f".visible .entry {name}(" for name in kernels)
    return head + "".join(part for part in parts if part.startswith(wanted))


def print_table(title: str, architectures: list[int], rows: dict[str, list[str]]) -> None:
    print(f"\n| {title} |" + "".join(f" sm_{a} |" for a in architectures))
    print("|---|" + "---:|" * len(architectures))
    for name, cells in rows.items():
        print(f"| {name.removeprefix('l2c_')} | {' | '.join(cells)} |")


def main(architectures: list[int]) -> int:
    texts, over = translate_ptx.shipped(), []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for least, text in texts.items():
            (folder / f"{least}.ptx").write_bytes(text)

        def one(a: int) -> dict[str, tuple[int, int]]:
            least = max(least for least in texts if least <= a)
            return assemble(folder / f"{least}.ptx", a, folder / f"{a}.cubin")

        with ThreadPoolExecutor(2) as pool:
            table = dict(zip(architectures, pool.map(one, architectures), strict=True))
        rows: dict[str, list[str]] = {name: [] for name in table[architectures[0]]}
        for a in architectures:
            for name, (registers, spilled) in table[a].items():
                rows[name].append(f"{registers}{f' ({spilled})' if spilled else ''}")
                if spilled > (0 if SPILLS_FORBIDDEN.match(name) else MOST_SPILLED):
                    over.append(f"{name} spills {spilled} bytes on sm_{a}")
        print_table("registers (bytes spilled)", architectures, rows)
        rows = {}
        for a in architectures if nvdisasm() else []:
            for name, each in products(folder / f"{a}.cubin", a).items():
                rows.setdefault(name, []).append(f"{each:.1f}")
                if a >= 80 and each > MOST_PER_IMMA.get(name, each):
                    over.append(f"{name} takes {each:.1f} instructions a product on sm_{a}")
        if rows:
            print_table("instructions a product", architectures, rows)
    print("\n".join(over), file=sys.stderr)
    return bool(over)


if __name__ == "__main__":
    sys.exit(main([int(a) for a in sys.argv[1:]] or list(ARCHITECTURES)))
