"""PyTorch's files are hostile until proven otherwise: nothing runs, nothing is read outside."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import (
    call,
    integer,
    mapping,
    numbers,
    pickled,
    storage,
    tensor,
    text,
    write_torch,
    write_zip,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("ml_dtypes", reason="ml_dtypes (the extra `convert`) is not installed")

from pyllama2c import CheckpointError, Llama2cError, UnsupportedError
from pyllama2c.convert.torch_files import open_state_dict

F32 = np.arange(12, dtype="<f4")


def opened(path: Path, value: bytes, data: bytes = F32.tobytes()) -> Any:
    """What a file with this pickle of a {"w": value} and one storage of 12 float32 gives."""
    return open_state_dict(write_zip(path / "w.pth", pickled(mapping({"w": value})), {"0": data}))


# ---- What is read ----


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_and_rows(dtype: str, tmp_path: Path) -> None:
    weights = {"a": np.arange(20, dtype=np.float32).reshape(5, 4), "b": np.ones(3, np.float32)}
    read = open_state_dict(write_torch(tmp_path / "w.pth", weights, dtype))
    assert read["a"].shape == (5, 4) and read["a"].dtype == dtype
    np.testing.assert_array_equal(read["a"].rows(0, 5), weights["a"])
    np.testing.assert_array_equal(read["a"].rows(3, 4), weights["a"][3:4])
    assert read["a"].rows(1, 2).dtype == np.float32 and read["a"].rows(2, 2).shape == (0, 4)
    np.testing.assert_array_equal(read["b"].rows(0, 3), weights["b"])


def test_views_of_a_storage(tmp_path: Path) -> None:
    """A transposed matrix, one with a stride, one that begins later, and a parameter."""
    whole = F32.reshape(3, 4)
    (tmp_path / "a").mkdir()
    read = opened(tmp_path / "a", tensor("FloatStorage", "0", 12, (4, 3), (1, 4)))["w"]
    np.testing.assert_array_equal(read.rows(0, 4), whole.T)
    np.testing.assert_array_equal(read.rows(2, 4), whole.T[2:])
    read = opened(tmp_path / "a", tensor("FloatStorage", "0", 12, (2, 2), (8, 2), 1))["w"]
    np.testing.assert_array_equal(read.rows(0, 2), whole[::2, 1::2])
    inner = tensor("FloatStorage", "0", 12, (12,), (1,))
    hooks = call("collections.OrderedDict", b"")
    value = call("torch._utils._rebuild_parameter", inner + b"\x88" + hooks)
    np.testing.assert_array_equal(opened(tmp_path / "a", value)["w"].rows(0, 12), F32)


def test_what_pytorch_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.Linear(6, 4).to(torch.bfloat16)
    table = OrderedDict(layer.state_dict())
    table["t"] = torch.arange(6, dtype=torch.float16).reshape(2, 3).T
    table["p"] = torch.nn.Parameter(torch.ones(2, 2))
    for options in ({}, {"pickle_protocol": 4}):
        torch.save(table, tmp_path / "w.bin", **options)
        read = open_state_dict(tmp_path / "w.bin")
        assert list(read) == ["weight", "bias", "t", "p"]
        for name, values in table.items():
            expected = values.detach().float().numpy()
            np.testing.assert_array_equal(read[name].rows(0, len(expected)), expected)
    torch.save(table, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match=r"older than 1\.6"):
        open_state_dict(tmp_path / "old.bin")
    torch.save({"epoch": 3, "w": torch.ones(2)}, tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="'epoch' is a int"):
        open_state_dict(tmp_path / "w.bin")


# ---- Code ----


class _Evil:
    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "evil",
    [
        _Evil(os.system, "touch ran"),
        _Evil(eval, "__import__('pathlib').Path('ran').touch()"),
        _Evil(getattr, 1, "real"),
    ],
    ids=["os.system", "eval", "getattr"],
)
def test_nothing_runs(
    evil: _Evil, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"w": OrderedDict(inner=[evil])}, protocol)
    path = write_zip(tmp_path / "w.pth", data, {})
    with pytest.raises(CheckpointError, match="not loaded"):
        open_state_dict(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)  # that it would have run:
    assert (tmp_path / "ran").exists() or evil.function is getattr


@pytest.mark.parametrize(
    "value",
    [
        b"cposix\nsystem\n(X\x02\x00\x00\x00lstR",
        text("os") + text("system") + b"\x93(tR",
        b"(X\x02\x00\x00\x00lsios\nsystem\n",  # INST
        b"(cos\nsystem\nX\x02\x00\x00\x00lso",  # OBJ
        b"ccollections\nOrderedDict\n)\x81",  # NEWOBJ
        b"\x82\x01",  # EXT1: copyreg's registry
        b"ctorch\nFloatStorage\n(tR",  # a class that is only named
        b"}(tR",
        text("eval") + b"(tR",
        call("torch._utils._rebuild_tensor_v2", b""),
        call("torch._utils._rebuild_parameter", text("x")),
        call("collections.OrderedDict", text("x")),
        call("torch._utils._rebuild_tensor_v2.__globals__", b""),
        b"ctorch._utils\n_rebuild_tensor_v2\n}b",  # BUILD of a function
        b"ctorch\nload\n",
        b"c__builtin__\neval\n",
        b"cpyllama2c.convert.pickles\nread\n",
    ],
)
def test_other_ways_to_call(value: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        opened(tmp_path, value)


# ---- Time and memory ----


def nested_keys() -> bytes:
    """A key whose hash takes 2^60 steps: tuples of two of the one before."""
    return b"}" + text("a") + b"q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60)) + b"Ns"


@pytest.mark.parametrize(
    "value",
    [
        b"]r\xff\xff\xff\xff",  # LONG_BINPUT 2^32 - 1: pickle makes a table of that size
        b"\x96" + struct.pack("<Q", 1 << 40),  # BYTEARRAY8
        b"\x8d" + struct.pack("<Q", 1 << 62) + b"x",  # BINUNICODE8
        b"X" + struct.pack("<I", (1 << 32) - 1) + b"x",
        b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x",  # LONG4
        nested_keys(),
        b")" * 100_000 + b"\x85" * 100_000,
        b"(" * 100_000,
    ],
    ids=["memo", "bytearray", "string", "string4", "long", "keys", "nested", "marks"],
)
def test_no_bomb(value: bytes, tmp_path: Path, resident_kilobytes: Any) -> None:
    before, started = resident_kilobytes(), time.process_time()
    with pytest.raises(CheckpointError):
        opened(tmp_path, value)
    assert time.process_time() - started < 10
    assert resident_kilobytes() - before < 100_000


def test_deep_nesting_is_let_go(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'w' is a tuple"):
        opened(tmp_path, b")" + b"\x85" * 200_000)


def test_a_pickle_too_large(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "w.pth", bytes(5 << 20), {})
    with pytest.raises(CheckpointError, match="limit is 4,194,304"):
        open_state_dict(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.data())
def test_any_change_of_a_pickle(tmp_path: Path, data: st.DataObject) -> None:
    """Weights, or a named error; what it says fits the storage."""
    value = tensor("FloatStorage", "0", 12, (3, 4), (4, 1))
    good = bytearray(pickled(mapping({"w": value})))
    codes = [ord(opcode.code) for opcode in pickletools.opcodes]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        new = data.draw(st.sampled_from(codes) | st.integers(0, 255))
        if data.draw(st.booleans()):
            good[at] = new
        else:
            good.insert(at, new)
    path = write_zip(tmp_path / "w.pth", bytes(good), {"0": F32.tobytes()})
    try:
        read = open_state_dict(path)
    except Llama2cError:
        return
    for each in read.values():
        assert each.rows(0, each.shape[0]).size <= 12


# ---- Tensors outside of their storages ----


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((13,), (1,), 0),
        ((12,), (1,), 1),
        ((3, 4), (4, 2), 0),
        ((2, 2), (11, 1), 0),
        ((3, 4), (4, -1), 4),
        ((-3, 4), (4, 1), 0),
        ((3, 4), (4, 1), -1),
        ((1,), (1,), 12),
        ((1 << 40, 1 << 40), (0, 0), 0),
        ((1000, 1000), (0, 0), 0),
        ((1 << 62, 4), (4, 1), 0),
        ((1 << 100,), (1,), 0),
        ((2, 2), (1 << 63, 1), 0),
        ((3, 4), (4,), 0),
        ((), (), 0),
        ((1,) * 9, (1,) * 9, 0),
    ],
)
def test_outside(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        opened(tmp_path, tensor("FloatStorage", "0", 12, shape, strides, offset))


@pytest.mark.parametrize(
    "value",
    [
        tensor("FloatStorage", "1", 12, (12,), (1,)),
        tensor("FloatStorage", "../data.pkl", 12, (12,), (1,)),
        tensor("FloatStorage", "/etc/passwd", 12, (12,), (1,)),
        tensor("FloatStorage", "0", 1 << 40, (1 << 40,), (1,)),
        tensor("FloatStorage", "0", 13, (12,), (1,)),
        tensor("HalfStorage", "0", 12, (12,), (1,)),
        tensor("CFloatStorage", "0", 12, (12,), (1,)),
        call("torch._utils._rebuild_tensor_v2", text("x") + integer(0) + numbers((1,)) * 2),
        storage("FloatStorage", "0", 12),
        b"(" + text("storage") + b"tQ",
        b"NQ",
        b"(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") * 2 + integer(12) + b"tQ",
    ],
)
def test_wrong_storages(value: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        opened(tmp_path, value)


def test_one_storage_of_two_types(tmp_path: Path) -> None:
    both = mapping(
        {
            "a": tensor("FloatStorage", "0", 12, (12,), (1,)),
            "b": tensor("HalfStorage", "0", 12, (12,), (1,)),
        }
    )
    path = write_zip(tmp_path / "w.pth", pickled(both), {"0": F32.tobytes()})
    with pytest.raises(CheckpointError, match="storage '0' is said to hold 12 x float16"):
        open_state_dict(path)


# ---- Archives ----


def test_not_archives(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content in (b"PK\x03", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(UnsupportedError, match="not a zip archive"):
            open_state_dict(path)
    with pytest.raises(FileNotFoundError):
        open_state_dict(tmp_path / "nowhere.pth")


def test_compressed_encrypted_and_foreign_archives(tmp_path: Path) -> None:
    value = pickled(mapping({"w": tensor("FloatStorage", "0", 1 << 20, (1 << 20,), (1,))}))
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", value, zipfile.ZIP_STORED)
        archive.writestr("archive/data/0", bytes(4 << 20))  # 4 MB in 4 KB
    with pytest.raises(UnsupportedError, match="compressed"):
        open_state_dict(path)
    write_zip(path, value, {"0": F32.tobytes()})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="encrypted"):
        open_state_dict(path)
    for names in (["a.txt"], ["a/data.pkl", "b/data.pkl"], ["data.pkl"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, value)
        with pytest.raises(CheckpointError, match=r"lacks a data\.pkl"):
            open_state_dict(path)
    write_zip(path, value, {}, byteorder=b"big")
    with pytest.raises(UnsupportedError, match="big-endian"):
        open_state_dict(path)


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(b"}"))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", pickled(b"}"))
    with pytest.raises(CheckpointError, match="two members of the same name"):
        open_state_dict(path)


def test_every_truncation(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pth", {"w": F32})
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(Llama2cError):
            open_state_dict(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_change_of_an_archive(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = write_torch(tmp_path / "w.pth", {"w": F32.reshape(3, 4)})
    data = bytearray(path.read_bytes())
    tail = len(data) - data.index(b"PK\x01\x02")
    for at, value in changes:
        # Half of them where the archive's directory is.
        data[-1 - at % tail if at % 2 else at % len(data)] = value
    path.write_bytes(data)
    try:
        read = open_state_dict(path)
        for each in read.values():
            assert each.rows(0, each.shape[0]).size <= 12
    except Llama2cError:
        pass


def test_a_member_that_claims_more_than_the_file(tmp_path: Path) -> None:
    value = pickled(mapping({"w": tensor("FloatStorage", "0", 1 << 28, (1 << 28,), (1,))}))
    path = write_zip(tmp_path / "w.pth", value, {"0": F32.tobytes()})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="cut short within its member data/0"):
        open_state_dict(path)


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pth", {"w": F32})
    read = open_state_dict(path)["w"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cut short; did the file change"):
        read.rows(0, 12)


def test_the_tests_pickles_are_pickles() -> None:
    """What folders.py puts together is what pickletools and pickle take it for."""
    out = io.StringIO()
    pickletools.dis(pickled(mapping({"w": tensor("FloatStorage", "0", 12, (12,), (1,))})), out)
    assert "highest protocol" in out.getvalue()
    assert pickle.loads(pickled(mapping({"a": integer(-300), "b": numbers((1, 128))}))) == {
        "a": -300,
        "b": (1, 128),
    }
