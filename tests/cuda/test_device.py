"""Cards that cannot be used, or no longer: every trouble has a sentence, and leaves nothing."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import tqdm
from fake_driver import Fake
from tiny import Shape, TinyLlama, tokenizer_file

from pyllama2c import DeviceError, Llama, OutOfMemoryError, UnsupportedError
from pyllama2c._ffi import lib
from pyllama2c.engine import device

pytestmark = pytest.mark.skipif(not fake_cuda.possible(), reason=fake_cuda.NEEDS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(TinyLlama.random(Shape()).v0())
    path.with_name("tokenizer.bin").write_bytes(tokenizer_file())
    return path


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYLLAMA2C_DEVICE", raising=False)
    assert device.device_number(None) is None and device.device_number("cpu") is None
    assert device.device_number("cuda") == 0 and device.device_number("cuda:3") == 3
    monkeypatch.setenv("PYLLAMA2C_DEVICE", "cuda:1")
    assert device.device_number(None) == 1 and device.device_number("cpu") is None
    for wrong in ("gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA"):
        with pytest.raises(ValueError, match="known: cpu, cuda, cuda:N"):
            Llama(device=wrong)
    monkeypatch.setenv("PYLLAMA2C_DEVICE", "tpu")
    with pytest.raises(ValueError, match="'tpu' in PYLLAMA2C_DEVICE"):
        Llama()
    with pytest.raises(TypeError, match="device"):
        Llama(device=1)  # type: ignore[arg-type]


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLAMA2C_LIBCUDA", "/nowhere/libcuda.so.1")
    with pytest.raises(UnsupportedError, match=r"no NVIDIA driver: /nowhere/libcuda\.so\.1: "):
        Llama(device="cuda")
    monkeypatch.setenv("PYLLAMA2C_LIBCUDA", "libm.so.6")
    with pytest.raises(
        UnsupportedError, match=r"libm\.so\.6 lacks cu\w+: .* too old \(470 or newer"
    ):
        Llama(device="cuda")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ("driver=11020", UnsupportedError, r"knows CUDA 11\.2; 11\.4 is needed \(driver 470"),
        ("init=100", DeviceError, "finds no card that this process may use"),
        ("init=803", DeviceError, "different versions: restart the machine"),
        ("init=802", DeviceError, "nvidia-fabricmanager"),
        ("init=304", DeviceError, r"may this user open /dev/nvidia\*\?"),
        ("init=999", DeviceError, r"CUDA_ERROR_UNKNOWN|999"),
        ("cards=70", UnsupportedError, r"compute capability 7\.0; 7\.5 \(Turing\) or newer"),
        ("retain=46,mode=3", DeviceError, "another process holds .* exclusive"),
        ("mode=2", DeviceError, "compute mode is prohibited"),
        ("retain=2", OutOfMemoryError, "no memory left for another process"),
        ("load=218", DeviceError, r"compiling .* cannot read the kernels .*: line 7: syntax error"),
        ("load=209", DeviceError, "compiling the kernels failed: the driver cannot read"),
        ("load=221", DeviceError, r"libnvidia-ptxjitcompiler\.so\.1, is missing"),
        ("load=223", DeviceError, "CUDA_DISABLE_PTX_JIT forbids the driver to compile"),
        ("load=2", OutOfMemoryError, "compiling the kernels failed: .*OUT_OF_MEMORY"),
        ("ptx=70", DeviceError, r"the driver is too old for these kernels \(470 or newer"),
        ("pin_fails=1", OutOfMemoryError, "page-locked memory"),
    ],
)
def test_trouble_has_a_sentence(
    fake: Fake,
    left: Callable[[], dict[str, int]],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path))  # nothing is compiled yet
    fake.configure(settings)
    with pytest.raises(error, match=words) as caught:
        Llama(model, device="cuda")
    assert len(str(caught.value)) < 256 + len(str(model))
    del caught
    gc.collect()
    assert left() == {}


def test_a_card_that_is_not_there(fake: Fake, model: Path) -> None:
    with pytest.raises(ValueError, match=r"no card 1; the driver shows this process 1, counted"):
        Llama(model, device="cuda:1")
    fake.configure("cards=75+90")
    with Llama(model, device="cuda:1") as llama:
        assert llama.device == "cuda:1"


def test_closing_gives_everything_back(
    fake: Fake, left: Callable[[], dict[str, int]], model: Path
) -> None:
    for _ in range(3):
        with Llama(model, device="cuda") as one, Llama(model, device="cuda", dtype="int8") as two:
            assert fake.count("modules") == 1  # models of a card share its kernels
            one.logits([1, 2])
            two.logits([1, 2])
        del one, two
        gc.collect()
        assert left() == {}


def test_kernels_are_compiled_once(
    fake: Fake, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path))

    def opened() -> float:
        with Llama(model, device="cuda") as llama:
            return float(llama.logits([1])[0, 0])

    first = opened()
    (kept,) = (tmp_path / "kernels").iterdir()
    assert kept.name.endswith("-driver13.0-sm80.cubin")
    gc.collect()
    written = kept.stat().st_mtime_ns
    assert opened() == first and kept.stat().st_mtime_ns == written
    for damaged in (b"", kept.read_bytes()[:-1], bytes(40)):
        gc.collect()
        kept.write_bytes(damaged)
        assert opened() == first and kept.stat().st_size > 1000
    gc.collect()
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.touch()  # no folder, so nothing can be kept there, not by root either
    assert opened() == first and kept.parent.stat().st_size == 0


def test_a_terminal_is_told_what_takes_long(
    fake: Fake,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bars: set[tuple[str, float, float]] = set()

    class Kept(tqdm.tqdm):  # type: ignore[type-arg]
        def close(self) -> None:
            bars.add((self.desc, self.n, self.total))
            super().close()

    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path))
    monkeypatch.setattr(tqdm, "tqdm", Kept)
    monkeypatch.setattr(device, "watched", lambda: True)
    monkeypatch.setattr(device, "_SHOWN_FROM", model.stat().st_size // 2)
    with Llama(model, device="cuda", speculative=False) as llama:
        weights = lib.l2c_model_device_bytes(llama._engine.model)
    shown = capsys.readouterr().err
    assert re.search(r"^compiling the kernels for Fake sm_80, once \.\.\. \d+\.\d s$", shown, re.M)
    (bar,) = bars
    assert bar[0] == "Fake sm_80" and 0.5 * weights < bar[1] <= weights <= bar[2], (bar, weights)
    Llama(model, device="cuda", speculative=False).close()
    assert "compiling" not in capsys.readouterr().err
    assert bars == {bar}


def test_what_does_not_fit_is_refused_with_what_would(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    shape = Shape(dim=256, hidden_dim=512, n_layers=4, n_heads=4, n_kv_heads=4, seq_len=4096)
    path.write_bytes(TinyLlama.random(shape).v0())
    fake.configure("memory=24")
    with pytest.raises(OutOfMemoryError, match=r"only 25\.2 MB free on Fake sm_80; would fit: "):
        Llama(path, device="cuda", speculative=False)
    with Llama(path, device="cuda", speculative=False, context=256) as llama:
        llama.logits([1, 2])


@pytest.mark.parametrize("nth", range(1, 25))
def test_memory_that_runs_out_anywhere_leaves_the_card_usable(
    fake: Fake, left: Callable[[], dict[str, int]], model: Path, nth: int
) -> None:
    Llama(model, device="cuda").close()  # so that its kernels are compiled
    fake.configure(f"alloc_fails={nth}")
    try:
        with Llama(model, device="cuda") as llama:
            llama.logits([1, 2, 3])
    except OutOfMemoryError as error:
        message = str(error)
    else:
        message = "out of memory on Fake sm_80: none"
        assert nth > 15  # a model has that many parts at least
    gc.collect()
    fake.configure("alloc_fails=0")
    assert "out of memory on Fake sm_80: " in message and left() == {}
    with Llama(model, device="cuda") as llama, Llama(model) as cpu:
        assert (llama.logits([1, 2, 3]) == cpu.logits([1, 2, 3])).all()


@pytest.mark.parametrize("fault", ["launch_fails=1", "lost=1", "lost=2,lost_error=999"])
def test_a_lost_card_says_so_and_lets_go(
    fake: Fake, left: Callable[[], dict[str, int]], model: Path, fault: str
) -> None:
    one, two = Llama(model, device="cuda"), Llama(model, device="cuda")
    two.logits([1, 2])
    fake.configure(fault)
    with pytest.raises(DeviceError):
        one.logits([1, 2, 3])
    for llama in (one, two):
        with pytest.raises(DeviceError, match="is lost to this process"):
            llama.logits([1])
        with pytest.raises(DeviceError):
            list(llama.generate_batch([[1, 2]], max_tokens=2, seed=1))
    with Llama(model) as cpu:
        cpu.logits([1])
    fake.configure("lost=0,launch_fails=0")
    one.close()
    two.close()
    del one, two, llama
    gc.collect()
    assert fake.count("contexts") == 0
    with Llama(model, device="cuda") as again:  # once nobody holds the lost context
        again.logits([1])


@pytest.mark.parametrize("error", [720, 801])  # no room for all blocks; as MPS may have it
def test_a_card_without_grids_that_stay_goes_on_a_kernel_a_phase(
    fake: Fake, model: Path, error: int
) -> None:
    options: dict[str, Any] = {"seed": 3, "max_tokens": 6, "stop_tokens": ()}
    with Llama(model, device="cuda") as card, Llama(model) as cpu:
        launches = []
        for stays in (0, error, 0):
            fake.configure(f"stays={stays}")
            before = fake.count("launches")
            one, two = (llama.generate([1, 5, 9], **options) for llama in (cpu, card))
            assert one.read() == two.read() and one.tokens == two.tokens
            assert one.rng_state == two.rng_state
            launches.append(fake.count("launches") - before)
        assert launches[0] < 10 < launches[1] and launches[2] > 10  # what was refused stays refused
        fake.configure(f"stays={error}")
        assert (card.logits([1, 2]) == cpu.logits([1, 2])).all()
        told = [
            [story.tokens for story in llama.generate_batch([[1, 5], [1, 7]], **options)]
            for llama in (cpu, card)
        ]
        assert told[0] == told[1]


def test_a_context_of_another_library_stays_current(fake: Fake, model: Path) -> None:
    """PyTorch keeps the primary context current all the time."""
    with fake.current() as context, Llama(model, device="cuda") as llama:
        llama.logits([1, 2])
        fake.configure("alloc_fails=1")
        with pytest.raises(OutOfMemoryError):
            Llama(model, device="cuda")
        fake.configure("launch_refused=1")
        with pytest.raises(DeviceError):
            llama.logits([1])
        assert fake.count("pushed") == 1 and fake.context() == context


def test_sessions_share_a_models_weights(fake: Fake, model: Path) -> None:
    with Llama(model, device="cuda", speculative=False) as llama:
        weights, before = lib.l2c_model_device_bytes(llama._engine.model), fake.count("bytes")
        with llama._engine.sessions.lent() as one:
            first = fake.count("bytes")
            with llama._engine.sessions.lent() as two:
                assert one is not two
                assert fake.count("bytes") - first == first - before
        assert before >= weights


def test_a_refused_launch_is_an_error_of_its_own(fake: Fake, model: Path) -> None:
    with Llama(model, device="cuda") as llama:
        expected = llama.logits([1, 2])
        fake.configure("launch_refused=1")
        with pytest.raises(DeviceError):
            llama.logits([1, 2])
        assert (llama.logits([1, 2]) == expected).all()


def test_a_forked_child_is_told(fake: Fake, model: Path) -> None:
    script = """
