"""Translates the shipped PTX into C++ for the emulator: tested is the text that a driver is given.

    python tests/cuda/translate_ptx.py FOLDER    writes one file a kernel and the tables of kernels

An instruction that is not in RULES, or is there with other modifiers, ends the translation.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ptx_rules import (
    ANY,
    ATOMIC,
    COMBINE,
    COMPARE,
    RULES,
    SHARED,
    SPECIAL,
    TYPES,
    TYPES_SIZE,
    UNORDERED,
)


class UnknownError(Exception):
    """Something that the translator has not learned."""


@dataclass
class Kernel:
    name: str
    params: dict[str, int] = field(default_factory=dict)
    """where each parameter begins"""
    n_bytes: int = 0
    code: str = ""

    @property
    def function(self) -> str:
        """Its C++ name: the same for the same text, so that texts share what is alike in both."""
        digest = hashlib.sha256(self.code.encode()).hexdigest()[:12]
        return f"{self.name}_{digest}"


@cache
def rule(op: str) -> tuple[str, str, str]:
    """The rule of an instruction, and which type it captures."""
    for pattern, (kinds, template) in RULES.items():
        if match := re.fullmatch(pattern, op):
            return kinds, template, match[1]
    raise UnknownError(op)


def split(text: str) -> list[str]:
    """At the commas outside of braces and brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)]


