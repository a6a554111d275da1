"""int8 and int4: the same bits everywhere, close to what the rounded weights mean, files too."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from environment import real_file, run_python
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import CheckpointError, Llama, UnsupportedError
from pyllama2c.cli.info import describe
from pyllama2c.convert.quantize import quantize_file, quantize_groups
from pyllama2c.engine.options import Options

# dims that fill groups and blocks, that do not, and grouped queries
SHAPES = [
    Shape(dim=64, hidden_dim=96, n_heads=4, n_kv_heads=2, vocab_size=320),
    Shape(),
    Shape(dim=36, hidden_dim=52, n_heads=6, n_kv_heads=3, vocab_size=301, tied=False),
    Shape(dim=8, hidden_dim=172, n_heads=2, n_kv_heads=1, vocab_size=300),
]
IDS = [1, 5, 9, 260, 33, 8, 8, 71, 299, 4, 12, 19, 3]


def llama_of(shape: Shape, tmp_path: Path | None = None, **options: object) -> Llama:
    return Llama.from_buffer(TinyLlama.random(shape).v0(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_everywhere(shape: Shape, dtype: str, isa: str) -> None:
    with llama_of(shape, dtype=dtype, isa="scalar", threads=1) as oracle:
        expected = oracle.logits(IDS)
    assert np.isfinite(expected).all()
    for threads in (1, 2, 5):
        with llama_of(shape, dtype=dtype, isa=isa, threads=threads) as llama:
            assert llama.logits(IDS).tobytes() == expected.tobytes()
            one_by_one = [llama.logits(IDS[: i + 1])[-1] for i in range(len(IDS))]
            assert np.stack(one_by_one).tobytes() == expected.tobytes()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [("int8", 0.03), ("int4", 0.35)])
def test_close_to_float32(version: int, dtype: str, tolerance: float) -> None:
    model = TinyLlama.random(Shape(dim=64, hidden_dim=96, vocab_size=320))
    truth = model.logits(IDS)
    with Llama.from_buffer(model.file(version), dtype=dtype) as llama:
        assert llama.config.dtype == dtype and llama.config.group_size == 0
        error = llama.logits(IDS) - truth
    assert math.sqrt((error**2).mean()) < tolerance * truth.std()


def test_int8_file_and_int8_at_load_are_the_same_model(tmp_path: Path) -> None:
    shape = Shape(dim=64, hidden_dim=96, vocab_size=320)
    source, target = tmp_path / "f32.bin", tmp_path / "int8.bin"
    source.write_bytes(TinyLlama.random(shape).v1())
    assert quantize_file(source, target) == target.stat().st_size
    with Llama(target) as file, Llama(source, dtype="int8") as at_load:
        assert file.config.version == 2 and file.config.group_size == 32
        assert file.logits(IDS).tobytes() == at_load.logits(IDS).tobytes()
    with Llama(target, dtype="int4") as llama:
        assert np.isfinite(llama.logits(IDS)).all()


def test_int4_has_half_the_weights(tmp_path: Path) -> None:
    shape = Shape(dim=64, hidden_dim=96, vocab_size=320)
    sizes = {d: llama_of(shape, dtype=d).sweep_bytes for d in ("float32", "int8", "int4")}
    assert sizes["float32"] > 3.4 * sizes["int8"] and sizes["int8"] > 1.7 * sizes["int4"]


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_quantize_file_keeps_every_tensor(version: int, tied: bool, tmp_path: Path) -> None:
    model = TinyLlama.random(Shape(dim=48, hidden_dim=80, tied=tied))
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(model.file(version))
    quantize_file(source, target)
    with Llama(target) as llama:
        size = llama.config.group_size
        assert size == 16
        expected = TinyLlama(
            Shape(dim=48, hidden_dim=80, tied=tied, group_size=size), model.weights
        )
        truth = expected.as_int8().logits(IDS)
        error = llama.logits(IDS) - truth  # of the rounded activations alone
    assert math.sqrt((error**2).mean()) < 0.03 * truth.std()


def test_quantize_file_takes_a_group_size(tmp_path: Path) -> None:
    model = TinyLlama.random(Shape(dim=64, hidden_dim=192))
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(model.v0())
    quantize_file(source, target, 64)
    shape = Shape(dim=64, hidden_dim=192, group_size=64)
    expected = TinyLlama(shape, model.weights)
    assert len(target.read_bytes()) == len(expected.v2())
    with Llama(target) as llama:
        error = llama.logits(IDS) - expected.as_int8().logits(IDS)
        assert llama.config.group_size == 64 and error.std() < 0.03 * llama.logits(IDS).std()
    for wrong in (0, -64, 48, 128):
        with pytest.raises(ValueError, match=f"group_size is {wrong}; it must divide dim, 64"):
            quantize_file(source, target, wrong)


def test_quantize_refuses(tmp_path: Path) -> None:
    int8 = tmp_path / "int8.bin"
    int8.write_bytes(TinyLlama.random(Shape(dim=64, hidden_dim=96, group_size=32)).v2())
    out = tmp_path / "out.bin"
    out.write_bytes(b"mine")
    with pytest.raises(UnsupportedError, match="holds int8 weights"):
        quantize_file(int8, out)
    with pytest.raises(CheckpointError):
        quantize_file(real_bytes(tmp_path), out)
    assert out.read_bytes() == b"mine"  # what was there stays until the new file is whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.bin", "junk.bin", "out.bin"]
    with pytest.raises(UnsupportedError, match="holds int8 weights"):
        Llama(int8, dtype="float32")
    with pytest.raises(ValueError, match="unknown dtype 'int2'"):
        Llama(int8, dtype="int2")


def real_bytes(folder: Path) -> Path:
    path = folder / "junk.bin"
    path.write_bytes(b"\1" * 1000)
    return path


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_weights_without_a_value(value: float, dtype: str) -> None:
    model = TinyLlama.random(Shape())
    model.weights["w1"][1, 3, 5] = value
    with pytest.raises(CheckpointError, match="a weight is NaN or infinite"):
        Llama.from_buffer(model.v0(), dtype=dtype)
    with pytest.raises(CheckpointError, match="a weight is NaN or infinite"):
        quantize_groups(np.full(32, value, np.float32), 32)


def test_rounding_of_groups() -> None:
    x = np.zeros(64, np.float32)
    x[:4] = [127, -127, 63.5, 1.5]
    q, scales = quantize_groups(x, 32)
    assert q[:4].tolist() == [127, -127, 64, 2] and not q[4:].any()
    assert scales.tolist() == [1.0, 0.0]


def test_stories260k_in_int8_and_int4(tmp_path: Path) -> None:
    """The cost in perplexity, on real weights."""
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    bits = {}
    for dtype in ("float32", "int8", "int4"):
        with Llama(model, tokenizer, dtype=dtype) as llama:
            bits[dtype] = llama.score(text).bits_per_byte
    assert abs(bits["int8"] - bits["float32"]) < 0.01
    assert bits["int4"] - bits["float32"] < 0.15


def test_command(tmp_path: Path) -> None:
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(TinyLlama.random(Shape()).v0())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file())
    done = run_python("-m", "pyllama2c", "quantize", str(source), str(target))
    assert done.returncode == 0 and str(target) in done.stderr, done.stderr
    told = [
        run_python("-m", "pyllama2c", str(path), "--dtype", "int8", "-t", "0", "-n", "20").stdout
        for path in (source, target)
    ]
    assert told[0] and len(told[0]) > 5


def test_runq_kernels_on_demand(tmp_path: Path) -> None:
    """Groups that the packed kernels take as well: close to theirs, in runq.c's order of
    operations, and the same whatever the threads."""
    shape = Shape(dim=64, hidden_dim=96, group_size=32)
    path = tmp_path / "int8.bin"
    path.write_bytes(TinyLlama.random(shape).v2())
    with Llama(path) as packed, Llama(path, isa="runq", threads=1) as runq:
        assert (runq.isa, runq.config.dtype) == ("runq", "int8")
        expected = runq.logits(IDS)
        error = packed.logits(IDS) - expected
        assert error.any() and error.std() < 0.03 * expected.std()
    with Llama(path, isa="runq", threads=3, dtype="int8") as runq:
        assert runq.logits(IDS).tobytes() == expected.tobytes()


def test_runq_kernels_refuse_what_runq_c_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TinyLlama.random(Shape(dim=64, hidden_dim=96, group_size=32))
    int8, float32 = tmp_path / "int8.bin", tmp_path / "float32.bin"
    int8.write_bytes(model.v2())
    float32.write_bytes(model.v1())
    monkeypatch.setenv("PYLLAMA2C_ISA", "runq")
    with Llama(int8) as llama:
        assert llama.isa == "runq"
    with pytest.raises(UnsupportedError, match=r"float32.bin: isa='runq'.*llama2.c version 1"):
        Llama(float32)
    with pytest.raises(UnsupportedError, match="isa='runq' computes int8 files"):
        Llama.from_buffer(model.v0(), dtype="int8", isa="runq")
    with pytest.raises(ValueError, match="dtype is 'int4'; isa='runq'"):
        Llama(int8, dtype="int4")
    with pytest.raises(ValueError, match="kv_dtype is 'float16'; isa='runq'"):
        Llama(int8, kv_dtype="float16")
    assert describe(str(int8), Options())["kernels"] == "runq"
    with pytest.raises(UnsupportedError, match="isa='runq'"):
        describe(str(float32), Options())
