"""Plants faults in the kernels, one at a time, and sees that the tests find each.

    python tests/cuda/mutate.py [NAME ...]    1 where one is not found

Only the sources are changed, in a copy; the tests are those of cuda_build.checks. test_mutate.py
plants a few of them together.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
import cuda_build

ROUNDS = 6


@dataclass(frozen=True)
class Fault:
    name: str
    tests: str
    """which part of the program has to find it"""
    file: str = ""
    old: str = ""
    new: str = ""
    flags: tuple[str, ...] = ()


FAULTS = [
    Fault("products and sums fused", "attention", flags=("-O2", "-ffp-contract=fast", "-mfma")),
    Fault(
        "wrong tree over 16 threads", "attention", "arithmetic.cuh",
        "__shfl_xor_sync(EVERY_LANE, lane, 8);\n    lane += __shfl_xor_sync(EVERY_LANE, lane, 4);",
        "__shfl_xor_sync(EVERY_LANE, lane, 4);\n    lane += __shfl_xor_sync(EVERY_LANE, lane, 8);",
    ),
    Fault(
        "wrong tree over 4 threads", "products", "arithmetic.cuh",
        "(lane.x + lane.z) + (lane.y + lane.w)", "(lane.x + lane.y) + (lane.z + lane.w)",
    ),
    Fault(
        "exp does not flush", "attention", "arithmetic.cuh",
        "if (x < L2C_EXP_LOW) return 0.0f;", "",
    ),
    Fault(
        "softmax does not flush", "attention", "attention.cuh",
        "scores[t] < least ? 0.0f : scores[t] / sum", "scores[t] / sum",
    ),
    Fault(
        "no barrier before sums are gathered", "attention", "attention.cuh",
        "sums[threadIdx.x] = sum;\n            __syncthreads();", "sums[threadIdx.x] = sum;",
    ),
    Fault(
        "no barrier between a row and its int8", "rows", "rows.cuh",
        "if (p.to.q == 0) return;\n    __syncthreads();", "if (p.to.q == 0) return;",
    ),
    Fault(
        "no barrier after a tile is read", "products", "dense.cuh",
        "/* ws follows xs */\n        }\n        __syncthreads();", "}",
    ),
    Fault(
        "no barrier of the grid after attention", "passes", "decode.cuh",
        "j % p.pass.n_heads);\n        grid_barrier(g);", "j % p.pass.n_heads);",
    ),
    Fault(
        "a tail one too short", "attention", "attention.cuh",
        "begin + L2C_SUM_BLOCK : n_keys;", "begin + L2C_SUM_BLOCK : n_keys - 1;",
    ),
    Fault(
        "the first block is added to 0", "attention", "attention.cuh",
        "b0 + b == 0 ? sums[column] : total + sums", "total + sums",
    ),
    Fault(
        "halves of a fragment swapped", "products", "packed.cuh",
        "at * 8 + j / 16 * 4", "at * 8 + (1 - j / 16) * 4",
    ),
    Fault(
        "a group's product in another order", "products", "packed.cuh",
        "fmaf(dot[e], w.scale[e / 2] * scale, sum[e])",
        "fmaf(dot[e] * w.scale[e / 2], scale, sum[e])",
    ),
    Fault(
        "long groups summed in the float's bits", "products", "packed.cuh",
        "TYPE == L2C_GPU_Q8 && p.w.chunks > 1", "TYPE == L2C_GPU_Q8 && p.w.chunks > 16",
    ),
    Fault(
        "the norm's weight comes first", "rows", "rows.cuh",
        "p.weight[j] * (scale * x[j])", "(p.weight[j] * scale) * x[j]",
    ),
    Fault(
        "a reciprocal instead of a division", "attention", "attention.cuh",
        "sum_lanes4(sum) / root", "sum_lanes4(sum) * (1.0f / root)",
    ),
    Fault(
        "a story goes on past its end", "passes", "sample.cuh",
        "p.draws[i].left = end ? 0 : left - 1;", "p.draws[i].left = left - 1;",
    ),
    Fault(
        "of equals, the larger id first", "sampler", "sample.cuh",
        "(unsigned long long)__float_as_uint(p) << 32 | ~(unsigned)id",
        "(unsigned long long)__float_as_uint(p) << 32 | (unsigned)id ^ 0u",
    ),
]  # fmt: skip


def mutant(faults: Sequence[Fault], folder: Path) -> Path:
    """source_kernels.cpp over a copy of csrc with the faults in it, as an object."""
    copy = folder / "csrc"
    for path in (cuda_build.ROOT / "csrc").rglob("*"):
        if path.suffix in (".h", ".cuh", ".cu"):
            to = copy / path.relative_to(cuda_build.ROOT / "csrc")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    for fault in faults:
        if fault.file:
            changed = copy / "cuda" / fault.file
            text = changed.read_text()
            if text.count(fault.old) != 1:
                raise SystemExit(f"{fault.name}: {fault.file} has not once what it changes")
            changed.write_text(text.replace(fault.old, fault.new))
    made = folder / "kernels.o"
    source = cuda_build.SOURCES / "source_kernels.cpp"
    flags = [flag for fault in faults for flag in fault.flags]
    command = ["g++", "-std=c++17", *cuda_build.FLAGS, "-O0", *flags, "-w", f"-I{copy}"]
    command += [f"-I{cuda_build.SOURCES}", "-c", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    return made


def found(faults: Sequence[Fault]) -> dict[str, str]:
    """What the tests say of each fault where all are planted; nothing where they pass. Those that
    are planted together are for different parts of the tests, in kernels that no other part runs.
    """
    name = faults[0].name.replace(" ", "_") + ("_and_others" if len(faults) > 1 else "")
    folder = cuda_build.BUILD / "mutants" / name
    shutil.rmtree(folder, ignore_errors=True)
    objects = [*cuda_build.check_objects(), mutant(faults, folder)]
    program = folder / "check"
    subprocess.run(["g++", "-o", program, *objects, "-lm", "-pthread"], check=True)
    said = {}
    for fault in faults:
        command = [str(program), "1", str(ROUNDS), fault.tests]
        done = subprocess.run(command, capture_output=True, text=True)
        failed = done.stdout or f"status {done.returncode}\n"
        said[fault.name] = "" if done.returncode == 0 else failed
    return said


def main(names: list[str]) -> int:
    missed = []
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        said = found([fault])[fault.name].splitlines()
        print(f"{fault.name}: {'NOT FOUND' if not said else said[-1]}", flush=True)
        missed += [] if said else [fault.name]
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
