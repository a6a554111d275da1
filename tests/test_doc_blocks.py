"""Every code block of README and docs runs as it stands, in a folder with the files it names."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_blocks import blocks_of, differs, installed
from environment import SHARED
from folders import Model, write_hugging_face, write_meta, write_zip
from hub_server import running_hub
from tiny import Shape, TinyLlama
from tokenizer_files import byte_level, sentencepiece
from tokenizer_keys import chat_model, sentencepiece_keys

from pyllama2c.files.hub import data_folder

ROOT = Path(__file__).resolve().parents[1]
HELPERS = Path(__file__).parent / "helpers"
# README.ja.md has the README's blocks: test_docs.py compares them.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "README.md": {
        "not run: downloads a known model; needs a graphics card": 1,
        "not run: the tests themselves": 1,
    },
    "docs/cluster.md": {"needs: distributed": 1, "needs: ray": 2, "not run: needs Slurm": 1},
    "docs/cuda-kernels.md": {"not run: needs nvcc": 1},
    "docs/cuda.md": {"not run: needs a graphics card": 2},
    "docs/gguf.md": {"not run: needs a model of 93 MB": 2},
    "docs/hub.md": {"not run: the branch has to move in between": 1},
    "docs/llm.md": {"needs: llm": 3},
    "docs/library.md": {"not run: downloads a known model": 1},
    "docs/memory.md": {"not run: needs a model of 3.64 GB": 1},
    "docs/meta-and-lm-eval.md": {
        "needs: lm_eval, stories260K.bin": 1,
        "needs: stories260K.bin": 1,
        "not run: downloads a task": 1,
    },
    "docs/serve.md": {
        "needs: langchain_openai": 1,
        "not run: slow to start; a test asks with its client": 1,
    },
    "docs/shell.md": {
        "not run: downloads a known model": 1,
        "not run: run.c is another program": 1,
    },
}
"""by page, how often each reason not to run a block is given: no block is left out unseen"""
TASK = """\
task: endings
dataset_path: json
dataset_kwargs: {data_files: {test: endings.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{begin}}"
doc_to_choice: ends
doc_to_target: 0
metric_list: [{metric: acc}]
"""
ENDINGS = [
    ("Once upon a", ["time", "spoon"]),
    ("She was very", ["happy", "Lily"]),
    ("They went to the", ["park", "was"]),
    ("One day, a little girl", ["named Lily", "named the"]),
    ("He said, 'Thank", ["you", "sun"]),
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: models, texts, folders to convert."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "models").mkdir()
    for name in ("model.bin", "llama2-chat.bin", "models/stories15M.bin"):
        shutil.copy(data_folder() / "storyteller.bin", folder / name)
    for name in ("tokenizer.bin", "models/tokenizer.bin"):
        shutil.copy(data_folder() / "tokenizer.bin", folder / name)
    model = chat_model(sentencepiece_keys()).build()
    for name in ("model.gguf", "model-q8_0.gguf"):
        (folder / name).write_bytes(model)
    float32 = TinyLlama.random(Shape(dim=64, hidden_dim=192, n_heads=4)).v0()
    (folder / "checkpoint.bin").write_bytes(float32)
    for name in ("stories260K.bin", "tok512.bin"):
        if (SHARED / "models" / name).is_file():
            shutil.copy(SHARED / "models" / name, folder)
    long = bytearray(TinyLlama.random(Shape(dim=96, hidden_dim=128, n_layers=2)).v1())
    long[32:36] = (1 << 22).to_bytes(4, "little")  # its context
    (folder / "long.bin").write_bytes(long)
    (folder / "endings.yaml").write_text(TASK)
    rows = [json.dumps({"begin": begin, "ends": ends}) for begin, ends in ENDINGS]
    (folder / "endings.jsonl").write_text("\n".join(rows))
    (folder / "stories.txt").write_text("Once upon a time\n<|endoftext|>\nThe lion\n")
    (folder / "prompt.txt").write_text("Once upon a time")
    small = {"dim": 32, "head_size": 8, "n_layers": 1, "hidden_dim": 64}
    for seed, name in enumerate(("open_llama_3b", "older")):
        write_hugging_face(
            folder / name, Model(vocab_size=263, seed=seed, theta=1e4 + seed, **small)
        )
        (folder / name / "tokenizer.json").write_text(json.dumps(byte_level() | {"seed": seed}))
    write_meta(folder / "llama", Model(vocab_size=266, **small), shards=2)
    (folder / "llama" / "tokenizer.model").write_bytes(sentencepiece())
    shutil.copytree(folder / "llama", folder / "evil")
    write_zip(folder / "evil" / "consolidated.00.pth", pickle.dumps({"w": os.system}), {})
    return folder


@pytest.fixture(scope="session")
def hub(files: Path) -> Iterator[str]:
    """The address of a hub where owner/name is a folder with two GGUF files beside it."""
    ggufs = {name: (files / name).read_bytes() for name in ("model.gguf", "model-q8_0.gguf")}

    def commit(name: str) -> dict[str, bytes]:
        return ggufs | {path.name: path.read_bytes() for path in (files / name).iterdir()}

    with running_hub() as running:
        running.repo("owner/name", commit("open_llama_3b")).commit(commit("older"), "v1.0")
        yield running.url


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, files: Path, hub: str, tmp_path: Path) -> None:
    if not any(block.mark != "not run" for block in blocks_of(page.read_text(encoding="utf-8"))):
        pytest.skip("no block that can run here")
    here, home = tmp_path / "here", tmp_path / "home"
    shutil.copytree(files, here)
    home.mkdir()
    (home / ".curlrc").write_text("silent\n")  # as on a terminal, where a page's output is short
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HOME": str(home),
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(home / ".cache"),
    }
    environment.pop("PYLLAMA2C_CACHE", None)
    done = subprocess.run(
        [sys.executable, str(HELPERS / "doc_blocks.py"), str(page)],
        cwd=here,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_what_is_not_run_is_known() -> None:
    left_out = {}
    for page in PAGES:
        blocks = blocks_of(page.read_text(encoding="utf-8"))
        if reasons := Counter(
            f"{b.mark}: {b.reason}" for b in blocks if b.mark in ("not run", "needs")
        ):
            left_out[name_of(page)] = dict(reasons)
    assert left_out == NOT_RUN


def test_every_block_is_seen() -> None:
    """A fence that the runner does not know would not run."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = [line for line in text.splitlines() if line.startswith("```")]
        known = sum(2 if b.output is not None else 1 for b in blocks_of(text))
        assert len(fences) == 2 * known, page.name


def test_extras_exist() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib is Python 3.11's")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for page in PAGES:
        for wanted in installed(page.read_text(encoding="utf-8")):
            name, _, rest = wanted.partition("[")
            assert name in (".", "pyllama2c"), wanted
            for extra in filter(None, rest.rstrip("]").split(",")):
                assert extra in extras["optional-dependencies"], (page.name, wanted)


def test_outputs_are_compared() -> None:
    assert not differs("a\n...\nb\n", "a\n1\n2\nb\n") and not differs("a ... b\n", "a 1 b\n")
    assert differs("a\n...\nb\n", "a\n1\n2\nc\n") and differs("a\n", "a\nb\n")
    assert not differs("1.5 GB, 5 bytes\n", "3 GB, 77 bytes\n")
    assert differs("seed 1, 5 bytes\n", "seed 2, 5 bytes\n")
