"""Runs llama.cpp's own tests of its server against ours.

    python tests/serve/llama_cpp/run.py MODELS [--folder FOLDER] [pytest's arguments]

MODELS is a folder with stories260K.bin and tok512.bin. The tests are fetched from PyPI (77 MB, in
the source of llama-cpp-python) into FOLDER (default: a temporary one), with an environment of their
own that has what they pin; next time they are found there. Their files are not changed: shim.py is
the server that they start, exclusions.py says which tests do not apply, and stronger.py is put
beside them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
RELEASE = "llama-cpp-python==0.3.36"
NAMES = ["basic", "completion", "chat_completion", "tokenize", "template"]
NAMES += ["metrics", "security", "ignore_eos"]
NEEDED = ("vendor/llama.cpp/tools/server/tests/", "vendor/llama.cpp/models/templates/")


def fetch(folder: Path) -> Path:
    """The folder of the tests, fetched unless they are there."""
    found = list(folder.glob("*/vendor/llama.cpp/tools/server/tests"))
    if not found:
        pip = [python_of(folder / "build"), "-m", "pip"]
        subprocess.run([*pip, "install", "-q", "scikit-build-core"], check=True)
        what = ["--no-deps", "--no-binary", "llama-cpp-python", "--no-build-isolation", RELEASE]
        subprocess.run([*pip, "download", "-q", "-d", str(folder), *what], check=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as source:
            members = [m for m in source if any(name in m.name for name in NEEDED)]
            source.extractall(folder, members, filter="data")
        found = list(folder.glob("*/vendor/llama.cpp/tools/server/tests"))
    return found[0]


def python_of(environment: Path) -> str:
    """Of a virtual environment, made unless it is there."""
    if not environment.exists():
        venv.create(environment, with_pip=True)
    return str(environment / "bin" / "python")


def free_port() -> int:
    with socket.socket() as any_free:
        any_free.bind(("127.0.0.1", 0))
        port: int = any_free.getsockname()[1]
        return port


def run(models: Path, folder: Path, arguments: list[str]) -> int:
    tests, python = fetch(folder), python_of(folder / "tests")
    pip = [python, "-m", "pip", "install", "-q", "-r", str(tests / "requirements.txt")]
    subprocess.run(pip, check=True)
    shutil.copy(HERE / "stronger.py", tests / "unit" / "test_stronger.py")
    server = folder / "llama-server"
    command = shlex.join([sys.executable, str(HERE / "shim.py"), str(models.resolve())])
    server.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    server.chmod(0o755)
    environment = {
        **os.environ,
        "LLAMA_SERVER_BIN_PATH": str(server.resolve()),
        "PORT": str(free_port()),
        "PYTHONPATH": str(HERE),
    }
    files = [f"unit/test_{name}.py" for name in [*NAMES, "stronger"]]
    options = ["-q", "-rs", "--tb=short", "-p", "exclusions", "-p", "no:cacheprovider"]
    command_of_pytest = [python, "-m", "pytest", *options, *files, *arguments]
    return subprocess.run(command_of_pytest, cwd=tests, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("models", type=Path)
    parser.add_argument("--folder", type=Path)
    asked, arguments = parser.parse_known_args()
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        return run(asked.models, asked.folder, arguments)
    with tempfile.TemporaryDirectory() as folder:
        return run(asked.models, Path(folder), arguments)


if __name__ == "__main__":
    sys.exit(main())
