"""Stories in a notebook, and the notebook of docs, whose saved outputs are what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from environment import run_python

from pyllama2c import Llama

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"
RUN = """
import json, sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, kernel_name="python3").execute()
json.dump(notebook, sys.stdout)
"""


def test_a_story_shows_itself(llama: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    """As plain text, whether it has begun, ended or neither."""
    expected = llama.generate("ab", seed=1, max_tokens=20).read()
    story = llama.generate("ab", seed=1, max_tokens=20)
    next(story)
    for _ in range(2):
        story._ipython_display_()
        assert capsys.readouterr().out == expected + "\n"
        assert story.finish_reason is not None
    assert repr(llama.generate("ab")) == "<Generation of 0 tokens, not finished: ''>"
    assert repr(story).startswith(f"<Generation of {len(story.tokens)} tokens, ")
    assert len(repr(story)) < 150


def shown(notebook: dict[str, Any]) -> list[str]:
    """What each code cell printed and returned."""
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            parts = [out.get("text") or out["data"]["text/plain"] for out in cell["outputs"]]
            cells.append("".join("".join(part) for part in parts))  # lists of lines, or texts
    return cells


@pytest.mark.skipif(not NOTEBOOK.exists(), reason="needs the source folder")
def test_the_notebook_of_docs() -> None:
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    done = run_python("-c", RUN, str(NOTEBOOK))
    assert done.returncode == 0, done.stderr
    saved, now = shown(json.loads(NOTEBOOK.read_text())), shown(json.loads(done.stdout))
    assert saved[0].startswith("Llama(") and now[0].startswith("Llama(")  # its path differs
    assert now[1:] == saved[1:] and all(saved)
