"""Will it fit? Plans against what opening really takes, and refusals under real limits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import run_python
from tiny import Shape, TinyLlama

from pyllama2c import Llama, OutOfMemoryError, UnsupportedError
from pyllama2c._ffi import DTYPES, KV_DTYPES, lib
from pyllama2c.engine.memory import limits
from pyllama2c.engine.options import Options
from pyllama2c.engine.plan import plan_file

WIDE = Shape(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2)
LINUX = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")


def files(folder: Path) -> list[Path]:
    """Models in every format, tied and not, some that cannot be had in every dtype."""
    images = {
        "v0.bin": TinyLlama.random(WIDE).v0(),
        "v1.bin": TinyLlama.random(Shape(**WIDE.__dict__ | {"tied": False})).v1(),
        "v2.bin": TinyLlama.random(Shape(**WIDE.__dict__ | {"group_size": 32})).v2(),
        "runq.bin": TinyLlama.random(Shape(group_size=24, hidden_dim=80)).v2(),
        "odd.bin": TinyLlama.random(Shape(dim=66, hidden_dim=45, n_heads=3, n_kv_heads=1)).v1(),
    }
    try:
        from gguf_files import model_file
    except ImportError:
        pass
    else:
        for kinds in ({}, {"w1": "Q8_0", "w2": "F16"}, {"wq": "Q4_0", "wo": "BF16"}):
            name = "".join(kinds.values()) or "F32"
            images[f"{name}.gguf"] = model_file(TinyLlama.random(WIDE), kinds).build()
    for name, image in images.items():
        (folder / name).write_bytes(image)
    return [folder / name for name in images]


@pytest.mark.filterwarnings("ignore:.*group_size")
def test_a_plan_is_what_opening_takes(tmp_path: Path) -> None:
    compared = 0
    for path in files(tmp_path):
        plan = plan_file(str(path), Options(threads=1))
        for dtype in DTYPES:
            if (dtype, "float32") not in plan.needs:
                with pytest.raises(UnsupportedError):
                    Llama(path, dtype=dtype)
                continue
            for kv, number in KV_DTYPES.items():
                needs = plan.needs[dtype, kv]
                with Llama(path, dtype=dtype, kv_dtype=kv, threads=1) as llama:
                    handle = llama._engine.model
                    assert needs.weights == lib.l2c_model_bytes(handle), (path, dtype)
                    assert needs.sweep == llama.sweep_bytes
                    assert needs.dtype == llama.config.dtype
                    assert plan.parameters == llama.n_parameters
                    for context in (1, 50, 96):
                        taken = lib.l2c_session_bytes(handle, 1, context, number, 1)
                        # but for what brings parts of it to whole cache lines
                        assert 0 <= taken - needs.session(context) < 256
                        c = llama.config
                        cache = 2 * c.n_layers * c.n_kv_heads * c.head_size * context
                        assert needs.cache(context) == cache * (4 if kv == "float32" else 2)
                    compared += 1
    assert compared >= 30


def test_context(tiny_path: Path) -> None:
    with Llama(tiny_path) as whole, Llama(tiny_path, context=20) as llama:
        assert llama.config.seq_len == 20
        assert llama.logits([1, 5, 6]).tobytes() == whole.logits([1, 5, 6]).tobytes()
        story = llama.generate([1], seed=3, stop_tokens=())
        story.read()
        assert len(story.tokens) == 20 and story.finish_reason == "length"
        longer = whole.generate([1], seed=3, stop_tokens=())
        longer.read()
        assert longer.tokens[:20] == story.tokens
    for context in (0, -1, 97):
        with pytest.raises(
            ValueError, match=f"context is {context}; it must be 1 to the model's 96"
        ):
            Llama(tiny_path, context=context)
    with pytest.raises(ValueError, match="unknown kv_dtype 'int8'; known: float32, float16"):
        Llama(tiny_path, kv_dtype="int8")


def long_model(folder: Path) -> Path:
    """5 MB of weights, and 2.4 GB of keys and values in the context that its header claims."""
    shape = Shape(dim=96, hidden_dim=128, n_layers=2, vocab_size=300)
    path = folder / "long.bin"
    data = bytearray(TinyLlama.random(shape).v1())
    data[32:36] = (1 << 22).to_bytes(4, "little")  # v1 files have no tables of that length
    path.write_bytes(data)
    return path


LIMITED = """
import json, os, resource, sys
import numpy  # its own memory is none of a plan's
os.environ["PYLLAMA2C_THREADS"] = "1"  # nor are the stacks of workers, which these limits count
from pyllama2c import Llama, OutOfMemoryError
from pyllama2c.engine.memory import _fields
from pathlib import Path

kind, path = sys.argv[1:]
used = _fields(Path("/proc/self/status"), 1024)[{"AS": "VmSize", "DATA": "VmData"}[kind]]
resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (used + (256 << 20),) * 2)
try:
    Llama(path)
    raise SystemExit("it was opened")
except MemoryError as error:
    assert isinstance(error, OutOfMemoryError)
    message = str(error)
more = bytearray(2 << 20)  # what is recommended is true a moment later as well
context = int(message.split("context=")[1].split(";")[0])
with Llama(path, context=context) as llama:
    llama.logits([1, 5, 6])
