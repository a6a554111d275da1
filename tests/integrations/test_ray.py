"""Stories on a Ray cluster of two nodes are those of one process, whatever is killed on the way.

PYLLAMA2C_RAY=N tells N stories in the tests that kill something (2,000 is a good number).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from pyllama2c import Llama, Llama2cError, StoryFileError

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'pyllama2c[ray]'")
pa = pytest.importorskip("pyarrow", reason="needs Ray Data: pip install 'pyllama2c[ray]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray about itself

COUNT = int(os.environ.get("PYLLAMA2C_RAY", "1000"))
TOKENS = 40
MADE = {"seed": 2**64 - 3, "max_tokens": TOKENS}


def prompts(count: int) -> list[str]:
    return [("Once upon a time", "The lion", "")[i % 3] for i in range(count)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        made.add_node(num_cpus=2)
        ray.init(address=made.address, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """What one process tells."""
    asked = prompts(COUNT)
    with Llama() as llama:
        stories = llama.generate_batch(asked, in_order=True, **MADE)
        return [
            {
                "id": i,
                "prompt": asked[i],
                "text": story.text,
                "tokens": len(story.tokens),
                "finish_reason": story.finish_reason,
                "seed": story.seed,
                "error": None,
            }
            for i, story in enumerate(stories)
        ]


def asked(count: int = COUNT) -> Any:
    return ray.data.from_items([{"id": i, "prompt": p} for i, p in enumerate(prompts(count))])


def told(folder: Path) -> list[dict[str, Any]]:
    """All rows, by id; a file has 250 of them at most."""
    from pyarrow import parquet

    files = [parquet.read_table(path) for path in folder.glob("*.parquet")]
    assert all(0 < len(table) <= 250 for table in files)
    assert not list(folder.glob(".*.tmp"))
    return pa.concat_tables(files).sort_by("id").to_pylist()


def half_way(folder: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    """Until the folder has half of the files."""
    while len(list(folder.glob("*.parquet"))) < COUNT // 250 // 2:
        assert process is None or process.poll() is None
        sleep(0.02)


@pytest.mark.usefixtures("cluster")
def test_rows_of_one_process_and_nothing_twice(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    from pyllama2c.integrations.ray import write_dataset

    assert write_dataset(asked(300), tmp_path / "f", MADE, actors=2) == 300
    assert told(tmp_path / "f") == rows[:300]
    assert len(list((tmp_path / "f").glob("*.parquet"))) == 2  # whole batches, but for the last
    files = sorted(tmp_path.rglob("*.parquet"))
    assert write_dataset(asked(300), tmp_path / "f", MADE, actors=1) == 0
    assert sorted(tmp_path.rglob("*.parquet")) == files
    assert write_dataset(asked(310), tmp_path / "f", {**MADE, "threads": 1}, actors=1) == 10
    assert told(tmp_path / "f") == rows[:310]
    with pytest.raises(StoryFileError, match=r"was made with .*40.*, and this run is of .*41"):
        write_dataset(asked(310), tmp_path / "f", {**MADE, "max_tokens": 41})


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_is_killed(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    from ray._private import state

    from pyllama2c.integrations.ray import write_dataset

    killed: list[int] = []

    def kill() -> None:
        half_way(tmp_path / "f")
        killed.extend(
            actor["Pid"]
            for actor in state.actors().values()
            if actor["State"] == "ALIVE" and "_Writer" in actor["ActorClassName"]
        )
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert write_dataset(asked(), tmp_path / "f", MADE, actors=2) == COUNT
    killer.join()
    assert killed and told(tmp_path / "f") == rows


def test_a_driver_that_is_killed(cluster: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    from pyllama2c.integrations.ray import write_dataset

    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import ray
from test_ray import MADE, asked
from pyllama2c.integrations.ray import write_dataset
ray.init(address={cluster.address!r}, log_to_driver=False)
write_dataset(asked(), {os.fspath(tmp_path / "f")!r}, MADE, actors=2)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    half_way(tmp_path / "f", process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = write_dataset(asked(), tmp_path / "f", MADE, actors=2)
    assert 0 < left < COUNT and told(tmp_path / "f") == rows
    files = sorted((tmp_path / "f").iterdir())
    assert write_dataset(asked(), tmp_path / "f", MADE, actors=2) == 0
    assert sorted((tmp_path / "f").iterdir()) == files


@pytest.mark.usefixtures("cluster")
def test_actors_that_find_no_room(tmp_path: Path) -> None:
    from pyllama2c.integrations.ray import write_dataset

    for actors, cpus in ((4, 1), (2, 2), (1, 3)):
        with pytest.raises(ValueError, match=rf"no room for {actors} actors of {cpus} CPUs.*2, 2"):
            write_dataset(asked(3), tmp_path / "f", MADE, actors=actors, cpus_per_actor=cpus)
    with pytest.raises(ValueError, match="cpus_per_actor is 0"):
        write_dataset(asked(3), tmp_path / "f", MADE, cpus_per_actor=0)
    with pytest.raises(TypeError, match="seed"):
        write_dataset(asked(3), tmp_path / "f", {})
    assert not (tmp_path / "f").exists()


@pytest.mark.usefixtures("cluster")
def test_folders_of_something_else(tmp_path: Path) -> None:
    from pyllama2c.integrations.ray import write_dataset
    from pyllama2c.integrations.story_folder import locked

    (tmp_path / "note.txt").write_text("precious")
    with pytest.raises(StoryFileError, match=r"note\.txt is not a file of write_dataset's"):
        write_dataset(asked(3), tmp_path, MADE)
    assert (tmp_path / "note.txt").read_text() == "precious"
    (tmp_path / "note.txt").unlink()
    from pyarrow import parquet

    for metadata in (None, {b"pyllama2c": b"{}"}):
        table = pa.table({"other": [1]}).replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / "mine.parquet")
        with pytest.raises(StoryFileError, match=r"mine\.parquet is not a file of write_dataset's"):
            write_dataset(asked(3), tmp_path, MADE)
    (tmp_path / "mine.parquet").unlink()
    with (
        locked(tmp_path),
        pytest.raises(StoryFileError, match="is being written by another run"),
    ):
        write_dataset(asked(3), tmp_path, MADE)


@pytest.mark.usefixtures("cluster")
def test_actors_that_wait_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other jobs hold the CPUs: it gives up, instead of waiting for ever."""
    from pyllama2c.integrations import ray as module

    @ray.remote(num_cpus=2)  # type: ignore[untyped-decorator, unused-ignore]
    class Other:
        def ready(self) -> bool:
            return True

    others = [Other.remote() for _ in range(2)]
    assert all(ray.get([other.ready.remote() for other in others]))
    monkeypatch.setattr(module, "_SECONDS_TO_OPEN", 3)
    try:
        with pytest.raises(Llama2cError, match="no CPUs for 1 actors within 3 seconds"):
            module.write_dataset(asked(3), tmp_path / "f", MADE, actors=1)
    finally:
        for other in others:
            ray.kill(other)


