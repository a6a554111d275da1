"""A file that is written appears whole or not at all, whoever else writes it, whatever it is."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from environment import DATA, run_python
from folders import Model, write_hugging_face
from tiny import Shape, TinyLlama

from pyllama2c import CheckpointError
from pyllama2c.convert.quantize import quantize_file
from pyllama2c.files.whole import whole_file


@pytest.fixture
def umask() -> Iterator[int]:
    old = os.umask(0o027)
    yield 0o027
    os.umask(old)


def write(target: Path, data: bytes) -> None:
    with whole_file(target) as file:
        file.write(data)


def fail_half_way(target: Path, error: BaseException) -> None:
    with whole_file(target) as file:
        file.write(b"half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_threads_that_write_the_same_file(tmp_path: Path) -> None:
    target, errors, seen = tmp_path / "out", [], []
    contents = [bytes([65 + i]) * 200_000 for i in range(8)]
    together = threading.Barrier(len(contents))

    def work(data: bytes) -> None:
        try:
            with whole_file(target) as file:
                together.wait()
                for start in range(0, len(data), 20_000):
                    file.write(data[start : start + 20_000])
                together.wait()
            seen.append(target.read_bytes())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(seen) == 8 and all(data in contents for data in seen)
    assert names(tmp_path) == ["out"]


def test_processes_that_write_the_same_file(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from pyllama2c.files.whole import whole_file
for _ in range(50):
    with whole_file(Path(sys.argv[1])) as file:
        file.write(sys.argv[2].encode() * 50_000)
"""
    target = tmp_path / "out"
    commands = [[sys.executable, "-c", code, str(target), letter] for letter in "abc"]
    running = [subprocess.Popen(command, cwd=DATA) for command in commands]
    assert [process.wait(timeout=600) for process in running] == [0, 0, 0]
    data = target.read_bytes()
    assert len(data) == 50_000 and len(set(data)) == 1
    assert names(tmp_path) == ["out"]


def test_what_was_there_stays_after_an_exception(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(target, KeyboardInterrupt())
    assert target.read_bytes() == b"before" and names(tmp_path) == ["out"]


def test_permissions_are_those_of_open(tmp_path: Path, umask: int) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    write(new, b"x")
    assert stat.S_IMODE(new.stat().st_mode) == 0o666 & ~umask
    old.touch()
    old.chmod(0o604)
    write(old, b"x")
    assert stat.S_IMODE(old.stat().st_mode) == 0o604 and old.read_bytes() == b"x"


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, end = tmp_path / "link", tmp_path / "folder" / "end"
    link.symlink_to(end)
    for data in (b"first", b"second"):  # the first time it leads nowhere yet
        write(link, data)
        assert link.is_symlink() and end.read_bytes() == data
    assert names(tmp_path / "folder") == ["end"]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="loop"):
        write(loop, b"x")
    assert loop.is_symlink()


def test_a_pipe_gets_all_or_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ZeroDivisionError):
        fail_half_way(pipe, ZeroDivisionError())
    assert os.read(reader, 10) == b""
    write(pipe, b"all of it")
    assert os.read(reader, 10) == b"all of it"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and names(tmp_path) == ["pipe"]


def device(folder: Path, name: str, minor: int) -> Path:
    """A device that a failing test may take away: root's is a copy of the system's."""
    if os.geteuid() != 0:
        return Path("/dev") / name
    path = folder / name
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        path.open("wb").close()
    except OSError as error:
        pytest.skip(f"no devices in {folder}: {error}")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's numbers of devices")
def test_devices(tmp_path: Path) -> None:
    null, full = device(tmp_path, "null", 3), device(tmp_path, "full", 7)
    write(null, b"x")
    with pytest.raises(OSError, match=f"'{full}'") as caught:
        write(full, b"x")
    assert caught.value.errno == errno.ENOSPC
    assert null.is_char_device() and full.is_char_device()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=f"name the file to write: '{tmp_path}'"):
        write(tmp_path, b"x")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_is_read_only_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"kept")
    target.chmod(0o444)
    with pytest.raises(PermissionError, match="out'"):
        write(target, b"x")
    assert target.read_bytes() == b"kept"


