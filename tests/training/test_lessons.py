"""Learning from a teacher: what it marks, what is kept, and what a pupil minimizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from training import SHAPE, TEACHER, losses, module, needs_packages, script, stories, write_run

from pyllama2c import Llama

pytestmark = needs_packages


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run file of a teacher that has marked its stories and written 30, of which some ended."""
    stages = ("{ steps = 60, batch_size = 8, window = 64 }",)
    run = write_run(tmp_path_factory.mktemp("lessons") / "teacher", TEACHER, stages)
    script("train_tokenizer.py", run)
    script("train.py", run)
    script("export.py", run)
    script("teach.py", run, "--stories", "30", "--device", "cpu")
    return run


def test_marks_are_the_engines_probabilities(teacher: Path) -> None:
    lessons, opening = module("lessons"), module("teach").OPENING
    out = teacher.parent / "out"
    described = module("run").load_run(teacher)
    for folder in ("marked", "written-0"):
        told = lessons.load([out / folder])
        count = len(told.starts) - 1
        if folder == "marked":
            assert count == len(described.split_stories()[0])
        else:
            assert 3 <= count <= 30
        with Llama(out / "model.gguf") as llama:
            for i in (0, count // 2, count - 1):
                tokens = [1, *told.story(i)]
                begin = told.starts[i] + opening
                assert not told.probabilities[told.starts[i] : begin].any()
                at = slice(begin, told.starts[i + 1])
                logits = llama.logits(tokens)[opening:].astype(float)
                p = np.exp(logits - logits.max(axis=1, keepdims=True))
                p /= p.sum(axis=1, keepdims=True)
                expected = -np.sort(-p, axis=1)[:, : lessons.K]
                marked = -np.sort(-told.probabilities[at].astype(float), axis=1)
                np.testing.assert_allclose(marked, expected, atol=1e-3)
                of_ids = np.take_along_axis(p, told.ids[at].astype(int), axis=1)
                np.testing.assert_allclose(told.probabilities[at], of_ids, atol=1e-3)
    with Llama(out / "model.gguf") as llama:
        first = lessons.load([out / "marked"]).story(0)
        assert llama.tokenizer.decode([1, *first]) == described.split_stories()[0][0]


def test_pytorch_marks_and_writes_as_the_engine_does(teacher: Path) -> None:
    """That is what a GPU is for, and runs on any device."""
    teach, run = module("teach"), module("run").load_run(teacher)
    torch_teacher, engine_teacher = teach.TorchTeacher(run, "cpu"), teach.EngineTeacher(run)
    real = [[1, *tokens] for tokens in run.pieces().encode(run.split_stories()[0])][:70]
    begun = teach.openings(run, 40, seed=3)
    told = [story for story in torch_teacher.write(begun, 0.9, 0.95, seed=5) if story]
    assert len(told) >= 3 and {tuple(tokens[:5]) for tokens, _, _ in told} <= {
        tuple(tokens) for tokens in begun
    }
    marked = list(torch_teacher.mark(real))
    assert [tokens for tokens, _, _ in marked] == real
    stories = [*marked[:3], *marked[63:67], *told]
    expected = engine_teacher.mark([tokens for tokens, _, _ in stories])
    for (tokens, ids, shares), (_, _, of_engine) in zip(stories, expected, strict=True):
        assert len(ids) == len(tokens) and 1 not in tokens[1:]
        assert not shares[: teach.OPENING].any() and not of_engine[: teach.OPENING].any()
        assert not ids[: teach.OPENING].any()  # else the loss would take them for marks
        # bfloat16 here, int8 there
        np.testing.assert_allclose(-np.sort(-shares), -np.sort(-of_engine), atol=0.06)


def test_teaching_goes_on_where_it_was_killed(teacher: Path) -> None:
    lessons, out = module("lessons"), teacher.parent / "out"
    before = lessons.load([out / "written-0"])
    script("teach.py", teacher, "--stories", "35", "--device", "cpu")
    after = lessons.load([out / "written-0"])
    n_before, n_after = len(before.starts) - 1, len(after.starts) - 1
    assert n_before < n_after <= 35
    assert (after.tokens[: len(before.tokens)] == before.tokens).all()
    old = {tuple(before.story(i)) for i in range(n_before)} - {()}
    assert not old & {tuple(after.story(i)) for i in range(n_before, n_after)}  # by new seeds
    assert len(list((out / "marked").glob("*.npz"))) == 1  # nothing is marked twice


NEW = (
    "Sam the dog found a bone under the old oak tree near his house. A cat wanted it too. "
    "They sat down and thought about it, and then they ate it together."
)


def test_good_stories_are_chosen(tmp_path: Path) -> None:
    lessons = module("lessons")
    run = write_run(tmp_path / "a")
    script("train_tokenizer.py", run)
    out = run.parent / "out"
    pieces = module("train").spm.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    marked = []
    real = module("run").load_run(run).split_stories()[0][0]
    for text in ("Too short.", NEW, NEW, real):
        tokens = [1, *pieces.encode(text)]
        ids = np.arange(len(tokens) * lessons.K, dtype=np.uint16).reshape(-1, lessons.K)
        marked.append((tokens, ids, ids.astype(np.float16)))
    (out / "written-0").mkdir()
    lessons.save(out / "written-0" / "00000.npz", lessons.from_marked(marked[:2]))
    lessons.save(out / "written-0" / "00001.npz", lessons.from_marked(marked[2:]))
    said = script("select_lessons.py", run)
    assert said == f"kept 1 stories, {len(NEW)} bytes; dropped: {{'told before': 2, 'short': 1}}\n"
    chosen = lessons.load([out / "chosen"])
    assert pieces.decode(chosen.story(0)) == NEW and len(chosen.starts) == 2
    assert (chosen.ids == marked[1][1]).all() and (chosen.probabilities == marked[1][2]).all()


def test_a_pupil_learns_from_marks(teacher: Path, tmp_path: Path) -> None:
    out = teacher.parent / "out"
    folder = json.dumps(str(out / "marked"))
    stages = (
        f"{{ steps = 6, batch_size = 4, window = 32, from_starts = true, lessons = [{folder}] }}",
        f"{{ steps = 4, batch_size = 2, window = 64, lessons = [{folder}], hard_weight = 0.5 }}",
    )
    curves = []
    for name in ("whole", "killed"):
        run = write_run(tmp_path / name, SHAPE, stages, f"tokenizer = {json.dumps(str(out))}\n")
        if name == "killed":
            script("train.py", run, "--stop-after", "7")
        script("train.py", run)
        curves.append(losses(run))
    assert len(curves[0]) == 10 and curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], abs=2e-3)


