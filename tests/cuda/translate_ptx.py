"""Translates the shipped PTX into C++ for the emulator: what is tested is the text that a driver is given.

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

TYPES = {f"{kind}{bits}": f"{'' if kind == 's' else 'u'}int{bits}_t" for kind in "sub" for bits in (8, 16, 32, 64)}
TYPES |= {"f32": "float", "f64": "double", "pred": "bool"}
SPECIAL = {
    "%laneid": "emulator::current->lane",
    "%tid.x": "emulator::current->thread",
    "%ntid.x": "emulator::block_size",
    **{f"%tid.{axis}": "0u" for axis in "yz"},
    **{f"%ntid.{axis}": "1u" for axis in "yz"},
    **{f"%ctaid.{axis}": f"emulator::current->of->index.{axis}" for axis in "xyz"},
    **{f"%nctaid.{axis}": f"emulator::grid_size.{axis}" for axis in "xyz"},
}
SHARED = "l2c_dynamic_shared"

INT, FLOAT, ANY = r"([sub]\d+)", r"(f32|f64)", r"([sub]\d+|f32|f64|pred)"
WRAP = "({T})((uint64_t){0} %s (uint64_t){1})"

# An instruction with one result: a pattern of its name; the types of its sources, T being what the
# pattern captures last; and the result, {0} being the first source and {T} the C++ type of T.
RULES: dict[str, tuple[str, str]] = {
    rf"mov\.{ANY}": ("T", "{0}"),
    rf"add\.{INT}": ("T T", WRAP % "+"),
    rf"sub\.{INT}": ("T T", WRAP % "-"),
    rf"mul\.lo\.{INT}": ("T T", WRAP % "*"),
    rf"mad\.lo\.{INT}": ("T T T", "({T})((uint64_t){0} * (uint64_t){1} + (uint64_t){2})"),
    rf"mul\.hi\.{INT}": ("T T", "ptx::multiply_high<{T}>({0}, {1})"),
    r"mul\.wide\.(s16|s32)": ("T T", "(int64_t){0} * (int64_t){1}"),
    r"mul\.wide\.(u16|u32)": ("T T", "(uint64_t){0} * (uint64_t){1}"),
    r"mad\.wide\.(s32)": ("T T s64", "(uint64_t)((int64_t){0} * (int64_t){1}) + (uint64_t){2}"),
    r"mad\.wide\.(u32)": ("T T u64", "(uint64_t){0} * (uint64_t){1} + {2}"),
    rf"div\.{INT}": ("T T", "ptx::divide<{T}>({0}, {1})"),
    rf"rem\.{INT}": ("T T", "ptx::remainder<{T}>({0}, {1})"),
    rf"min\.{INT}": ("T T", "({0} < {1} ? {0} : {1})"),
    rf"max\.{INT}": ("T T", "({0} > {1} ? {0} : {1})"),
    rf"neg\.{INT}": ("T", "({T})(0 - (uint64_t){0})"),
    rf"abs\.{INT}": ("T", "({0} < 0 ? ({T})(0 - (uint64_t){0}) : {0})"),
    r"not\.(pred)": ("T", "!{0}"),
    rf"not\.{INT}": ("T", "({T})~{0}"),
    rf"and\.{ANY}": ("T T", "({T})({0} & {1})"),
    rf"or\.{ANY}": ("T T", "({T})({0} | {1})"),
    rf"xor\.{ANY}": ("T T", "({T})({0} ^ {1})"),
    rf"shl\.{INT}": ("T u32", "ptx::shift_left<{T}>({0}, {1})"),
    rf"shr\.{INT}": ("T u32", "ptx::shift_right<{T}>({0}, {1})"),
    r"shf\.l\.wrap\.(b32)": ("T T u32", "ptx::funnel_left({0}, {1}, {2})"),
    r"shf\.r\.wrap\.(b32)": ("T T u32", "ptx::funnel_right({0}, {1}, {2})"),
    rf"bfi\.{INT}": ("T T u32 u32", "ptx::insert_bits<{T}>({0}, {1}, {2}, {3})"),
    rf"bfe\.{INT}": ("T u32 u32", "ptx::extract_bits<{T}>({0}, {1}, {2})"),
    r"prmt\.(b32)": ("T T T", "ptx::permute({0}, {1}, {2})"),
    r"popc\.(b32)": ("T", "(uint32_t)__builtin_popcount({0})"),
    r"clz\.(b32)": ("T", "({0} == 0 ? 32u : (uint32_t)__builtin_clz({0}))"),
    rf"selp\.{ANY}": ("T T pred", "({2} ? {0} : {1})"),
    rf"add\.rn\.{FLOAT}": ("T T", "{0} + {1}"),
    rf"sub\.rn\.{FLOAT}": ("T T", "{0} - {1}"),
    rf"mul\.rn\.{FLOAT}": ("T T", "{0} * {1}"),
    rf"div\.rn\.{FLOAT}": ("T T", "{0} / {1}"),
    r"fma\.rn\.(f32)": ("T T T", "fmaf({0}, {1}, {2})"),
    r"fma\.rn\.(f64)": ("T T T", "fma({0}, {1}, {2})"),
    rf"rcp\.rn\.{FLOAT}": ("T", "({T})1 / {0}"),
    r"sqrt\.rn\.(f32)": ("T", "sqrtf({0})"),
    r"neg\.(f32)": ("T", "ptx::as<float>(ptx::as<uint32_t>({0}) ^ 0x80000000u)"),
    r"abs\.(f32)": ("T", "fabsf({0})"),
    r"cvt\.f32\.f16()": ("b16", "l2c_half_to_float({0})"),
    r"cvt\.rn\.f16\.f32()": ("f32", "l2c_float_to_half({0})"),
    r"cvt\.f64\.(f32)": ("T", "(double){0}"),
    r"cvt\.rn\.f32\.(f64)": ("T", "(float){0}"),
    r"cvt\.rn\.f32\.([su]\d+)": ("T", "(float){0}"),
    r"cvt\.rn\.f64\.([su]\d+)": ("T", "(double){0}"),
    r"cvta\.(?:to\.)?global\.(u64)": ("T", "{0}"),
    r"cvta\.to\.shared\.(u64)": ("T", "{0} - ptx::shared()"),
    r"cvta\.shared\.(u64)": ("T", "{0} + ptx::shared()"),
    r"shfl\.sync\.bfly\.(b32)": ("T u32 u32 u32", "ptx::shuffle_xor({0}, {1}, {2}, {3})"),
    r"shfl\.sync\.idx\.(b32)": ("T u32 u32 u32", "ptx::shuffle({0}, {1}, {2}, {3})"),
    r"vote\.sync\.ballot\.(b32)": ("pred u32", "ptx::ballot({0}, {1})"),
    r"bar\.red\.or\.pred()": ("barrier pred", "(bool)emulator::barrier({1})"),
}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
# Of floats: ne is false where one is NaN, and these are true.
UNORDERED = {"equ": "!({0} < {1} || {0} > {1})", "neu": "{0} != {1}", "ltu": "!({0} >= {1})", "leu": "!({0} > {1})", "gtu": "!({0} <= {1})", "geu": "!({0} < {1})"}


class Unknown(Exception):
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
    raise Unknown(op)


def split(text: str) -> list[str]:
    """At the commas outside of braces and brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)]


