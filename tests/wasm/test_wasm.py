"""The engine in WebAssembly is what its sources make, and computes the native engine's bits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cuda_build
import pytest
from environment import real_file
from goldens import cases
from tiny import Shape, TinyLlama

from pyllama2c import Llama, wasm
from pyllama2c._ffi import lib

HERE = Path(__file__).parent
DTYPES = {"float32": lib.L2C_DTYPE_FLOAT32, "int8": lib.L2C_DTYPE_INT8, "int4": lib.L2C_DTYPE_INT4}
CACHES = {"float32": lib.L2C_KV_FLOAT32, "float16": lib.L2C_KV_FLOAT16}

build_wasm = cuda_build.script("csrc/wasm/build_wasm.py")


def test_it_is_what_its_sources_make(capsys: pytest.CaptureFixture[str]) -> None:
    """Compiles it once more where that is asked for: from a cold cache that takes a minute."""
    if not os.environ.get("CI"):
        pytest.skip("compiles the engine once more; set CI=1 to run it")
    compared = build_wasm.check()
    with capsys.disabled():
        print(f" [{compared}]", end=" ")


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wasm") / "engine.wasm"
    path.write_bytes(wasm.load())
    return path


def run(module: Path, model: Path | str, dtype: str, kv_dtype: str, **asked: Any) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run WebAssembly")
    request = {"module": str(module), "model": str(model), **asked}
    request |= {"dtype": DTYPES[dtype], "kv": CACHES[kv_dtype]}
    done = subprocess.run(
        [node, HERE / "run_engine.mjs"], input=json.dumps(request), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def same_logits(module: Path, model: Path | str, dtype: str, kv_dtype: str, n: int) -> None:
    with Llama(model, dtype=dtype, kv_dtype=kv_dtype, speculative=False) as llama:
        tokens = [(7919 * i + 1) % llama.config.vocab_size for i in range(n)]
        expected = hashlib.sha256(llama.logits(tokens).tobytes()).hexdigest()
    assert run(module, model, dtype, kv_dtype, tokens=tokens)["hash"] == expected


def test_it_imports_nothing(module: Path, tmp_path: Path) -> None:
    script = "import('node:fs').then((fs) => console.log(JSON.stringify(WebAssembly.Module.imports("
    script += f"new WebAssembly.Module(fs.readFileSync({str(module)!r}))))))"
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run WebAssembly")
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("kv_dtype", CACHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_odd_shapes(module: Path, dtype: str, kv_dtype: str, tmp_path: Path) -> None:
    """Rows that are no multiple of a register, more keys than a block, groups that are cut."""
    shape = Shape(dim=96, hidden_dim=152, n_heads=6, n_kv_heads=3, vocab_size=301, tied=False)
    path = tmp_path / "model.bin"
    path.write_bytes(TinyLlama.random(shape).v0())
    same_logits(module, path, dtype, kv_dtype, n=shape.seq_len)


@pytest.mark.parametrize("kv_dtype", CACHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_stories260k(module: Path, dtype: str, kv_dtype: str) -> None:
    same_logits(module, real_file("stories260K.bin"), dtype, kv_dtype, n=200)


@pytest.mark.parametrize("kv_dtype", CACHES)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_logits_of_the_storyteller(module: Path, dtype: str, kv_dtype: str) -> None:
    with Llama() as llama:
        path = llama.path
    same_logits(module, path, dtype, kv_dtype, n=200)


def test_run_c_stories(module: Path) -> None:
    """run.c's 60 stories on stories260K."""
    told, expected = [], []
    path, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    with Llama(path, tokenizer) as llama:
        for case in cases("stories260K_fp32.json"):
            prompt = llama.tokenizer.encode(case["prompt"], bos=True)
            asked = {name: case[name] for name in ("steps", "temperature", "top_p", "seed")}
            told.append({"prompt": prompt, "ends": [1, 2], **asked})
            expected.append(case["tokens"][len(prompt) - 1 :])
    answer = run(module, path, "float32", "float32", cases=told)
    assert answer["stories"] == expected
