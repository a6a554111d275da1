"""GGUF files: what the reader reads, held against the gguf package; and files that lie."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import (
    ARRAY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    READABLE,
    STRING,
    TYPES,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    File,
    Key,
    TensorData,
    random_blocks,
    string,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2c import CheckpointError, Llama2cError, UnsupportedError
from pyllama2c.files.gguf import Gguf

VALUES = {
    "a.uint8": (UINT8, 255),
    "a.int8": (INT8, -128),
    "a.uint16": (UINT16, 65535),
    "a.int16": (INT16, -32768),
    "a.uint32": (UINT32, 2**32 - 1),
    "a.int32": (INT32, -(2**31)),
    "a.float32": (FLOAT32, 0.5),
    "a.bool": (BOOL, True),
    "a.string": (STRING, "hé\0llo"),
    "a.empty": (STRING, ""),
    "a.uint64": (UINT64, 2**63 - 1),
    "a.int64": (INT64, -(2**63)),
    "a.float64": (FLOAT64, 1e300),
    "list.none": (UINT32, []),
    "list.int32": (INT32, [3, -1, 4]),
    "list.bool": (BOOL, [True, False]),
    "list.float32": (FLOAT32, [0.25, float("inf")]),
    "list.string": (STRING, [str(i) * (i % 5) for i in range(100)]),
    "list.no_strings": (STRING, []),
    "list.string.again": (STRING, ["x"] * 17),
}


def small() -> File:
    keys = [Key(name, *value) for name, value in VALUES.items()]
    data = np.arange(6, dtype="<f4").tobytes()
    tensors = [TensorData("b", (3, 2), 0, data), TensorData("a", (3,), 0, data[:12])]
    return File(keys, tensors)


def read(data: bytes) -> Gguf:
    return Gguf.from_buffer(bytearray(data))


def refuse(data: bytes, message: str, error: type[Llama2cError] = CheckpointError) -> None:
    with pytest.raises(error, match=message):
        read(data)


@pytest.mark.parametrize("version", [2, 3])
def test_metadata(version: int, tmp_path: Path) -> None:
    file = small()
    file.version = version
    path = tmp_path / "model.gguf"
    path.write_bytes(file.build())
    with Gguf(path) as gguf:
        assert gguf.version == version
        assert list(gguf) == sorted(VALUES)
        for name, (_, value) in VALUES.items():
            assert gguf[name] == value and type(gguf[name]) is type(value), name
        assert gguf.get("b") is None and gguf.get("a", 7) == 7 and "list" not in gguf
        with pytest.raises(KeyError):
            gguf["a.strin"]
        assert [(t.name, t.type, t.shape, t.bytes) for t in gguf.tensors.values()] == [
            ("a", "F32", (3,), 12),
            ("b", "F32", (2, 3), 24),
        ]
        np.testing.assert_array_equal(gguf.read("b"), np.arange(6).reshape(2, 3))
        np.testing.assert_array_equal(gguf.read("a"), [0, 1, 2])
        with pytest.raises(KeyError):
            gguf.read("c")
    with pytest.raises(ValueError, match="closed"):
        list(gguf)


def test_the_gguf_package_writes_what_we_read(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf", reason="needs the gguf package")
    path = tmp_path / "model.gguf"
    writer = package.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_context_length(77)
    writer.add_token_list(["a", "é", "日本"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        kind = package.GGMLQuantizationType[name]
        writer.add_tensor(name, package.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = package.GGUFReader(path)
    with Gguf(path) as gguf:
        fields = {name: f.contents() for name, f in reader.fields.items() if name[:4] != "GGUF"}
        assert {name: gguf[name] for name in gguf} == fields
        for t in reader.tensors:
            ours = gguf.tensors[t.name]
            assert (ours.type, ours.offset) == (t.tensor_type.name, t.data_offset)
            expected = package.quants.dequantize(t.data, t.tensor_type)
            np.testing.assert_array_equal(gguf.read(t.name), expected.astype(np.float32))


def test_every_type_has_its_size() -> None:
    package = pytest.importorskip("gguf", reason="needs the gguf package")
    for kind, (values, size) in package.GGML_QUANT_SIZES.items():
        blocks = TensorData("t", (values, 3), int(kind), bytes(3 * size))
        try:
            t = read(File([], [blocks]).build()).tensors["t"]
        except UnsupportedError as error:
            if int(kind) <= 41:  # what was there as this was written
                raise AssertionError(kind) from error
            continue
        assert (t.type, t.bytes, t.shape) == (kind.name, 3 * size, (3, values))


@pytest.mark.parametrize("kind", READABLE)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_dequantization_is_exact(kind: str, data: st.DataObject) -> None:
    """Any bits: float16 numbers that are infinite, NaN or denormal among them."""
    package = pytest.importorskip("gguf", reason="needs the gguf package")
    number, values, size = TYPES[kind]
    blocks = data.draw(st.integers(1, 3 if values > 1 else 70))
    raw = data.draw(st.binary(min_size=blocks * size, max_size=blocks * size))
    if data.draw(st.booleans()):
        raw = random_blocks(kind, blocks * values, data.draw(st.integers(0, 999)))
    view = {"F32": np.float32, "F16": np.float16}.get(kind, np.uint8)
    with np.errstate(all="ignore"):
        expected = package.quants.dequantize(
            np.frombuffer(raw, view), package.GGMLQuantizationType(number)
        ).astype(np.float32)
    got = read(File([], [TensorData("t", (blocks * values,), number, raw)]).build()).read("t")
    np.testing.assert_array_equal(got, expected)
    finite = np.isfinite(expected)
    assert (np.signbit(got) == np.signbit(expected))[finite].all()


def test_types_that_are_not_read() -> None:
    gguf = read(File([], [TensorData("t", (256,), 10, bytes(84))]).build())
    assert gguf.tensors["t"].type == "Q2_K"
    with pytest.raises(UnsupportedError, match="t is Q2_K, which cannot be read"):
        gguf.read("t")


def test_integers_past_63_bits() -> None:
    with pytest.raises(CheckpointError, match="big is 9223372036854775808, which is too large"):
        read(File([Key("big", UINT64, 2**63)]).build())["big"]


def test_strings_that_are_not_utf8() -> None:
    gguf = read(File([Key("bad", STRING, b"\xff"), Key("good", STRING, "x")]).build())
    assert gguf["good"] == "x"
    with pytest.raises(CheckpointError, match="bad: 'utf-8' codec"):
        gguf["bad"]


# ---- files that lie ----


def test_every_truncation() -> None:
    data = small().build()
    for size in range(len(data)):
        refuse(data[:size], "GGUF")


def test_headers() -> None:
    refuse(b"", "GGUF")
    refuse(b"GGUX" + bytes(40), "not a GGUF file")
    for version in (0, 1, 4, 2**31 + 1):
        refuse(
            File(version=version).build(),
            f"version is {version}; versions 2 and 3",
            UnsupportedError,
        )
    for version in (2, 3):
        big = File(version=version << 24)
        refuse(big.build(), "big-endian", UnsupportedError)
    for count in (1, 2**31, 2**32, 2**62 + 1, 2**63, 2**64 - 1):
        message = f"ends within its %s, at number 1 of {count}"
        refuse(File(n_keys=count).build()[:24], message % "keys")
        refuse(File(n_tensors=count).build()[:24], message % "tensors")
    assert list(read(File().build())) == []


@pytest.mark.parametrize("count", [5, 2**30, 2**32, 2**61, 2**62 + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("kind", [UINT8, INT32, FLOAT64, BOOL, STRING])
def test_counts_of_elements(kind: int, count: int) -> None:
    """Those whose product with the size of an element wraps around to something small as well."""
    body = struct.pack("<IQ", kind, count) + bytes(4)
    refuse(File([Key("list", ARRAY, body)]).build()[:56], "more than the rest of|ends within")


@pytest.mark.parametrize("length", [100, 2**31, 2**32 - 1, 2**63, 2**64 - 8, 2**64 - 1])
def test_lengths_of_strings(length: int) -> None:
    head = struct.pack("<Q", length)
    refuse(File(n_keys=1).build() + head + b"x", "name of .* bytes|ends within")
    value = string("key") + struct.pack("<I", STRING) + head + b"x"
    refuse(File(n_keys=1).build() + value, "ends within its keys, at number 1 of 1|name of")
    several = string("key") + struct.pack("<IIQ", ARRAY, STRING, 2) + string("x") + head
    refuse(File(n_keys=1).build() + several, "ends within its keys|name of")


@pytest.mark.parametrize(
    ("key", "message", "error"),
    [
        (Key("", UINT8, 1), "a name of 0 bytes; it must have 1 to 65535", CheckpointError),
        (Key("k" * 65536, UINT8, 1), "a name of 65536 bytes", CheckpointError),
        (Key("line\nbreak", UINT8, 1), "not printable ASCII", CheckpointError),
        (Key("nul\0", UINT8, 1), "not printable ASCII", CheckpointError),
        (Key("é", UINT8, 1), "not printable ASCII", CheckpointError),
        (Key("k", 13, b"1234"), "k is of type 13, which does not exist", CheckpointError),
        (Key("k", 2**32 - 1, b"1234"), "k is of type 4294967295", CheckpointError),
        (Key("k", BOOL, 2), "k is neither true nor false", CheckpointError),
        (Key("k", BOOL, [0, 1, 255]), "k is neither true nor false", CheckpointError),
        (
            Key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000),
            "k is an array of arrays",
            UnsupportedError,
        ),
        (Key("k", ARRAY, struct.pack("<IQ", 99, 1)), "k is of type 99", CheckpointError),
        (Key("general.alignment", UINT64, 32), "must be a uint32", CheckpointError),
        (Key("general.alignment", UINT32, [32]), "must be a uint32", CheckpointError),
        *(
            (Key("general.alignment", UINT32, n), f"alignment is {n}; it must be", CheckpointError)
            for n in (0, 1, 4, 24, 33, 2**32 - 1)
        ),
    ],
)
def test_keys(key: Key, message: str, error: type[Llama2cError]) -> None:
    refuse(File([key]).build(), message, error)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignments(alignment: int) -> None:
    file = small()
    file.alignment = alignment
    file.keys.append(Key("general.alignment", UINT32, alignment))
    np.testing.assert_array_equal(read(file.build()).read("b"), np.arange(6).reshape(2, 3))
    file.alignment = 2 * alignment  # what is written; and then the tensors are elsewhere
    file.keys[-1].value = 4 * alignment
    refuse(file.build(), "multiple of the alignment|cut short")


def test_a_huge_alignment_leaves_no_room() -> None:
    file = small()
    file.keys.append(Key("general.alignment", UINT32, 2**31))
    refuse(file.build(), "multiple of the alignment|the file has 0: it is cut short")


@pytest.mark.parametrize(
    ("dims", "kind", "message"),
    [
        ((), 0, "has 0 dimensions; it must have 1 to 4"),
        ((1,) * 5, 0, "has 5 dimensions"),
        ((0,), 0, "dimension 1 is 0"),
        ((1, 0), 0, "dimension 2 is 0"),
        ((2**63,), 0, "dimension 1 is 9223372036854775808"),
        ((2**64 - 1,), 0, "dimension 1"),
        ((2**32, 2**32), 0, "dimension 2 is 4294967296; it must be .* below 2\\^63"),
        ((2**62, 1, 4), 0, "dimension 3 is 4"),
        ((2**62,), 0, "has 2\\^64 bytes or more"),
        ((4, 2**30 - 1, 2**30 + 1), 0, "cut short"),  # 2^64 - 16 bytes: padding wraps around
        ((2**62 - 1,), 0, "cut short"),
        ((33,), 2, "rows of 33 values; in Q4_0 they must be multiples of 32"),
        ((32, 32), 14, "in Q6_K they must be multiples of 256"),
        ((2**32, 2**30), 8, "cut short"),
    ],
)
def test_dimensions(dims: tuple[int, ...], kind: int, message: str) -> None:
    refuse(File([], [TensorData("t", dims, kind, bytes(64))]).build(), message)


@pytest.mark.parametrize("kind", [4, 5, 31, 36, 42, 2**31, 2**32 - 1])
def test_types_that_do_not_exist(kind: int) -> None:
    message = f"t is of unknown type number {kind}"
    refuse(File([], [TensorData("t", (32,), kind, bytes(128))]).build(), message, UnsupportedError)


@pytest.mark.parametrize("offset", [1, 16, 31, 2**64 - 1])
def test_offsets_that_are_not_aligned(offset: int) -> None:
    tensor = TensorData("t", (4,), 0, bytes(128), offset)
    refuse(File([], [tensor]).build(), f"begins at {offset}; it must be a multiple")


@pytest.mark.parametrize("offset", [128, 2**32, 2**63, 2**64 - 32])
def test_offsets_past_the_end(offset: int) -> None:
    tensor = TensorData("t", (4,), 0, bytes(128), offset)
    refuse(File([], [tensor]).build(), f"16 bytes from {offset} on; the file has 128")


def test_names_of_tensors() -> None:
    def named(*names: str | bytes) -> bytes:
        return File([], [TensorData(name, (4,), 0, bytes(16)) for name in names]).build()

    refuse(named("x", "y", "x"), "the tensor x appears twice")
    refuse(named("x" * 65), "a name of 65 bytes; it must have 1 to 64")
    refuse(named(""), "a name of 0 bytes")
    refuse(named("x\x1b[31m"), "not printable ASCII")
    assert set(read(named("x" * 64, "x")).tensors) == {"x" * 64, "x"}


def test_overlap_cannot_multiply_a_file() -> None:
    """Tensors that share bytes would otherwise take memory for each of them."""
    tensors = [TensorData(f"t{i}", (16,), 0, bytes(64 if i == 0 else 0), 0) for i in range(3)]
    refuse(File([], tensors).build(), "its tensors have more bytes than the file; some overlap")


def test_keys_that_are_there_twice() -> None:
    keys = [Key(f"key.{i}", UINT8, 1) for i in range(50)]
    refuse(File([*keys, Key("key.31", STRING, "x")]).build(), r"key\.31 appears twice")


def test_many_keys_take_no_quadratic_time() -> None:
    keys = [Key(f"key.{i * 7919 % 100_000}", UINT8, i % 256) for i in range(100_000)]
    gguf = read(File(keys).build())
    assert gguf["key.0"] == 0 and gguf["key.7919"] == 1


GOOD = small().build()


@settings(max_examples=500, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8
    ),
    cut=st.integers(0, 20),
)
def test_any_damage(edits: list[tuple[int, int]], cut: int) -> None:
    """A damaged file is refused, or everything in it can be read."""
    data = bytearray(GOOD)
    for offset, value in edits:
        data[offset] = value
    try:
        gguf = read(data[: len(data) - cut])
    except (CheckpointError, UnsupportedError):
        return
    for name in gguf:
        with contextlib.suppress(CheckpointError):  # no UTF-8, or past 2^63
            gguf[name]
    for name, tensor in gguf.tensors.items():
        if tensor.type in READABLE:
            assert gguf.read(name).shape == tensor.shape
