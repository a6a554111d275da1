"""What PTX's types, registers and instructions are in C++, on ptx_runtime.h."""

from __future__ import annotations

SIZES = (8, 16, 32, 64)
TYPES = {f"s{bits}": f"int{bits}_t" for bits in SIZES}
TYPES |= {f"{kind}{bits}": f"uint{bits}_t" for kind in "ub" for bits in SIZES}
TYPES |= {"f32": "float", "f64": "double", "pred": "bool"}
TYPES_SIZE = {kind: 1 if kind == "pred" else int(kind[1:]) // 8 for kind in TYPES}
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
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARE |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}  # unsigned
# Of floats: ne is false where one is NaN, and these are true.
UNORDERED = {
    "equ": "!({0} < {1} || {0} > {1})",
    "neu": "{0} != {1}",
    "ltu": "!({0} >= {1})",
    "leu": "!({0} > {1})",
    "gtu": "!({0} <= {1})",
    "geu": "!({0} < {1})",
}
COMBINE = {"and": "&", "or": "|", "xor": "^"}
ATOMIC = {
    "add": "old + {0}",
    "max": "old > {0} ? old : {0}",
    "min": "old < {0} ? old : {0}",
    "or": "old | {0}",
    "exch": "{0}",
}