def test_marks_stand_for_the_whole_distribution() -> None:
    """Averaged over next tokens as the teacher draws them, the loss is the cross-entropy of its
    whole distribution, though only the likeliest tokens are marked."""
    import torch

    train = module("train")
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(1, 1, 8)), dtype=torch.float64)
    p = rng.dirichlet(np.ones(8))
    ids = np.argsort(-p)[:3]
    log_q = torch.log_softmax(logits.float(), -1)[0, 0].numpy()
    total, hard = 0.0, 0.0
    for target in range(8):
        batch = train.Batch(
            torch.tensor([[1, target]]),
            torch.tensor(ids.copy())[None, None],
            torch.tensor(p[ids], dtype=torch.float32)[None, None],
        )
        total += p[target] * train.cross_entropy(logits, batch, 0.0).item()
        hard += p[target] * train.cross_entropy(logits, batch, 1.0).item()
        unmarked = train.Batch(batch.tokens, None, None)
        assert train.cross_entropy(logits, unmarked, 0.0).item() == pytest.approx(-log_q[target])
    assert total == pytest.approx(-(p * log_q).sum(), rel=1e-5)
    assert hard == pytest.approx(-(p * log_q).sum(), rel=1e-5)


def test_what_is_dropped() -> None:
    held_out = "Once a green frog sat on a stone and sang a song about the moon to a small bee."
    forbidden = set(module("stories").ngrams(held_out, 12))
    reader = module("select_lessons").Reader(stories(), forbidden)

    def flaw(story: str) -> str | None:
        found, runs = reader.read(story)
        assert bool(runs) is (found is None)
        return found

    assert flaw(NEW) is None
    assert flaw(NEW[:80]) == "short"
    assert flaw(NEW[:-1]) == "cut off"
    assert flaw(NEW.replace("bone", "böne")) == "not ASCII"
    assert flaw(NEW.replace(". ", ".  ")) == "untidy"
    assert flaw(f"{NEW} {held_out}") == "held out"
    assert flaw("The cat sat on the mat. " * 10 + "It was so very happy.") == "repetitive"


