"""A Llama is copied and pickled by its arguments: the copy opens the model anew."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from tiny import Shape, TinyLlama
from told import told

from pyllama2c import ClosedError, Llama


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_stands_alone(tiny_path: Path, way: object) -> None:
    with Llama(tiny_path, context=50, dtype="int8", isa="scalar") as llama:
        again = way(llama)  # type: ignore[operator]
        assert again is not llama and type(again) is Llama
        assert again.config == llama.config and again.config.dtype == "int8"
        expected = told(llama, 3)
    assert told(again, 3) == expected  # though the first is closed
    with pytest.raises(ClosedError):
        way(llama)  # type: ignore[operator]
    assert len(pickle.dumps(again)) < 1000  # no weights


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_other_processes(tiny_path: Path, start: str) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {start}")
    with Llama(tiny_path, context=50, isa="scalar") as llama:
        expected = [told(llama, seed) for seed in range(2)]
        context = multiprocessing.get_context(start)
        with ProcessPoolExecutor(1, context) as executor:
            answers = list(executor.map(told, [llama] * 2, range(2)))
        assert [answer[:3] for answer in answers] == [answer[:3] for answer in expected]
        assert os.getpid() not in {answer[3] for answer in answers}


def test_a_relative_path(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_path.parent)
    with Llama(tiny_path.name, "tokenizer.bin") as llama:
        expected, data = told(llama, 1), pickle.dumps(llama)
    monkeypatch.chdir(tmp_path)
    with pickle.loads(data) as again:
        assert told(again, 1) == expected


def test_the_embedded_model() -> None:
    with Llama() as llama, copy.copy(llama) as again:
        assert told(again, 1) == told(llama, 1)


def test_a_buffer_is_nobody_elses() -> None:
    with Llama.from_buffer(TinyLlama.random(Shape()).v0()) as llama:
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a Llama made by from_buffer cannot be copied"):
                way(llama)
