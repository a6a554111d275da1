"""Converted models compute what their folders mean: layouts, shapes and types, against float64."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import DATA, run_python
from folders import (
    LLAMA3_SCALING,
    Model,
    meta_shard,
    meta_weights,
    pairs_together,
    write_hugging_face,
    write_meta,
    write_safetensors,
    write_torch,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllama2c import CheckpointError, Llama, Llama2cError, UnsupportedError
from pyllama2c.cli.main import main
from pyllama2c.convert import convert
from pyllama2c.files.gguf import Gguf

gguf = pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")

TOKENS = [1, 299, 5, 17, 17, 4, 250, 33, 128, 0, 64, 91]
LONG = [(7 * i) % 300 for i in range(150)]
SHAPES = {
    "4/4": Model(n_heads=4, n_kv_heads=4),
    "8/2": Model(n_heads=8, n_kv_heads=2, theta=5e5, eps=1e-6, tied=True),
    "9/3": Model(dim=144, n_heads=9, n_kv_heads=3, tied=True),
    "32/4": Model(dim=128, n_heads=32, n_kv_heads=4, head_size=4, theta=1e5),
    "6/1": Model(dim=96, n_heads=6, n_kv_heads=1, eps=1e-6),
    "head size 100": Model(dim=200, n_heads=2, n_kv_heads=1, head_size=100, hidden_dim=132),
    "head size 48": Model(dim=96, n_heads=2, n_kv_heads=2, head_size=48, theta=1e5),
    "heads wider than dim": Model(dim=64, n_heads=4, n_kv_heads=2, head_size=64),
}


def convert_here(folder: Path, **options: Any) -> Path:
    target = folder.parent / f"{folder.name}.gguf"
    size = convert(folder, target, tokenizer=False, **options)
    assert size == target.stat().st_size
    return target


def worst(target: Path, model: Model, tokens: list[int] = TOKENS) -> float:
    with Llama(target, speculative=False) as llama:
        return float(np.abs(llama.logits(tokens) - model.logits(tokens)).max())


@pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES.keys())
def test_hugging_face_logits(model: Model, tmp_path: Path) -> None:
    target = convert_here(write_hugging_face(tmp_path / "m", model), dtype="float32")
    assert worst(target, model) < 1e-4


@pytest.mark.parametrize(
    "scaling", [LLAMA3_SCALING, {"rope_type": "linear", "factor": 4.0}], ids=["llama3", "linear"]
)
def test_rope_scaling(scaling: dict[str, Any], tmp_path: Path) -> None:
    """Far enough into a text for it to matter; without the scaling, the test would fail."""
    model = Model(scaling=scaling, theta=1000.0)
    target = convert_here(write_hugging_face(tmp_path / "m", model), dtype="float32")
    assert worst(target, model, LONG) < 1e-4
    assert np.abs(Model(theta=1000.0).logits(LONG) - model.logits(LONG)).max() > 0.1
    with Gguf(target) as file:
        linear = scaling["rope_type"] == "linear"
        assert ("llama.rope.scaling.type" in file) == linear


def test_transformers_5_names_of_rope(tmp_path: Path) -> None:
    model = Model(scaling=LLAMA3_SCALING, theta=1000.0)
    folder = write_hugging_face(tmp_path / "m", model)
    config = model.config()
    del config["rope_scaling"], config["rope_theta"]
    config["rope_parameters"] = LLAMA3_SCALING | {"rope_theta": 1000.0}
    (folder / "config.json").write_text(json.dumps(config))
    assert worst(convert_here(folder, dtype="float32"), model, LONG) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["one", "sharded", "sharded, no index", "pytorch"])
def test_every_layout_gives_the_same_file(dtype: str, kind: str, tmp_path: Path) -> None:
    """The weights fit in bfloat16, and nearly all in float16, so the files' bytes are the same."""
    model = Model()
    if dtype == "float16":
        for name, values in model.weights.items():
            model.weights[name] = values.astype(np.float16).astype(np.float32)
    expected = convert_here(write_hugging_face(tmp_path / "a" / "m", model), dtype="float32")
    folder = tmp_path / "b" / "m"
    if kind == "pytorch":
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(model.config()))
        write_torch(folder / "pytorch_model.bin", model.weights, dtype)
    else:
        shards = 1 if kind == "one" else 3
        write_hugging_face(folder, model, dtype, shards, index=kind == "sharded")
    assert convert_here(folder, dtype="float32").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("axis", [0, 1], ids=["Llama 3", "Llama 2"])