def test_windows_show_every_token_once_an_epoch() -> None:
    lessons, windows, run = module("lessons"), module("windows"), module("run")
    lengths = [5, 9, 3, 7]
    marked = []
    for i, n in enumerate(lengths):
        tokens = [1, *range(100 * i + 100, 100 * i + 99 + n)]
        ids = np.array(tokens, np.uint16)[:, None] + np.arange(lessons.K, dtype=np.uint16)
        marked.append((tokens, ids, ids.astype(np.float16) / 1000))
    told = lessons.from_marked(marked)
    stage = run.Stage(steps=9, batch_size=2, window=3, from_starts=False, lessons=[], hard_weight=0)
    cut = windows.Windows(stage, told, 7)
    assert cut.steps_per_epoch == 3
    seen = []
    for step in range(3):
        batch = cut[step]
        assert batch.tokens.shape == (2, 4) and batch.ids.shape == (2, 3, lessons.K)
        assert (batch.ids[..., 0] == batch.tokens[:, :-1]).all()  # marks stand beside their tokens
        seen += batch.tokens.flatten().tolist()
    assert len(seen) == 24
    assert sorted(seen[:24]) == sorted(told.tokens.tolist())
    again = windows.Windows(stage, told, 7)
    assert (again[4].tokens == cut[4].tokens).all()  # whichever steps were seen before
    assert not all((cut[i].tokens == cut[i + 3].tokens).all() for i in range(3))  # a new order
    few = told.chosen([2, 0])
    assert few.story(0) == told.story(2) and few.story(1) == told.story(0)
    assert few.ids[few.starts[1], 0] == 1


def test_windows_may_begin_with_stories() -> None:
    lessons, windows, run = module("lessons"), module("windows"), module("run")
    lengths = [5, 9, 3, 7]
    marked = [
        (
            [1, *range(100 * i + 100, 100 * i + 99 + n)],
            np.zeros((n, lessons.K), np.uint16),
            np.zeros((n, lessons.K), np.float16),
        )
        for i, n in enumerate(lengths)
    ]
    stage = run.Stage(
        steps=9, batch_size=2, window=5, from_starts=True, lessons=[], hard_weight=0.0
    )
    cut = windows.Windows(stage, lessons.from_marked(marked), 7)
    firsts, whole = set(), set()
    for step in range(12):
        for row in cut[step].tokens.tolist():
            starts = [i for i, token in enumerate(row) if token == 1]
            assert starts[0] == 0
            firsts.add(row[1])
            for begin, end in zip(starts, [*starts[1:], len(row)], strict=True):
                story = row[begin + 1 : end]  # each from its beginning on
                first = story[0] if story else 0
                assert first % 100 == 0 and story == list(range(first, first + len(story)))
                if end < len(row):
                    whole.add((first // 100, len(story) + 1))
    assert firsts == {100, 200, 300, 400}
    assert whole == {(1, 5), (3, 3)}  # the others do not fit a window