import os, sys
from pyllama2c import DeviceError, Llama
llama = Llama(sys.argv[1], device="cuda")
llama.logits([1])
if os.fork() == 0:
    for use in (lambda: llama.logits([1]), lambda: Llama(sys.argv[1], device="cuda")):
        try:
            use()
        except DeviceError as error:
            assert "fork" in str(error) and "spawn" in str(error), error
        else:
            os._exit(3)
    Llama(sys.argv[1]).logits([1])
    llama.close()
    os._exit(0)
status = os.waitstatus_to_exitcode(os.wait()[1])
llama.logits([1])
sys.exit(status)
"""
    subprocess.run([sys.executable, "-c", script, str(model)], check=True, env=dict(os.environ))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyllama2c", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_info_tells_of_cards(fake: Fake, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA", "cards=80+90,memory=12000,held=500")
    told = run("info", str(model), "--device", "cuda:1")
    assert told.returncode == 0, told.stderr
    assert "on cuda:1" in told.stdout and "12.1 GB free on Fake sm_90" in told.stdout
    assert "compute capability 8.0, 0000:01:00.0, driver for CUDA 13.0" in told.stdout
    assert "no CUDA toolkit, cuDNN, NCCL or PyTorch" in told.stdout
    monkeypatch.setenv("FAKE_CUDA", "cards=80,init=100")
    told = run("info", str(model), "--device", "cuda")
    assert told.returncode == 0 and "cuda:0 cannot be used: " in told.stdout
    assert "finds no card" in told.stdout and "it fits" not in told.stdout


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("mig=1", "Fake sm_80 MIG 1g.10gb, a part of a card (MIG): "),
        ("retain=46,mode=3", "another process holds Fake sm_80, whose compute mode is exclusive"),
        ("mode=2", "Fake sm_80 is closed to computing: its compute mode is prohibited"),
        ("cards=70", "Fake sm_70 has compute capability 7.0; 7.5 (Turing) or newer is needed"),
        ("held=4096", "it does not fit"),
        (
            "init=304",
            "cuda:0 cannot be used: starting the NVIDIA driver failed: the operating system",
        ),
        ("driver=11020", "cuda:0 cannot be used: the NVIDIA driver is too old: it knows CUDA 11.2"),
    ],
)
def test_info_says_what_is_wrong(
    fake: Fake, model: Path, monkeypatch: pytest.MonkeyPatch, settings: str, words: str
) -> None:
    monkeypatch.setenv("FAKE_CUDA", settings)
    told = run("info", str(model), "--device", "cuda")
    assert told.returncode == 0, told.stderr
    assert words in " ".join(told.stdout.split()), told.stdout
    assert "NCCL" in told.stdout
    assert ("it fits" in told.stdout) == (settings == "mig=1")


def test_info_without_a_driver(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLAMA2C_LIBCUDA", "/nowhere/libcuda.so.1")
    told = run("info", str(model), "--device", "cuda")
    assert told.returncode == 0, told.stderr
    assert "cuda:0 cannot be used: no NVIDIA driver: /nowhere/libcuda.so.1: " in told.stdout
    assert "a card needs its driver only: no CUDA toolkit, cuDNN, NCCL or PyTorch" in told.stdout


def test_the_command_tells_the_cpus_story(fake: Fake) -> None:
    arguments = ("generate", "-s", "7", "-n", "12")
    card, cpu = run(*arguments, "--device", "cuda"), run(*arguments)
    assert card.returncode == 0, card.stderr
    assert card.stdout == cpu.stdout and len(cpu.stdout) > 20
