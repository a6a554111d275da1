"""The code blocks of a page of documentation, and a run of them.

    python doc_blocks.py PAGE.md

runs the blocks of a page in order, in the working directory. Python blocks share a namespace; of a
console block each `$ ` line is a command for bash, of a sh block every line. What a page shows as
output is compared: in a block of text after Python or sh (there without the speed), or below a
command. `...` stands for anything, a line or a part of one; sizes, speeds, commits and ids may
differ. A command whose output is not shown has to succeed. A server runs until the page ends, at a
free port in place of the page's.

`<!-- not run: reason -->` before a block leaves it out, `<!-- needs NAME -->` does where that
module or file is not there, `<!-- file: NAME -->` writes a block to a file. `pip install` is read,
not run.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = re.compile(
    r"^(?:<!-- (not run|needs|file):? ([^\n]*?) -->\n)?```(python|console|sh|json)\n(.*?)^```$"
    r"(?:\n+```(?:text)?\n(.*?)^```$)?",
    re.M | re.S,
)
_INSTALL = re.compile(r"pip install (\S+)(?: && |\s*(?:#.*)?$)")
_FIGURES = re.compile(
    r"[\d.,]+(?= ?(?:bytes|[kMG]B|tok/s)\b)|(?<=tok/s: )[\d.]+|\b[0-9a-f]{40}\b"
    r"|\d+%\|.*(?=\n)"  # a progress bar
    r"|(?<=cmpl-)\w+|(?<=\"created\":)\d+|(?<=\"system_fingerprint\":\"fp_)\w+"
)


class Block(NamedTuple):
    line: int
    """of its first line of code"""
    language: str
    code: str
    output: str | None
    """that a text block shows"""
    mark: str
    """"not run", "needs", "file" or nothing"""
    reason: str


def blocks_of(page: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(page):
        mark, reason, language, code, output = match.groups()
        line = page.count("\n", 0, match.start(4)) + 1
        if language == "sh":
            code = re.sub("^", "$ ", code.rstrip(), flags=re.M) + f"\n{output or ''}...\n"
        yield Block(line, language, code, output, mark or "", reason or "")


def commands_of(code: str) -> Iterator[tuple[str, str]]:
    """A console block's commands, each with the output that is shown."""
    for part in re.split(r"^\$ ", code, flags=re.M)[1:]:
        match = re.match(r"((?:.*\\\n)*.*)\n((?:.*\n)*)", part)
        assert match
        yield match[1], match[2]


def installed(code: str) -> Iterator[str]:
    """What `pip install` is asked for, in a block of either language's comments or commands."""
    for match in _INSTALL.finditer(code):
        yield match[1].strip("'\"")


def differs(shown: str, real: str) -> bool:
    """Whether an output is not the one that a page shows."""
    home = os.path.expanduser("~")
    shown, real = (
        _FIGURES.sub("#", text.replace(home, "/home/me")).rstrip("\n") + "\n"
        for text in (shown, real)
    )
    pattern = "".join(
        r"(?:.*\n)*" if line == "...\n" else re.escape(line).replace(r"\.\.\.", ".*")
        for line in shown.splitlines(keepends=True)
    )
    return re.fullmatch(pattern, real) is None


def _run_python(page: str, block: Block, names: dict[str, Any]) -> str:
    code = compile("\n" * (block.line - 1) + block.code, page, "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def _start_server(command: str, shown: str) -> subprocess.Popen[str]:
    """The server, once it has printed what the page shows."""
    server = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    said = server.stdout.readline()
    if differs(shown, said):
        server.kill()
        raise SystemExit(f"$ {command}\nshows\n{shown}but prints\n{said}{server.stdout.read()}")
    return server


def _run_console(block: Block, servers: list[subprocess.Popen[str]], port: int) -> None:
    for command, shown in commands_of(block.code):
        command = _INSTALL.sub("", command)
        if not command.strip():
            continue
        if command.startswith("pyllama2c serve"):
            servers.append(_start_server(f"{command} --port {port}", shown))
            continue
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0 and shown in ("", "...\n"):
            raise SystemExit(f"$ {command}\n{done.stdout}exit status {done.returncode}")
        if shown and differs(shown, done.stdout):
            raise SystemExit(f"$ {command}\nshows\n{shown}but prints\n{done.stdout}")


def _there(name: str) -> bool:
    return Path(name).exists() or (name.isidentifier() and find_spec(name) is not None)


def main(page: str) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    servers: list[subprocess.Popen[str]] = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = Path(page).read_text(encoding="utf-8").replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    try:
        _run_blocks(page, text, names, servers, port)
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def _run_blocks(
    page: str, text: str, names: dict[str, Any], servers: list[subprocess.Popen[str]], port: int
) -> None:
    for block in blocks_of(text):
        needed = block.reason.split(", ") if block.mark == "needs" else []
        if block.mark == "not run" or not all(map(_there, needed)):
            continue
        print(f"{page}:{block.line}", file=sys.stderr)
        if block.mark == "file":
            Path(block.reason).write_text(block.code, encoding="utf-8")
            continue
        if block.language in ("console", "sh"):
            _run_console(block, servers, port)
            continue
        printed = _run_python(page, block, names)
        if block.output is not None and differs(block.output, printed):
            raise SystemExit(f"shows\n{block.output}but prints\n{printed}")


if __name__ == "__main__":
    main(sys.argv[1])
