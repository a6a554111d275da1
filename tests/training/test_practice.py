"""A storyteller's practice: which of its stories are lessons, and that it learns from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from training import SHAPE, TEACHER, module, needs_packages, script, stories, write_run

from pyllama2c import Llama

pytestmark = needs_packages

LESSONS, CAREFUL = 80, 6.0  # nats
# A phrase is told as often as it comes: the few stories share most of theirs.
ROUND = f"""
[[rounds]]
lessons = {LESSONS}
temperature = 0.9
top_p = 0.9
repetition_penalty = 1.0
surprise = {CAREFUL}
often = 1_000_000
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run files: of a practice run after its first round, and of the teacher that read for it."""
    folder = tmp_path_factory.mktemp("practice")
    stages = ("{ steps = 160, batch_size = 8, window = 64 }",)
    teacher = write_run(folder / "teacher", TEACHER, stages)
    shared = 'tokenizer = "../teacher/out"\n'
    pupil = write_run(folder / "pupil", SHAPE, stages, shared)
    script("train_tokenizer.py", teacher)
    for run in (teacher, pupil):
        script("train.py", run)
        script("export.py", run)
    practice = write_run(folder / "practice", SHAPE, stages, 'start = "../pupil/out"\n' + shared)
    folders = 3 * '"out/round-{0}", ' + '"out/real"'
    stage = f"{{{{ steps = 60, batch_size = 8, window = 64, lessons = [{folders}] }}}}"
    text = practice.read_text() + 2 * ROUND
    text = text.replace(stages[0], ", ".join(stage.format(number) for number in (1, 2)))
    text = text.replace("learning_rate = 1e-2", "restarts = true\nlearning_rate = 3e-3")
    practice.write_text(text.replace("[data]", '[data]\nheld_out = "held_out.json"'))
    held_out = [story for story in stories() if "Max had a drum" in story]
    (practice.parent / "held_out.json").write_text(json.dumps({"passages": held_out}))
    script("practice.py", practice, str(teacher))
    return practice, teacher


def surprise(tokens: list[int], teacher: Llama, start: int) -> float:
    found = teacher.score(tokens).logprobs[start:]
    return sum(max(0.0, math.log(0.05) - p) for p in found if p is not None)


def told(folder: Path) -> list[list[int]]:
    """From BOS to the BOS behind each."""
    saved = module("lessons").load([folder])
    assert (saved.probabilities[:, 0] == 1).all() and not saved.probabilities[:, 1:].any()
    found = []
    for i in range(len(saved.starts) - 1):
        found.append([1, *saved.story(i), 1])
        assert saved.ids[saved.starts[i] : saved.starts[i + 1], 0].tolist() == found[-1][1:]
    return found


def test_what_surprises_the_teacher() -> None:
    assert module("practice").surprise([None, -1.0, -3.5, -7.0]) == pytest.approx(0.5 + 4.0)


def test_what_is_told_again_and_again_becomes_known() -> None:
    memory, story = module("practice").Memory(often=3), list(range(60))
    other = [*range(8), *range(60, 120)]
    for _ in range(3):
        assert not memory.knows(story)
        memory.add(story)
    assert memory.knows(story)
    assert not memory.knows(other)  # how it begins does not count
    assert not memory.knows(story[:20] + other[8:])  # nor does a short run


def test_lessons_are_careful_stories(runs: tuple[Path, Path]) -> None:
    practice, text = module("practice"), module("stories")
    run, teacher = (module("run").load_run(path) for path in runs)
    pieces, forbidden = run.pieces(), text.held_out_runs(run.held_out)
    real = pieces.encode(run.split_stories()[0])
    with (
        Llama(run.start / "model-q8.bin", run.tokenizer / "tokenizer.bin") as pupil,
        Llama(teacher.out / "model.gguf") as reader,
    ):
        raw = [
            [1, *story.tokens, 1]
            for story in pupil.generate_batch([""], n=200, temperature=0.9, seed=5)
            if story.finish_reason == "stop" and len(story.tokens) > practice.SHORTEST
        ]
        # What is kept out is there to be kept out.
        assert any(surprise(tokens, reader, 5) > CAREFUL for tokens in raw)
        assert any(text.flaw(pieces.decode(tokens), forbidden) == "held out" for tokens in raw)
        found = told(run.out / "round-1")
        assert len(found) >= LESSONS
        for tokens in found:
            story = pieces.decode(tokens)
            assert practice.SHORTEST <= len(tokens) - 1 <= practice.LONGEST
            assert text.repetition(story) <= practice.REPETITIVE
            assert text.flaw(story, forbidden) is None
            given = [n for n in practice.BEGUN if tokens[1 : n + 1] in [t[:n] for t in real]]
            assert surprise(tokens, reader, 1 + max([4, *given])) <= CAREFUL


def test_turns_that_mix_up_who_is_who(runs: tuple[Path, Path]) -> None:
    practice, run = module("practice"), module("run").load_run(runs[0])
    worth = practice.Practice(None, None, run, run.rounds[0]).worth_reading
    plain = stories()[0]
    for turn, said in {
        " It was not a ball, it was a dog.": False,
        " The hat wasn't just a hat.": False,
        " The ball was not sad anymore.": False,
        " It was not all.": True,
        " It was a good day for a dog.": True,
    }.items():
        assert worth([1, *run.pieces().encode(plain + turn)]) is said, turn


def test_stories_begin_as_real_ones_do(runs: tuple[Path, Path]) -> None:
    practice: Any = module("practice")
    run = module("run").load_run(runs[0])
    begun = practice.Practice(None, None, run, run.rounds[0]).begin(seed=3)
    real = run.pieces().encode(run.split_stories()[0])
    alone = begun.count([1])
    assert 0.1 * len(begun) < alone < 0.3 * len(begun)
    for n in practice.BEGUN:
        some = [tokens[1:] for tokens in begun if len(tokens) == n + 1]
        assert len(some) > 0.2 * len(begun)
        assert all(tokens in [story[:n] for story in real] for tokens in some)


def test_real_stories_go_beside(runs: tuple[Path, Path]) -> None:
    run = module("run").load_run(runs[0])
    real = run.pieces().encode(run.split_stories()[0])
    assert told(run.out / "real") == [[1, *tokens, 1] for tokens in real]


def test_practice_goes_on_where_it_was_killed(runs: tuple[Path, Path]) -> None:
    practice, folder = runs[0], module("run").load_run(runs[0]).out / "round-1"
    before = told(folder)
    more = f"lessons = {len(before) + 10}"
    practice.write_text(practice.read_text().replace(f"lessons = {LESSONS}", more, 1))
    script("practice.py", practice, str(runs[1]))
    after = told(folder)
    assert len(after) == len(before) + 10 and after[: len(before)] == before
    assert after[len(before) :] != before[:10]  # other seeds


def test_phrases_do_not_become_habits(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    practice: Any = module("practice")
    monkeypatch.setattr(practice, "AT_ONCE", 64)
    run, teacher = (module("run").load_run(path) for path in runs)
    run.rounds[0].often = 2
    found: list[tuple[list[int], Any, Any]] = []
    with (
        Llama(run.start / "model-q8.bin", run.tokenizer / "tokenizer.bin") as pupil,
        Llama(teacher.out / "model.gguf") as reader,
    ):
        made = practice.Practice(pupil, reader, run, run.rounds[0]).lessons(1)
        with pytest.raises(SystemExit, match="none was careful"):  # soon all has been said
            found.extend(made)
    memory = practice.Memory(often=2)
    for tokens, _, _ in found:
        assert not memory.knows(tokens)
        memory.add(tokens)
    assert found


def test_who_tells_a_round(runs: tuple[Path, Path]) -> None:
    storyteller, run = module("practice").storyteller, module("run").load_run(runs[0])
    assert storyteller(run, 1) == run.start / "model-q8.bin"
    assert storyteller(run, 2) == run.out / "model-q8.bin"


def test_a_round_that_the_run_does_not_describe(runs: tuple[Path, Path]) -> None:
    for number in ("0", "3"):
        with pytest.raises(AssertionError, match=f"describes 2 rounds: there is no {number}"):
            script("practice.py", runs[0], str(runs[1]), "--round", number)


def test_a_stage_without_its_round_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    lessons = module("lessons")
    with pytest.raises(FileNotFoundError, match="round-9"):
        lessons.load([module("run").load_run(runs[0]).out / "real", tmp_path / "round-9"])
    with pytest.raises(FileNotFoundError, match="no folders"):
        lessons.load([])


def test_a_stage_learns_its_round_and_the_next_round_follows(runs: tuple[Path, Path]) -> None:
    run = module("run").load_run(runs[0])
    script("train.py", runs[0], "--stop-after", "60")
    script("export.py", runs[0])
    careful, total = told(run.out / "round-1"), []
    for folder in (run.start, run.out):
        with Llama(folder / "model-q8.bin", run.tokenizer / "tokenizer.bin") as pupil:
            total.append(sum(score.total for score in pupil.score_batch(careful)))
    assert total[1] > 0.9 * total[0]  # both negative: likelier by a tenth, at least
    script("practice.py", runs[0], str(runs[1]), "--round", "2")
    assert len(told(run.out / "round-2")) == LESSONS
    script("train.py", runs[0])
    assert len((run.out / "log.jsonl").read_text().splitlines()) == 120


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