with Llama(path, context=context * 3 // 2, kv_dtype="float16") as llama:
    pass
try:
    Llama(path, context=context * 3 // 2)
    raise SystemExit("half as much again was opened")
except OutOfMemoryError:
    pass
print(json.dumps([message, context]))
"""


@LINUX
@pytest.mark.parametrize("kind", ["AS", "DATA"])
def test_what_does_not_fit_says_what_would(kind: str, tmp_path: Path) -> None:
    path = long_model(tmp_path)
    done = run_python("-c", LIMITED, kind, str(path))
    assert done.returncode == 0, done.stderr + done.stdout
    message, context = json.loads(done.stdout)
    assert f"{path}: float32 needs " in message and f"left by RLIMIT_{kind} (" in message
    assert "of keys and values in float32 for a context of 4,194,304" in message
    assert 50_000 < context < 1 << 22


@LINUX
def test_the_command_line_under_a_limit(tmp_path: Path) -> None:
    path = long_model(tmp_path)
    command = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2)\n"
        "import sys; from pyllama2c.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = run_python("-c", command, "generate", str(path), "-n", "5")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("pyllama2c: error: ") and len(done.stderr.splitlines()) == 1
    done = run_python("-c", command, "info", str(path))  # opens nothing, so it can answer
    assert done.returncode == 0, done.stderr
    assert "does not fit; this would: --context " in done.stdout
    done = run_python("-c", command, "info", str(path), "--json", "--context", "4096")
    facts: dict[str, Any] = json.loads(done.stdout)["memory"]
    assert facts["fits"] and facts["recommended"] is None and facts["context"] == 4096
    assert {plan["dtype"] for plan in facts["plans"]} == set(DTYPES)


@LINUX
def test_a_file_beyond_the_address_space(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # takes no disk
    code = (
        "import resource, sys; from pyllama2c import Llama\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2)\n"
        "Llama(sys.argv[1])"
    )
    done = run_python("-c", code, str(path))
    assert (
        "OutOfMemoryError" in done.stderr and "2147483648 bytes: the address space" in done.stderr
    )


GROUP = Path("/sys/fs/cgroup")


@LINUX
def test_a_control_group_is_a_limit(tmp_path: Path) -> None:
    old, name = (GROUP / "memory").is_dir(), f"pyllama2c-test-{os.getpid()}"
    group = GROUP / "memory" / name if old else GROUP / name
    limit = group / ("memory.limit_in_bytes" if old else "memory.max")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"may not make a control group: {error}")
    try:
        try:
            limit.write_text(str(400 << 20))
        except OSError as error:
            pytest.skip(f"may not limit a control group: {error}")
        code = (
            "import os, sys; group, path = sys.argv[1:]\n"
            "open(group + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "from pyllama2c import Llama\n"
            "Llama(path, context=1 << 21)"
        )
        done = run_python("-c", code, str(group), str(long_model(tmp_path)))
        assert "pyllama2c.errors.OutOfMemoryError" in done.stderr, done.stderr
        assert "left by the control group's limit of 419,430,400 bytes" in done.stderr
    finally:
        group.rmdir()


PEAK = """
import json, sys
from pathlib import Path
from pyllama2c import Llama
from pyllama2c.engine.memory import _fields

def memory():
    return _fields(Path("/proc/self/status"), 1024)

before = memory()["VmRSS"]
llama = Llama(sys.argv[1], dtype=sys.argv[2], speculative=False)
print(json.dumps([memory()["VmRSS"] - before, memory()["VmHWM"] - before]))
"""


@pytest.fixture(scope="module")
def hundred_megabytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model of 34 matrices."""
    path = tmp_path_factory.mktemp("large") / "large.bin"
    dim, hidden, layers, vocab = 512, 1408, 8, 512
    count = vocab * dim + layers * (4 * dim * dim + 3 * dim * hidden + 2 * dim) + dim + 64 * 64
    with path.open("wb") as file:
        file.write(np.array([dim, hidden, layers, 8, 8, vocab, 64], "<i4").tobytes())
        file.write(np.random.default_rng(1).normal(0, 0.02, count).astype("<f4").tobytes())
    return path


@LINUX
@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_opening_never_holds_the_file_twice(dtype: str, hundred_megabytes: Path) -> None:
    """Packed parts of the file leave memory again: the peak is what the plan says."""
    needs = plan_file(str(hundred_megabytes), Options()).needs[dtype, "float32"]
    done = run_python("-c", PEAK, str(hundred_megabytes), dtype)
    assert done.returncode == 0, done.stderr
    resident, peak = json.loads(done.stdout)
    slack = 6 << 20  # of the interpreter, and of the last huge page
    assert needs.weights <= resident + slack and resident <= needs.weights + slack
    assert peak <= needs.weights + needs.opening + slack


@LINUX
def test_a_draft_needs_room(hundred_megabytes: Path) -> None:
    code = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from pyllama2c import Llama, OutOfMemoryError\n"
        "from pyllama2c.engine.memory import _fields\n"
        "from pyllama2c.engine.options import Options\n"
        "from pyllama2c.engine.plan import plan_file\n"
        "os.environ['PYLLAMA2C_THREADS'] = '1'\n"  # stacks of workers would count too
        "needs = plan_file(sys.argv[1], Options()).needs['float32', 'float32']\n"
        "room = needs.address_space + (24 << 20)\n"
        "used = _fields(Path('/proc/self/status'), 1024)['VmSize']\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + room,) * 2)\n"
        "assert Llama(sys.argv[1])._engine.draft is None\n"
        "try:\n"
        "    Llama(sys.argv[1], speculative=True)\n"
        "except OutOfMemoryError as error:\n"
        "    print(error)\n"
    )
    done = run_python("-c", code, str(hundred_megabytes))
    assert done.returncode == 0, done.stderr
    assert "no room for an int8 copy" in done.stdout
    assert Llama(hundred_megabytes)._engine.draft is not None


@LINUX
def test_limits_are_those_of_the_kernel() -> None:
    machine = limits()[0]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.kind == "memory" and 0 < machine.free <= total


def test_an_error_is_a_memory_error() -> None:
    assert issubclass(OutOfMemoryError, MemoryError)
