"""`page`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyllama2c.cli.flags import load
from pyllama2c.cli.streams import say
from pyllama2c.files.whole import whole_file
from pyllama2c.serve.page_file import page_file


def page(arguments: argparse.Namespace) -> int:
    target = Path(arguments.target)
    # Who forgets the target names a model in its place, and would lose it.
    if target.suffix.lower() not in (".html", ".htm") and (target.is_file() or not target.exists()):
        raise ValueError(
            f"{target} does not end with .html; first comes the page to write, then the model"
        )
    with load(arguments) as llama:
        html = page_file(llama)
    with whole_file(target) as file:
        file.write(html)
    say(f"{target}: {len(html):,} bytes")  # the target may be standard output
    return 0