@pytest.mark.usefixtures("cluster")
def test_datasets_that_are_wrong(tmp_path: Path) -> None:
    """An exception in words; Ray's own would be a page of advice about retries."""
    from pyllama2c.integrations.ray import write_dataset

    def of(ids: list[Any]) -> Any:
        return ray.data.from_items([{"id": id, "prompt": ""} for id in ids])

    once = {"seed": 1, "max_tokens": 1}
    for dataset, made, kind, message in (
        (of([7, 7]), once, ValueError, "1 ids are there more than once, such as 7"),
        (of([*range(300), 5]), once, ValueError, "1 ids are there more than once, such as 5"),
        (of([1, "a"]), once, ray.exceptions.RayTaskError, "incompatible types: int64 vs string"),
        (of([1.5]), once, ValueError, "column 'id' are double: integers or text are fine"),
        (of([1]), {**once, "prompt": "begin"}, ValueError, "no column 'begin'; there are"),
        (of([1]), {**once, "max_tokens": "x"}, TypeError, "max_tokens is 'x'"),
        (
            of([1]),
            {**once, "model": "/nowhere/x.bin"},
            Llama2cError,
            "on the machine .*/nowhere/x.bin",
        ),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(kind, match=message):
            write_dataset(dataset, folder, made, actors=1)
    assert write_dataset(ray.data.from_items([]), tmp_path / "e", once, actors=1) == 0
    assert write_dataset(of([1, 2]), tmp_path / "f", None) == 2
    for width in (pa.int8(), pa.uint64()):  # of ids that are there already
        table = pa.table({"id": pa.array([1, 2], width), "prompt": ["", ""]})
        assert write_dataset(ray.data.from_arrow(table), tmp_path / "f", None) == 0
    with pytest.raises(ValueError, match="several types"):
        write_dataset(of(["a"]), tmp_path / "f", None)


def test_a_write_that_is_killed(tmp_path: Path) -> None:
    """A file without a name is no file, and goes when the folder is opened again."""
    from pyllama2c.integrations.story_folder import ids_in, locked

    code = f"""
import os, signal
from pathlib import Path
import pyarrow as pa
from pyllama2c.integrations.story_folder import locked, write_rows
folder = Path({os.fspath(tmp_path)!r})
ids = pa.array([1])
with locked(folder) as token:
    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    write_rows(pa.table({{"id": ids}}), ids, folder, "made", token)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".*.tmp"))
    with locked(tmp_path):
        assert ids_in(tmp_path, "id", "made") is None
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# ---- Stories alone: a batch in, a batch out ----


def test_a_row_does_not_depend_on_its_batch(rows: list[dict[str, Any]]) -> None:
    from pyllama2c.integrations.ray import Stories

    stories = Stories(**MADE, threads=1)
    table = pa.Table.from_pylist([{"id": r["id"], "prompt": r["prompt"]} for r in rows[:20]])
    picked = table.take([17, 3, 11])
    assert stories(picked).to_pylist() == [rows[17], rows[3], rows[11]]
    assert stories(picked.to_pandas()).to_pylist() == [rows[17], rows[3], rows[11]]
    assert stories(table.slice(0, 0)).schema == stories(table).schema


def test_a_wrong_prompt_is_a_row_with_an_error() -> None:
    from pyllama2c.integrations.ray import Stories

    stories = Stories(seed=1, max_tokens=5, id="key", prompt="begin", threads=1)
    keys = ["a", "b", "a"]
    table = pa.table({"key": keys, "begin": ["Once", "x" * 10_000, "Once"]})
    good, bad, same = stories(table).to_pylist()
    assert good == same and good["error"] is None and good["text"]
    assert (bad["text"], bad["tokens"], bad["finish_reason"]) == ("", 0, "error")
    assert "the model's context is 512" in bad["error"]
    for nothing in (pa.array([None], pa.string()), pa.nulls(1), pa.array([float("nan")])):
        (missing,) = stories(pa.table({"key": ["a"], "begin": nothing})).to_pylist()
        assert missing["finish_reason"] == "error"
        assert f"prompt is {nothing[0].as_py()}" in missing["error"]
    (huge,) = stories(pa.table({"key": ["a"], "begin": ["tale " * 200_000]})).to_pylist()
    assert "the model's context is 512" in huge["error"]
    ids = pa.array([[1, 403]], pa.list_(pa.int32()))
    (of_ids,) = stories(pa.table({"key": ["a"], "begin": ids})).to_pylist()
    assert of_ids["error"] is None and of_ids["tokens"] == 5


def test_columns_that_are_wrong() -> None:
    from pyllama2c.integrations.ray import Stories

    stories = Stories(seed=1, max_tokens=5, threads=1)
    for columns, message in (
        ({"id": [1]}, r"there is no column 'prompt'; there are \['id'\]"),
        ({"id": [1], "prompt": ["a"], "text": ["b"]}, r"has columns \['text'\] already"),
        ({"id": [1.0], "prompt": ["a"]}, "ids in the column 'id' are double: integers or text"),
        ({"id": [True], "prompt": ["a"]}, "ids in the column 'id' are bool"),
        ({"id": pa.array([1, None]), "prompt": ["a", "b"]}, "an id in the column 'id' is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            stories(pa.table(columns))
