"""A storyteller's practice: what is a slip, and that learning from the marks avoids slips."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from training import SHAPE, TEACHER, module, needs_packages, script, write_run

from pyllama2c import Llama

pytestmark = needs_packages


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run files: of a storyteller that has practised, and of the teacher that read them."""
    folder = tmp_path_factory.mktemp("practice")
    stages = ("{ steps = 60, batch_size = 8, window = 64 }",)
    teacher = write_run(folder / "teacher", TEACHER, stages)
    pupil = write_run(folder / "pupil", SHAPE, stages, more='tokenizer = "../teacher/out"\n')
    script("train_tokenizer.py", teacher)
    for run in (teacher, pupil):
        script("train.py", run)
        script("export.py", run)
    script("practice.py", pupil, str(teacher), "--lessons", "600")
    return pupil, teacher


def test_what_is_a_slip() -> None:
    teacher, own = np.log([[0.5, 0.002, 0.02, 0.02, 0.04, 1], [0.5, 0.002, 0.1, 0.2, 0.9, 1]])
    assert module("practice").slips(teacher, own).tolist() == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


def test_a_story_is_cut_back_to_a_whole_sentence(runs: tuple[Path, Path]) -> None:
    pieces = module("run").load_run(runs[0]).pieces()
    practice = module("practice").Practice(None, None, pieces)
    tokens = [1, *pieces.encode("One day Tom had a ball. Lily saw the ball and said, please.")]
    kept = [1, *pieces.encode("One day Tom had a ball.")]
    assert tokens[: len(kept)] == kept
    for slip in (len(kept), len(kept) + 3, len(tokens) - 1):
        assert practice.cut(tokens, slip) == kept
    for slip in (6, len(kept) - 1):
        assert practice.cut(tokens, slip) == [1]
    assert practice.cut([*tokens, 1], len(tokens)) == tokens  # it should not have ended here


def test_practice_marks_what_the_engine_says(runs: tuple[Path, Path]) -> None:
    lessons, practice, load_run = module("lessons"), module("practice"), module("run").load_run
    pupil, teacher = (load_run(run) for run in runs)
    opening = module("teach").OPENING
    told = lessons.load([pupil.out / "practised-0"])
    assert len(told.starts) == 601
    n_slips = n_told_on = 0
    with (
        Llama(pupil.out / "model-q8.bin", pupil.tokenizer / "tokenizer.bin") as own,
        Llama(teacher.out / "model.gguf") as reader,
    ):
        for i in range(600):
            tokens = [1, *told.story(i), 1]
            at = slice(told.starts[i], told.starts[i + 1])
            marks = told.probabilities[at, 0]
            assert told.ids[at, 0].tolist() == tokens[1:]
            assert not told.probabilities[at, 1:].any()
            of_reader, of_own = (
                np.array([p or 0 for p in llama.score(tokens).logprobs])[1:]
                for llama in (reader, own)
            )
            if (marks == 1).all():
                assert (of_reader[opening:] >= practice.IMPOSSIBLE).all()
                continue
            start = np.flatnonzero(marks)[0]
            slip = practice.slips(of_reader, of_own)
            expected = np.where(slip, -practice.SLIP_WEIGHT, 1.0)
            expected[:start] = 0
            assert marks.tolist() == expected.tolist()
            # What is not told anew came through a reading without the worst of slips.
            assert (of_reader[opening:start] >= practice.IMPOSSIBLE).all()
            n_told_on += int(start > opening)
            n_slips += int(slip[start:].sum())
    assert n_slips and n_told_on
    real = lessons.load([pupil.out / "real"])
    assert len(real.starts) - 1 == len(pupil.split_stories()[0])
    assert real.tokens[0] == 1 and (real.probabilities[:, 0] == 1).all()
    assert (real.ids[:-1, 0] == real.tokens[1:]).all()  # BOS at each end, too


def test_practice_goes_on_where_it_was_killed(runs: tuple[Path, Path]) -> None:
    lessons, pupil = module("lessons"), runs[0]
    folder = pupil.parent / "out" / "practised-0"
    before = lessons.load([folder])
    script("practice.py", pupil, str(runs[1]), "--lessons", "620")
    after = lessons.load([folder])
    assert len(after.starts) == 621
    assert (after.tokens[: len(before.tokens)] == before.tokens).all()


def test_a_negative_mark_is_unlikelihood() -> None:
    import torch

    train = module("train")
    logits = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    q = torch.softmax(logits, -1)[0, 0]
    batch = train.Batch(torch.tensor([[1, 5]]), torch.tensor([[[5, 0]]]), torch.zeros(1, 1, 2))
    for mark, expected in ((-2.0, -2 * math.log(1 - q[5])), (1.0, -math.log(q[5])), (0.0, 0.0)):
        batch.probabilities[0, 0, 0] = mark
        assert train.cross_entropy(logits, batch, 0.0).item() == pytest.approx(expected, rel=1e-5)
    sure = torch.zeros(1, 1, 8)
    sure[..., 5] = 1e4  # p is 1
    batch.probabilities[0, 0, 0] = -2
    assert math.isfinite(train.cross_entropy(sure, batch, 0.0).item())


def test_learning_from_practice_avoids_slips(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Runs that start from the storyteller's weights: one told what its slips are, one not."""
    import torch

    lessons, load_run = module("lessons"), module("run").load_run
    pupil = load_run(runs[0])
    told = lessons.load([pupil.out / "practised-0"]).chosen(range(60))
    slip = told.probabilities[:, 0] < 0
    slip_probability = {}
    for name in ("avoiding", "unaware"):
        if name == "unaware":
            told.probabilities = abs(told.probabilities)
        (tmp_path / f"{name}-lessons").mkdir()
        lessons.save(tmp_path / f"{name}-lessons" / "0.npz", told)
        folders = json.dumps([str(tmp_path / f"{name}-lessons"), str(pupil.out / "real")])
        stage = f"{{ steps = 40, batch_size = 8, window = 64, lessons = {folders} }}"
        paths = {"start": str(pupil.out), "tokenizer": str(pupil.tokenizer)}
        more = "".join(f"{key} = {json.dumps(path)}\n" for key, path in paths.items())
        run = write_run(tmp_path / name, SHAPE, (stage,), more)
        script("train.py", run)
        model, found = module("export").load_averaged(load_run(run)), []
        for i in range(60):
            at = slice(told.starts[i], told.starts[i + 1])
            with torch.no_grad():
                logits = model(torch.from_numpy(told.tokens[at].astype(np.int64))[None])[0]
            p = torch.softmax(logits, -1).numpy()
            again = np.take_along_axis(p, told.ids[at, :1].astype(int), axis=1)[:, 0]
            found.append(again[slip[at]])
        slip_probability[name] = np.concatenate(found).mean()
    assert slip_probability["avoiding"] < 0.75 * slip_probability["unaware"]


def test_a_run_starts_from_another(runs: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    pupil = module("run").load_run(runs[0])
    run = write_run(tmp_path / "next", more=f"start = {json.dumps(str(pupil.out))}\n")
    described = module("run").load_run(run)
    described.out.mkdir()
    trainer = module("train").Trainer(described, torch.device("cpu"))
    averaged = module("export").load_averaged(pupil)
    tokens = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(tokens), averaged(tokens))