def in_braces(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{} ").split(",")]


def is_float(kind: str) -> bool:
    return kind[0] == "f"


def register(text: str) -> str:
    if not re.fullmatch(r"%[a-z]\w*", text):
        raise UnknownError(f"register {text}")
    return text[1:]


class Body:
    """The translation of one kernel's statements."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.registers: dict[str, str] = {}
        """their types"""

    def value(self, text: str, kind: str) -> str:
        """A source operand, as a C++ expression of type `kind`."""
        if kind == "barrier":
            if text != "0":
                raise UnknownError(f"barrier {text}")
            return text
        c = TYPES[kind]
        if text in SPECIAL:
            return SPECIAL[text]
        if text.startswith("!%"):
            return "!" + self.value(text[1:], kind)
        if text.startswith("%"):
            name, of = register(text), self.registers[text[1:]]
            if TYPES[of] == c:
                return name
            return f"({c}){name}" if is_float(of) == is_float(kind) else f"ptx::as<{c}>({name})"
        if match := re.fullmatch(r"0f([0-9A-F]{8})", text):
            return f"ptx::as<{c}>(ptx::as<float>(0x{match[1]}u))"
        if match := re.fullmatch(r"0d([0-9A-F]{16})", text):
            return f"ptx::as<{c}>(ptx::as<double>((uint64_t)0x{match[1]}u))"
        if re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+", text) and kind[0] != "f":
            return f"({c})" + (f"{text}ll" if text[0] == "-" else f"{text}ull")
        if text == SHARED:
            return f"({c})0"  # an address in shared memory: cvta.shared makes a general one of it
        if text in self.kernel.params:
            return f"(uint64_t)(param + {self.kernel.params[text]})"
        raise UnknownError(f"operand {text}")

    def address(self, text: str, space: list[str]) -> str:
        match = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        if match is None:
            raise UnknownError(f"address {text}")
        base, offset = match[1], match[2] or "0"
        if base in self.kernel.params:
            return f"(uint64_t)param + {self.kernel.params[base]} + {offset}"
        if base == SHARED:
            return f"ptx::shared() + {offset}"
        if "shared" in space:  # 32 bits, or 64 of which the upper ones are 0
            return f"ptx::shared() + (uint32_t)({register(base)} + {offset})"
        return f"{register(base)} + (uint64_t)(int64_t){offset}"

    def put(self, to: str, value: str, kind: str) -> str:
        """Writes a value of this type into a register; narrow integers extend by their sign."""
        name, of = register(to), self.registers[to[1:]]
        return (
            f"{name} = {value};"
            if is_float(of) == is_float(kind)
            else f"ptx::put({name}, {value});"
        )

    def memory(self, op: str, args: list[str]) -> str:
        match = re.fullmatch(
            r"(ld|st)(\.(?:acquire|release|relaxed)\.(?:gpu|sys)|\.volatile)?(\.param|\.global|\.shared)?"
            r"(?:\.nc)?(?:\.L1::no_allocate)?(?:\.v([24]))?" + r"\." + ANY,
            op,
        )
        if match is None:
            raise UnknownError(op)
        load, order, space = match[1] == "ld", match[2], [(match[3] or "")[1:]]
        n, kind = int(match[4] or 1), match[5]
        c, size = TYPES[kind], TYPES_SIZE[kind]
        registers, where = (args[0], args[1]) if load else (args[1], args[0])
        each = in_braces(registers) if n > 1 else [registers]
        lines = [f"unsigned char *at = ptx::aligned({self.address(where, space)}, {n * size});"]
        if order and load:
            lines.insert(0, "emulator::look_again();")
        for i, one in enumerate(each):
            if load:
                lines.append(self.put(one, f"ptx::load<{c}>(at + {i * size})", kind))
            else:
                lines.append(f"ptx::store<{c}>(at + {i * size}, {self.value(one, kind)});")
        return "{ " + " ".join(lines) + " }"

    def atomic(self, op: str, args: list[str]) -> str:
        *modifiers, kind = op.split(".")[1:]
        known = {"relaxed", "acquire", "release", "acq_rel", "gpu", "global", "shared"}
        (how,) = set(modifiers) - known  # ValueError where there are more
        if kind not in ("u32", "s32", "b32", "u64"):
            raise UnknownError(op)
        b = self.value(args[2], kind)
        new = ATOMIC[how].format(b)
        at = self.address(args[1], modifiers)
        c = TYPES[kind]
        before = f"unsigned char *at = ptx::aligned({at}, {TYPES_SIZE[kind]});"
        before += f" {c} old = ptx::load<{c}>(at);"
        return f"{{ {before} ptx::store<{c}>(at, {new}); {self.put(args[0], 'old', kind)} }}"

    def compare(self, op: str, args: list[str]) -> str:
        match = re.fullmatch(rf"setp\.(\w+)(?:\.(and|or|xor))?\.{ANY}", op)
        if match is None or (match[1] not in COMPARE and match[1] not in UNORDERED):
            raise UnknownError(op)
        how, combine, kind = match[1], match[2], match[3]
        a, b = self.value(args[1], kind), self.value(args[2], kind)
        if kind[0] == "f" and how == "ne":
            result = f"{a} < {b} || {a} > {b}"
        else:
            result = UNORDERED[how].format(a, b) if how in UNORDERED else f"{a} {COMPARE[how]} {b}"
        if combine:
            result = f"({result}) {COMBINE[combine]} {self.value(args[3], 'pred')}"
        return self.put(args[0], f"(bool)({result})", "pred")

    def convert(self, op: str, args: list[str]) -> str:
        if match := re.fullmatch(r"cvt\.([su]\d+)\.([su]\d+)", op):
            return self.put(
                args[0], f"({TYPES[match[1]]}){self.value(args[1], match[2])}", match[1]
            )
        if match := re.fullmatch(r"cvt\.(rzi|rni)\.([su]\d+)\.(f32|f64)", op):
            rounded = {"rzi": "trunc", "rni": "nearbyint"}[match[1]]
            x = f"({TYPES[match[3]]}){rounded}({self.value(args[1], match[3])})"
            return self.put(args[0], f"ptx::clamp_to<{TYPES[match[2]]}>({x})", match[2])
        raise UnknownError(op)

    def matrix(self, op: str, args: list[str]) -> str:
        """A product of the tensor cores: d = a b + c."""
        shape = re.fullmatch(
            r"mma\.sync\.aligned\.(m16n8k32|m8n8k16)\.row\.col\.s32\.s8\.s8\.s32", op
        )
        if shape is None:
            raise UnknownError(op)
        d, a, b, c = (in_braces(argument) for argument in args)
        sources = ""
        for name, words in zip("abc", (a, b, c), strict=True):
            values = ", ".join(self.value(one, "u32") for one in words)
            sources += f"const uint32_t {name}[] = {{{values}}}; "
        results = " ".join(self.put(one, f"d[{i}]", "u32") for i, one in enumerate(d))
        if shape[1] == "m16n8k32":
            call = "emulator::mma_m16n8k32(d, a, b, c);"
        else:
            call = "emulator::mma_m8n8k16(d, a[0], b[0], c);"
        return f"{{ {sources} uint32_t d[{len(d)}]; {call} {results} }}"

    def move(self, args: list[str]) -> str | None:
        """mov.b64 and mov.b32 that take a register apart or put one together."""
        if args[0].startswith("{"):
            parts = in_braces(args[0])
            whole = self.value(args[1], "b64")
            low = self.put(parts[0], "(uint32_t)whole", "u32")
            high = self.put(parts[1], "(uint32_t)(whole >> 32)", "u32")
            return f"{{ uint64_t whole = {whole}; {low} {high} }}"
        if args[1].startswith("{"):
            low, high = (self.value(one, "b32") for one in in_braces(args[1]))
            return self.put(args[0], f"(uint64_t){high} << 32 | {low}", "u64")
        return None

    def plain(self, op: str, args: list[str]) -> str:
        kinds, template, captured = rule(op)
        to = args[0].partition("|")[0] if op.startswith("shfl") else args[0]
        wanted = [captured if kind == "T" else kind for kind in kinds.split()]
        values = [self.value(text, kind) for text, kind in zip(args[1:], wanted, strict=True)]
        made = next((part for part in op.split(".")[1:] if part in TYPES), "b32")
        return self.put(to, template.format(*values, T=TYPES.get(captured, "")), made)

    def instruction(self, op: str, args: list[str]) -> str:
        name = op.partition(".")[0]
        if op in ("bra", "bra.uni"):
            return f"goto {label(args[0])};"
        if op in ("ret", "exit"):
            return "return;"
        if op in ("bar.sync", "barrier.sync", "barrier.sync.aligned"):
            self.value(args[0], "barrier")
            return "emulator::barrier(0);"
        if op == "bar.warp.sync":
            return f"ptx::sync_warp({self.value(args[0], 'u32')});"
        if re.fullmatch(r"(membar\.gl|membar\.sys|fence\.(sc|acq_rel)\.(gpu|sys|cta))", op):
            return ";"  # one thread runs at a time
        handlers: dict[str, Callable[[str, list[str]], str]] = {
            "ld": self.memory,
            "st": self.memory,
            "atom": self.atomic,
            "setp": self.compare,
            "mma": self.matrix,
        }
        if name in handlers:
            return handlers[name](op, args)
        if op == "mov.b64" and (moved := self.move(args)):
            return moved
        try:
            return self.plain(op, args)
        except UnknownError:
            if name != "cvt":
                raise
            return self.convert(op, args)

    def statement(self, text: str) -> str:
        if text == '.pragma "nounroll"':
            return ""
        if match := re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)<(\d+)>", text):
            names = [f"{match[2]}{i}" for i in range(int(match[3]))]
            self.registers |= dict.fromkeys(names, match[1])
            return f"{TYPES[match[1]]} {', '.join(names)};"
        if match := re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)", text):  # in a scope of its own
            if self.registers.setdefault(match[2], match[1]) != match[1]:
                raise UnknownError("a register of two types")
            return f"{TYPES[match[1]]} {match[2]};"
        match = re.fullmatch(r"(?:@(!?)%(\w+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", text, re.S)
        if match is None:
            raise UnknownError(text)
        done = self.instruction(match[3], split(match[4] or ""))
        return f"if ({match[1]}{match[2]}) {{ {done} }}" if match[2] else done


def label(text: str) -> str:
    return text.replace("$", "_")


def statements(body: str) -> Iterator[str]:
    """Labels with their colon, braces of scopes, and statements without their semicolon."""
    at = 0
    while match := re.compile(r"\s*(?:(\$\w+:)|([{}])|([^;]+);)").match(body, at):
        at = match.end()
        yield (match[1] or match[2] or match[3]).strip()
    if body[at:].strip():
        raise UnknownError(body[at:].strip()[:80])


def parameters(kernel: Kernel, text: str) -> None:
    pattern = r"\.param\s+(?:\.align (\d+)\s+)?\.[a-z](\d+)\s+(\w+)(?:\[(\d+)\])?"
    for found in re.finditer(pattern, text):
        size = int(found[2]) // 8 * int(found[4] or 1)
        align = int(found[1] or size)
        kernel.params[found[3]] = -(-kernel.n_bytes // align) * align
        kernel.n_bytes = kernel.params[found[3]] + size


def kernels(ptx: str) -> Iterator[Kernel]:
    """The kernels of a text, each with `code`: a C++ function body that takes `param`."""
    pattern = r"\.visible \.entry (\w+)\((.*?)\)([^{]*)\{\n(.*?)\n\}"
    found = re.findall(pattern, ptx, re.S)
    if len(found) != ptx.count(".entry"):
        raise UnknownError(f"{ptx.count('.entry') - len(found)} kernels of another form")
    for name, params, _, body in found:
        kernel = Kernel(name)
        parameters(kernel, params)
        translation, lines = Body(kernel), []
        for text in statements(body):
            if text.endswith(":"):
                lines.append(f"{label(text)};")
            elif text in "{}":
                lines.append(text)
            else:
                try:
                    lines.append(translation.statement(text))
                except (UnknownError, KeyError, ValueError, IndexError) as error:
                    raise UnknownError(f"{name}: {text}: {error}") from error
        kernel.code = "\n".join(lines)
        yield kernel


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def write(path: Path, text: str) -> Path:
    """Only where it changes something: what is compiled from it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def write_kernels(texts: dict[int, bytes], folder: Path) -> list[Path]:
    """One file a kernel; then, first in the list, fake_cuda's table of all texts."""
    declared, tables, rows, files = set(), [], [], {}
    for capability, ptx in texts.items():
        table = []
        for kernel in kernels(ptx.decode()):
            name = kernel.function
            head = f'#include "ptx_runtime.h"\nextern "C" void {name}(const void *params) {{\n'
            head += "const unsigned char *param = (const unsigned char *)params;\n(void)param;\n"
            files[name] = write(folder / f"{name}.cpp", f"{head}{kernel.code}\n}}\n")
            declared.add(f'extern "C" void {name}(const void *);\n')
            table.append(f'{{"{kernel.name}", {name}, {kernel.n_bytes}}},\n')
        tables.append(f"static const FakeKernel kernels_{capability}[] = {{\n{''.join(table)}}};\n")
        rows.append(f"{{0x{fnv1a(ptx):016X}u, kernels_{capability}, {len(table)}}},\n")
    whole = "".join(['#include "fake/texts.h"\n', *sorted(declared), *tables])
    whole += f"const FakeText fake_texts[] = {{\n{''.join(rows)}}};\n"
    whole += f"const size_t fake_n_texts = {len(rows)};\n"
    return [write(folder / "texts.cpp", whole), *(files[name] for name in sorted(files))]


def write_table(capability: int, ptx: bytes, folder: Path) -> Path:
    """kernel_table.h's table over one text; the kernels are those of write_kernels."""
    lines = ['#include "kernel_table.h"\n']
    for kernel in kernels(ptx.decode()):
        name, function = kernel.name, kernel.function
        lines.append(f'extern "C" void {function}(const void *);\n')
        lines.append(f'#define PTX_{name} {{"{name}", {function}, {kernel.n_bytes}}},\n')
    lines.append("#define ENTRY(name, type) PTX_l2c_##name\n")
    lines.append("const kernel_entry kernel_table[] = {L2C_GPU_KERNELS(ENTRY)};\n")
    return write(folder / f"table_{capability}.cpp", "".join(lines))


def shipped() -> dict[int, bytes]:
    """The texts of pyllama2c/cuda, of this folder's package."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "csrc" / "cuda"))
    import build_ptx

    texts: dict[int, bytes] = build_ptx.committed().texts
    return texts


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        write_kernels(shipped(), Path(sys.argv[1]))
        for each, text in shipped().items():
            write_table(each, text, Path(sys.argv[1]))
    except UnknownError as unknown:
        sys.exit(f"not translated: {unknown}")