def test_meta_shards(shards: int, axis: int, tmp_path: Path) -> None:
    model = Model(n_heads=8, n_kv_heads=4, dim=128)
    target = convert_here(write_meta(tmp_path / "m", model, shards, axis), dtype="float32")
    assert worst(target, model) < 1e-4
    one = convert_here(write_meta(tmp_path / "one" / "m", model), dtype="float32")
    assert target.read_bytes() == one.read_bytes()


def test_meta_tied(tmp_path: Path) -> None:
    model = Model(tied=True)
    target = convert_here(write_meta(tmp_path / "m", model, 2), dtype="float32")
    assert worst(target, model) < 1e-4


def test_meta_scaled_rope(tmp_path: Path) -> None:
    scaling = LLAMA3_SCALING | {"factor": 8.0, "original_max_position_embeddings": 8192}
    model = Model(theta=500000.0, scaling=scaling)
    folder = write_meta(tmp_path / "m", model)
    params = json.loads((folder / "params.json").read_text())
    params |= {"use_scaled_rope": True, "rope_scaling_factor": 8}
    (folder / "params.json").write_text(json.dumps(params))
    target = convert_here(folder, dtype="float32")
    assert worst(target, model, LONG) < 1e-4
    with Gguf(target) as file:
        assert file["llama.context_length"] == 131072
        divisors = next(t for t in gguf.GGUFReader(target).tensors if t.name == "rope_freqs.weight")
    assert divisors.data.shape == (model.head_size // 2,)
    assert divisors.data[0] == 1.0 and divisors.data[-1] == 8.0


def test_tensors_as_the_gguf_package_reads_them(tmp_path: Path) -> None:
    """Independent of the engine: names, shapes, the order of rows, and float16's rounding."""
    model = Model(n_heads=8, n_kv_heads=2)
    folder = write_hugging_face(tmp_path / "m", model)
    for dtype, kind in (("float32", np.float32), ("float16", np.float16)):
        reader = gguf.GGUFReader(convert_here(folder, dtype=dtype))
        read = {t.name: t.data for t in reader.tensors}
        assert len(read) == len(model.weights)
        w = model.weights
        for name, theirs, head in (
            ("token_embd.weight", "model.embed_tokens.weight", 0),
            ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight", 16),
            ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj.weight", 16),
            ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight", 0),
            ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight", 0),
            ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight", 0),
            ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight", 0),
            ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", 0),
            ("output.weight", "lm_head.weight", 0),
        ):
            expected = pairs_together(w[theirs], head) if head else w[theirs]
            np.testing.assert_array_equal(read[name], expected.astype(kind))
        assert read["output_norm.weight"].dtype == np.float32
        np.testing.assert_array_equal(read["output_norm.weight"], w["model.norm.weight"])


def test_metadata(tmp_path: Path) -> None:
    model = Model(theta=5e5, eps=1e-6)
    with Gguf(convert_here(write_hugging_face(tmp_path / "m", model))) as file:
        read = {key: file[key] for key in file}
    assert read.pop("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert read == {
        "general.architecture": "llama",
        "general.name": "m",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 5e5,
        "llama.vocab_size": 300,
        "tokenizer.ggml.model": "no_vocab",
    }


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantized_types_and_error(dtype: str, tmp_path: Path) -> None:
    """Each weight within half a step of its group; rows of 200 are not groups of 32."""
    model = Model(dim=128, head_size=50, n_heads=4, hidden_dim=96)
    target = convert_here(write_hugging_face(tmp_path / "m", model), dtype=dtype)
    read = {t.name: t for t in gguf.GGUFReader(target).tensors}
    types = {name: t.tensor_type.name for name, t in read.items()}
    wide = "Q8_0" if dtype == "int8" else "Q4_0"
    assert types["blk.0.ffn_down.weight"] == types["blk.1.attn_v.weight"] == wide
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.0.attn_output.weight"] == "F16"
    assert {types[name] for name in types if "norm" in name} == {"F32"}
    ours = read["blk.0.ffn_down.weight"]
    groups = model.weights["model.layers.0.mlp.down_proj.weight"].reshape(-1, 32)
    kind = gguf.GGMLQuantizationType[wide]
    values = gguf.quants.dequantize(ours.data, kind).reshape(-1, 32)
    step = np.abs(groups).max(axis=1) / (127 if dtype == "int8" else 8)
    # The scale is rounded to float16. int4 has 7 steps to one side: the 8th is cut off.
    room = 0.5 + 127 / 2048 if dtype == "int8" else 1 + 8 / 2048
    assert (np.abs(values - groups).max(axis=1) <= room * step + 1e-6).all()


def test_rounded_models_are_close(tmp_path: Path) -> None:
    """Root mean square of the logits' errors, in standard deviations of the logits."""
    model = Model(dim=128, head_size=32, hidden_dim=256)
    folder = write_hugging_face(tmp_path / "m", model)
    expected = model.logits(TOKENS)
    for dtype, limit in (("float16", 0.001), ("int8", 0.05), ("int4", 0.5)):
        with Llama(convert_here(folder, dtype=dtype)) as llama:
            error = llama.logits(TOKENS) - expected
        assert np.sqrt((error**2).mean()) < limit * expected.std(), dtype


def test_tied_classifier_that_is_there_twice(tmp_path: Path) -> None:
    """Some files hold the embedding a second time, and old ones RoPE's frequencies."""
    model = Model(tied=True)
    folder = write_hugging_face(tmp_path / "m", model)
    extra = dict(model.weights)
    extra["lm_head.weight"] = extra["model.embed_tokens.weight"]
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    write_safetensors(folder / "model.safetensors", extra)
    target = convert_here(folder, dtype="float32")
    assert worst(target, model) < 1e-4
    assert "output.weight" not in {t.name for t in gguf.GGUFReader(target).tensors}


def test_all_weights_before_an_index(tmp_path: Path) -> None:
    """Both are there, as a merge or a second save leaves them; transformers takes the one file."""
    old = write_hugging_face(tmp_path / "m", Model(seed=1), shards=2)
    model = Model()
    write_safetensors(old / "model.safetensors", model.weights)
    assert worst(convert_here(old, dtype="float32"), model) < 1e-4


def test_weights_that_are_a_folder(tmp_path: Path) -> None:
    """The package's own error names nothing."""
    path = write_hugging_face(tmp_path / "m", Model()) / "model.safetensors"
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"model\.safetensors"):
        convert_here(path.parent)


