"""`page`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyllama2c.cli.flags import load
from pyllama2c.cli.streams import say
from pyllama2c.files.whole import whole_file
from pyllama2c.serve.page_file import page_file


def page(arguments: argparse.Namespace) -> int:
    with load(arguments) as llama:
        html = page_file(llama)
    with whole_file(Path(arguments.target)) as file:
        file.write(html)
    say(f"{arguments.target}: {len(html):,} bytes")  # the target may be standard output
    return 0