def test_messages_name_the_target_and_no_temporary_file(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "o.bin"
    with pytest.raises(FileNotFoundError) as caught:
        write(missing, b"x")
    assert caught.value.filename == str(missing) and ".part" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as not_a_folder:
        write(tmp_path / "file" / "o.bin", b"x")
    assert not_a_folder.value.filename == str(tmp_path / "file" / "o.bin")
    # One that the body meets elsewhere is not about the target.
    with pytest.raises(FileNotFoundError) as elsewhere:
        fail_half_way(tmp_path / "o.bin", FileNotFoundError(2, "gone", str(tmp_path / "source")))
    assert elsewhere.value.filename == str(tmp_path / "source")


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: EFBIG, where a disk says ENOSPC."""
    code = """
import resource, signal, sys
from pathlib import Path
from pyllama2c.files.whole import whole_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    with whole_file(Path(sys.argv[1])) as file:
        file.write(bytes(100_000))
except OSError as error:
    print(error.filename)
"""
    target = tmp_path / "out"
    target.write_bytes(b"before")
    shown = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=DATA, capture_output=True, text=True
    )
    assert shown.stdout.strip() == str(target), shown.stderr
    assert target.read_bytes() == b"before" and names(tmp_path) == ["out"]


# ---- What writes files ----


def test_a_source_is_not_its_own_target(tmp_path: Path) -> None:
    source, link = tmp_path / "model.bin", tmp_path / "link.bin"
    source.write_bytes(TinyLlama.random(Shape(dim=32, hidden_dim=64)).v0())
    before = source.read_bytes()
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(FileExistsError, match="is the source itself; name another file"):
            quantize_file(source, target)
    assert source.read_bytes() == before and names(tmp_path) == ["link.bin", "model.bin"]
    for package in ("gguf", "safetensors", "ml_dtypes"):
        pytest.importorskip(package, reason=f"{package} (the extra `convert`) is not installed")
    from pyllama2c.convert import convert

    folder = write_hugging_face(tmp_path / "m", Model(n_layers=1))
    weights, outside = folder / "model.safetensors", tmp_path / "weights"
    before = weights.read_bytes()
    outside.symlink_to(weights)
    for target in (weights, folder / "config.json", outside):
        with pytest.raises(FileExistsError, match="is one of the source files"):
            convert(folder, target, tokenizer=False)
    assert weights.read_bytes() == before
    for _ in range(2):  # beside them, and again
        convert(folder, folder / "model.gguf", tokenizer=False)


def test_quantizing_into_a_pipe(tmp_path: Path) -> None:
    source, pipe, got = tmp_path / "model.bin", tmp_path / "pipe", []
    source.write_bytes(TinyLlama.random(Shape(dim=32, hidden_dim=64)).v0())
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    assert quantize_file(source, pipe) == quantize_file(source, tmp_path / "out.bin")
    reader.join(timeout=600)
    assert got == [(tmp_path / "out.bin").read_bytes()]


def test_a_weight_that_int8_cannot_hold_is_named(tmp_path: Path) -> None:
    tiny = TinyLlama.random(Shape(dim=32, hidden_dim=64))
    tiny.weights["w2"][1, 3, 4] = np.nan
    source = tmp_path / "model.bin"
    source.write_bytes(tiny.v0())
    with pytest.raises(CheckpointError, match=r"model\.bin: w2: a weight is NaN or infinite"):
        quantize_file(source, tmp_path / "out.bin")
    assert names(tmp_path) == ["model.bin"]


def test_the_command_names_files_without_noise(tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(TinyLlama.random(Shape(dim=32, hidden_dim=64)).v0())
    missing = tmp_path / "nowhere" / "o.bin"
    for arguments, message in (
        (["quantize", str(source), str(missing)], f"{missing}: No such file or directory"),
        (["quantize", str(source), str(tmp_path)], f"{tmp_path}: is a folder; name the file to"),
        (["generate", str(source)], f"{source}: no tokenizer for its 300 pieces: pass one with"),
        (["generate", str(source), "-z", str(missing)], f"{missing}: No such file or directory"),
        (["eval", str(missing), "-M", str(source)], f"{missing}: No such file or directory"),
    ):
        shown = run_python("-m", "pyllama2c", *arguments)
        assert shown.returncode == 1
        assert shown.stderr.startswith(f"pyllama2c: error: {message}"), shown.stderr
        assert "Errno" not in shown.stderr and ".part" not in shown.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc")
def test_an_open_stream_is_added_to(tmp_path: Path) -> None:
    """`quantize model.bin /dev/stdout >> file`: it keeps what it had, then has the model."""
    source, target = tmp_path / "model.bin", tmp_path / "all.txt"
    source.write_bytes(TinyLlama.random(Shape(dim=32, hidden_dim=64)).v0())
    quantize_file(source, tmp_path / "alone.bin")
    target.write_bytes(b"keep\n")
    command = [sys.executable, "-m", "pyllama2c", "quantize", str(source), "/dev/stdout"]
    with target.open("ab") as file:
        subprocess.run(command, stdout=file, check=True, timeout=600)
    assert target.read_bytes() == b"keep\n" + (tmp_path / "alone.bin").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """A closed terminal, a container's stop."""
    source, folder = tmp_path / "model.bin", tmp_path / "out"
    folder.mkdir()
    head = TinyLlama.random(Shape(dim=1024, hidden_dim=2048, n_layers=1)).v1()
    source.write_bytes(head[:256])
    with source.open("r+b") as file:  # 40 layers of zeros, which take no room
        file.seek(4 + 4 + 2 * 4)
        file.write((40).to_bytes(4, "little"))
        norms, per_layer = 81 * 1024, len(head) // 4 - 64 - 300 * 1024 - 3 * 1024
        file.truncate(256 + 4 * (norms + 300 * 1024 + 40 * per_layer))
    command = [sys.executable, "-m", "pyllama2c", "quantize", str(source), str(folder / "q.bin")]
    restore = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}
    with subprocess.Popen(command, cwd=DATA, stderr=subprocess.PIPE, **restore) as process:
        while not list(folder.iterdir()) and process.poll() is None:
            pass
        process.send_signal(number)
        _, said = process.communicate(timeout=600)
    assert (process.returncode, said) == (128 + number, b"")
    assert not list(folder.iterdir())