def in_braces(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{} ").split(",")]


def register(text: str) -> str:
    if not re.fullmatch(r"%[a-z]\w*", text):
        raise Unknown(f"register {text}")
    return text[1:]


class Body:
    """The translation of one kernel's statements."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def value(self, text: str, kind: str) -> str:
        """A source operand, as a C++ expression of type `kind`."""
        if kind == "barrier":
            if text != "0":
                raise Unknown(f"barrier {text}")
            return text
        c = TYPES[kind]
        if text in SPECIAL:
            return SPECIAL[text]
        if text.startswith("!%"):
            return "!" + self.value(text[1:], kind)
        if text.startswith("%"):
            return f"ptx::as<{c}>({register(text)})"
        if match := re.fullmatch(r"0f([0-9A-F]{8})", text):
            return f"ptx::as<{c}>(ptx::as<float>(0x{match[1]}u))"
        if match := re.fullmatch(r"0d([0-9A-F]{16})", text):
            return f"ptx::as<{c}>(ptx::as<double>((uint64_t)0x{match[1]}u))"
        if re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+", text) and kind[0] != "f":
            return f"({c}){text}" if abs(int(text, 0)) < 2**31 else f"({c}){text}{'ll' if text[0] == '-' else 'ull'}"
        if text == SHARED:
            return f"({c})0"  # an address in shared memory: cvta.shared makes a general one of it
        if text in self.kernel.params:
            return f"(uint64_t)(param + {self.kernel.params[text]})"
        raise Unknown(f"operand {text}")

    def address(self, text: str, space: list[str]) -> str:
        match = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        if match is None:
            raise Unknown(f"address {text}")
        base, offset = match[1], match[2] or "0"
        if base in self.kernel.params:
            return f"(uint64_t)param + {self.kernel.params[base]} + {offset}"
        if base == SHARED:
            return f"ptx::shared() + {offset}"
        if "shared" in space:  # 32 bits, or 64 of which the upper ones are 0
            return f"ptx::shared() + (uint32_t)({register(base)} + {offset})"
        return f"{register(base)} + (uint64_t)(int64_t){offset}"

    def put(self, to: str, value: str) -> str:
        return f"ptx::put({register(to)}, {value});"

    def memory(self, op: str, args: list[str]) -> str:
        match = re.fullmatch(
            r"(ld|st)(\.(?:acquire|release|relaxed)\.(?:gpu|sys)|\.volatile)?(\.param|\.global|\.shared)?"
            r"(?:\.nc)?(?:\.L1::no_allocate)?(?:\.v([24]))?" + r"\." + ANY, op
        )
        if match is None:
            raise Unknown(op)
        load, order, space, n, kind = match[1] == "ld", match[2], [(match[3] or "")[1:]], int(match[4] or 1), match[5]
        c, size = TYPES[kind], TYPES_SIZE[kind]
        registers, where = (args[0], args[1]) if load else (args[1], args[0])
        each = in_braces(registers) if n > 1 else [registers]
        lines = [f"unsigned char *at = ptx::aligned({self.address(where, space)}, {n * size});"]
        if order and load:
            lines.insert(0, "emulator::look_again();")
        for i, one in enumerate(each):
            if load:
                lines.append(self.put(one, f"ptx::load<{c}>(at + {i * size})"))
            else:
                lines.append(f"ptx::store<{c}>(at + {i * size}, {self.value(one, kind)});")
        return "{ " + " ".join(lines) + " }"

    def atomic(self, op: str, args: list[str]) -> str:
        *modifiers, kind = op.split(".")[1:]
        known = {"relaxed", "acquire", "release", "acq_rel", "gpu", "global", "shared"}
        (how,) = set(modifiers) - known  # ValueError where there are more
        if kind not in ("u32", "s32", "b32", "u64"):
            raise Unknown(op)
        b = self.value(args[2], kind)
        new = {"add": f"old + {b}", "max": f"old > {b} ? old : {b}", "min": f"old < {b} ? old : {b}", "exch": b, "or": f"old | {b}"}[how]
        at = self.address(args[1], modifiers)
        return (
            f"{{ unsigned char *at = ptx::aligned({at}, {TYPES_SIZE[kind]}); {TYPES[kind]} old = ptx::load<{TYPES[kind]}>(at); "
            f"ptx::store<{TYPES[kind]}>(at, {new}); {self.put(args[0], 'old')} }}"
        )

    def compare(self, op: str, args: list[str]) -> str:
        match = re.fullmatch(rf"setp\.(\w+)(?:\.(and|or|xor))?\.{ANY}", op)
        if match is None or (match[1] not in COMPARE and match[1] not in UNORDERED):
            raise Unknown(op)
        how, combine, kind = match[1], match[2], match[3]
        a, b = self.value(args[1], kind), self.value(args[2], kind)
        if kind[0] == "f" and how == "ne":
            result = f"{a} < {b} || {a} > {b}"
        else:
            result = UNORDERED[how].format(a, b) if how in UNORDERED else f"{a} {COMPARE[how]} {b}"
        if combine:
            result = f"({result}) {dict(zip(('and', 'or', 'xor'), '&|^', strict=True))[combine]} {self.value(args[3], 'pred')}"
        return self.put(args[0], f"(bool)({result})")

    def convert(self, op: str, args: list[str]) -> str:
        if match := re.fullmatch(r"cvt\.([su]\d+)\.([su]\d+)", op):
            return self.put(args[0], f"({TYPES[match[1]]}){self.value(args[1], match[2])}")
        if match := re.fullmatch(r"cvt\.(rzi|rni)\.([su]\d+)\.(f32|f64)", op):
            rounded = {"rzi": "trunc", "rni": "nearbyint"}[match[1]]
            return self.put(args[0], f"ptx::clamp_to<{TYPES[match[2]]}>(({TYPES[match[3]]}){rounded}({self.value(args[1], match[3])}))")
        raise Unknown(op)

    def matrix(self, op: str, args: list[str]) -> str:
        """A product of the tensor cores: d = a b + c."""
        shape = re.fullmatch(r"mma\.sync\.aligned\.(m16n8k32|m8n8k16)\.row\.col\.s32\.s8\.s8\.s32", op)
        if shape is None:
            raise Unknown(op)
        d, a, b, c = (in_braces(argument) for argument in args)
        words = [", ".join(self.value(one, "u32") for one in matrix) for matrix in (a, b, c)]
        results = " ".join(self.put(one, f"d[{i}]") for i, one in enumerate(d))
        if shape[1] == "m16n8k32":
            call = f"const uint32_t a[] = {{{words[0]}}}, b[] = {{{words[1]}}}, c[] = {{{words[2]}}}; uint32_t d[4]; emulator::mma_m16n8k32(d, a, b, c);"
        else:
            call = f"const uint32_t c[] = {{{words[2]}}}; uint32_t d[2]; emulator::mma_m8n8k16(d, {words[0]}, {words[1]}, c);"
        return f"{{ {call} {results} }}"

    def move(self, args: list[str]) -> str | None:
        """mov.b64 and mov.b32 that take a register apart or put one together."""
        if args[0].startswith("{"):
            parts = in_braces(args[0])
            whole = self.value(args[1], "b64" if len(parts) == 2 else "b32")
            low, high = (self.put(one, f"(uint32_t)(whole >> {32 * i})") for i, one in enumerate(parts))
            return f"{{ uint64_t whole = {whole}; {low} {high} }}"
        if args[1].startswith("{"):
            low, high = (self.value(one, "b32") for one in in_braces(args[1]))
            return self.put(args[0], f"(uint64_t){high} << 32 | {low}")
        return None

    def plain(self, op: str, args: list[str]) -> str:
        kinds, template, captured = rule(op)
        to = args[0].partition("|")[0] if op.startswith("shfl") else args[0]
        wanted = [captured if kind == "T" else kind for kind in kinds.split()]
        values = [self.value(text, kind) for text, kind in zip(args[1:], wanted, strict=True)]
        return self.put(to, template.format(*values, T=TYPES.get(captured, "")))

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
            "ld": self.memory, "st": self.memory, "atom": self.atomic, "setp": self.compare, "mma": self.matrix,
        }
        if name in handlers:
            return handlers[name](op, args)
        if op == "mov.b64" and (moved := self.move(args)):
            return moved
        try:
            return self.plain(op, args)
        except Unknown:
            if name != "cvt":
                raise
            return self.convert(op, args)

    def statement(self, text: str) -> str:
        if text == '.pragma "nounroll"':
            return ""
        if match := re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)<(\d+)>", text):
            names = [f"{match[2]}{i}" for i in range(int(match[3]))]
            return f"{TYPES[match[1]]} {', '.join(names)};"
        if match := re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)", text):  # in a scope of its own
            return f"{TYPES[match[1]]} {match[2]};"
        match = re.fullmatch(r"(?:@(!?)%(\w+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", text, re.S)
        if match is None:
            raise Unknown(text)
        done = self.instruction(match[3], split(match[4] or ""))
        return f"if ({match[1]}{match[2]}) {{ {done} }}" if match[2] else done


TYPES_SIZE = {kind: 1 if kind == "pred" else int(kind[1:]) // 8 for kind in TYPES}


def label(text: str) -> str:
    return text.replace("$", "_")


def statements(body: str) -> Iterator[str]:
    """Labels with their colon, braces of scopes, and statements without their semicolon."""
    at = 0
    while match := re.compile(r"\s*(?:(\$\w+:)|([{}])|([^;]+);)").match(body, at):
        at = match.end()
        yield (match[1] or match[2] or match[3]).strip()
    if body[at:].strip():
        raise Unknown(body[at:].strip()[:80])


def parameters(kernel: Kernel, text: str) -> None:
    for found in re.finditer(r"\.param\s+(?:\.align (\d+)\s+)?\.[a-z](\d+)\s+(\w+)(?:\[(\d+)\])?", text):
        size = int(found[2]) // 8 * int(found[4] or 1)
        align = int(found[1] or size)
        kernel.params[found[3]] = -(-kernel.n_bytes // align) * align
        kernel.n_bytes = kernel.params[found[3]] + size


def kernels(ptx: str) -> Iterator[Kernel]:
    """The kernels of a text, each with `code`: a C++ function body that takes `param`."""
    pattern = r"\.visible \.entry (\w+)\((.*?)\)([^{]*)\{\n(.*?)\n\}"
    found = re.findall(pattern, ptx, re.S)
    if len(found) != ptx.count(".entry"):
        raise Unknown(f"{ptx.count('.entry') - len(found)} kernels of another form")
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
                except (Unknown, KeyError, ValueError, IndexError) as error:
                    raise Unknown(f"{name}: {text}: {error}") from error
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
    whole += f"const FakeText fake_texts[] = {{\n{''.join(rows)}}};\nconst size_t fake_n_texts = {len(rows)};\n"
    return [write(folder / "texts.cpp", whole), *(files[name] for name in sorted(files))]


def write_table(capability: int, ptx: bytes, folder: Path) -> Path:
    """kernel_table.h's table over one text; the kernels are those of write_kernels."""
    found = {kernel.name: kernel for kernel in kernels(ptx.decode())}
    lines = ['#include "kernel_table.h"\n']
    lines += [f'extern "C" void {kernel.function}(const void *);\n' for kernel in found.values()]
    lines += [f"#define PTX_{name} {{\"{name}\", {kernel.function}, {kernel.n_bytes}}},\n" for name, kernel in found.items()]
    lines.append("#define ENTRY(name, type) PTX_l2c_##name\n")
    lines.append("const kernel_entry kernel_table[L2C_GPU_N_KERNELS] = {L2C_GPU_KERNELS(ENTRY)};\n")
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
    except Unknown as unknown:
        sys.exit(f"not translated: {unknown}")