# ---- What goes wrong ----


def broken(folder: Path, model: Model, **changes: Any) -> Path:
    weights = dict(model.weights)
    for name, values in changes.items():
        if values is None:
            del weights[name]
        else:
            weights[name] = values
    write_safetensors(folder / "model.safetensors", weights)
    return folder


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    model = Model()
    folder = write_hugging_face(tmp_path / "m", model)
    q, norm = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
    target = tmp_path / "m.gguf"
    target.write_bytes(b"what was there")
    nan = model.weights[q].copy()
    nan[3, 4] = np.nan
    huge = model.weights[q].copy()
    huge[3, 4] = 1e30
    for changes, message in (
        ({q: None}, "no file has the weight model.layers.0.self_attn.q_proj"),
        ({q: model.weights[q][1:]}, r"q_proj.weight has shape \(63, 64\)"),
        ({norm: model.weights[norm][None]}, r"norm.weight has shape \(1, 64\)"),
        ({q: nan}, "q_proj.weight: a weight is NaN or infinite"),
        ({q: huge}, "beyond F16's range"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_here(broken(folder, model, **changes))
    with pytest.raises(UnsupportedError, match=r"q_proj.bias is not a weight of a Llama"):
        convert_here(broken(folder, model, **{q.replace("weight", "bias"): np.zeros(64)}))
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="not a safetensors file, or is damaged"):
        convert_here(folder)
    assert target.read_bytes() == b"what was there"
    assert {p.name for p in tmp_path.iterdir()} == {"m", "m.gguf"}


@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), min_size=1, max_size=5))
def test_any_change_of_a_safetensors_header(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        write_hugging_face(folder, Model(dim=8, hidden_dim=8, n_layers=1, head_size=2))
        (folder / "model.safetensors").rename(folder / "whole")
    data = bytearray((folder / "whole").read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    for at, value in changes:
        data[at % header] = value
    (folder / "model.safetensors").write_bytes(data)
    with contextlib.suppress(Llama2cError):
        convert_here(folder)


def test_shards_that_disagree(tmp_path: Path) -> None:
    model = Model()
    folder = write_meta(tmp_path / "m", model, 2)
    whole = meta_weights(model.weights, model.head_size)
    second = folder / "consolidated.01.pth"

    def write(**changes: Any) -> None:
        write_torch(second, meta_shard(whole, 1, 2, 1) | changes, "bfloat16")

    write(**{"norm.weight": np.ones(64, np.float32)})
    with pytest.raises(CheckpointError, match=r"norm.weight differs from .*consolidated.00"):
        convert_here(folder)
    write(**{"output.weight": np.ones((150, 32), np.float32)})
    with pytest.raises(CheckpointError, match="parts in the shards do not match"):
        convert_here(folder)
    write(**{"more.weight": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"more.weight is not in every shard"):
        convert_here(folder)
    second.rename(folder / "consolidated.02.pth")
    with pytest.raises(CheckpointError, match=r"found consolidated.02.pth where shard 1"):
        convert_here(folder)


def test_sources_and_targets(tmp_path: Path, tiny_path: Path) -> None:
    model = Model()
    folder = write_hugging_face(tmp_path / "m", model)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "x.gguf")
    with pytest.raises(UnsupportedError, match="pyllama2c quantize"):
        convert(tiny_path, tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=r"neither config.json nor params.json"):
        convert(tmp_path, tmp_path / "x.gguf")
    with pytest.raises(IsADirectoryError):
        convert(folder, tmp_path, tokenizer=False)
    with pytest.raises(FileNotFoundError):
        convert(folder, tmp_path / "no" / "x.gguf", tokenizer=False)
    with pytest.raises(ValueError, match="dtype is 'int2'"):
        convert(folder, tmp_path / "x.gguf", dtype="int2", tokenizer=False)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        convert(folder, tmp_path / "x.gguf", tokenizer=False)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(CheckpointError, match="not a file name"):
        convert(folder, tmp_path / "x.gguf", tokenizer=False)
    index.write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        convert(folder, tmp_path / "x.gguf", tokenizer=False)


def test_a_weight_in_two_files(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path / "m", Model(), shards=2, index=False)
    data = (folder / "model-00001-of-00002.safetensors").read_bytes()
    (folder / "model-copy.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="is also in"):
        convert_here(folder)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_hugging_face(tmp_path / "m", Model())
    target = tmp_path / "out.gguf"
    command = ["convert", str(folder), str(target), "--dtype", "int8"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "tokenizer.model" in error and "--no-tokenizer" in error
    assert main([*command, "--no-tokenizer"]) == 0
    assert capsys.readouterr().err == f"{target}: {target.stat().st_size:,} bytes\n"


def test_without_the_packages(tmp_path: Path) -> None:
    """The extra is named; nothing else of the package needs it."""
    code = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'gguf' else real(name, *rest)\n"
        "from pyllama2c.cli.main import main; sys_exit = main(['convert', 'a', 'b']); "
        "raise SystemExit(sys_exit)"
    )
    done = run_python("-c", code)
    assert done.returncode == 1 and "pip install 'pyllama2c[convert]'" in done.stderr


def test_a_killed_conversion_leaves_what_was_there(tmp_path: Path) -> None:
    """Ctrl-C in the middle of writing: no half file, no rest of one."""
    folder = write_hugging_face(tmp_path / "m", Model())
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    target.write_bytes(b"what was there")
    code = (
        "import sys\n"
        "from pyllama2c.convert import convert, writer\n"
        "real, calls = writer.encode, []\n"
        "def encode(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 9: raise KeyboardInterrupt\n"
        "    return real(*arguments)\n"
        "writer.encode = encode\n"
        "convert(sys.argv[1], sys.argv[2], tokenizer=False)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(target)]
    done = subprocess.run(command, cwd=DATA, capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
    assert target.read_bytes() == b"what was there"
    assert os.listdir(target.parent) == ["m.gguf"]


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_pieces_of_a_few_rows(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that begin within a head, or within a shard, make the same file as whole matrices."""
    model = Model(dim=128, n_heads=8, n_kv_heads=4)
    folders = [
        write_hugging_face(tmp_path / "a" / "m", model),
        write_meta(tmp_path / "b" / "m", model, 4, embedding_axis=0),
    ]
    whole = [convert_here(folder, dtype=dtype).read_bytes() for folder in folders]
    monkeypatch.setattr("pyllama2c.convert.tensors.CHUNK", 7 * 128)
    assert [convert_here(folder, dtype=dtype).read_bytes() for folder in folders] == whole


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """134 MB of weights, in two shards, take less than 80 MB above what the imports take."""
    model = Model(dim=1024, hidden_dim=4096, n_layers=4, n_heads=8, n_kv_heads=8, head_size=128)
    folder = write_meta(tmp_path / "m", model, 2)
    assert sum(p.stat().st_size for p in folder.iterdir()) > 130e6
    code = (
        "import sys\n"
        "import pyllama2c.convert.writer, pyllama2c.convert.meta_folder\n"
        "from pyllama2c.convert import convert\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "before = peak()\n"
        "convert(sys.argv[1], sys.argv[2], tokenizer=False, dtype='int8')\n"
        "print(peak() - before)\n"
    )
    done = run_python("-c", code, str(folder), str(tmp_path / "m.gguf"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 80_000
