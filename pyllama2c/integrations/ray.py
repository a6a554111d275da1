"""Stories on many machines, with Ray Data (`pip install 'pyllama2c[ray]'`).

`Stories` is a class for `Dataset.map_batches`; `write_dataset` tells a whole dataset into a folder
that every machine sees, and continues there when it is run again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import ray
    from ray.data import ActorPoolStrategy, Dataset
    from ray.data.block import BlockAccessor
except ImportError as error:
    raise ImportError(f"{error}: pip install 'pyllama2c[ray]'") from None

from pyllama2c import validate
from pyllama2c.errors import StoryFileError
from pyllama2c.files.lock import lock
from pyllama2c.model import Llama

ROWS = 250
"""of a file at most; what a kill loses of each actor"""

_ADDED = pa.schema(
    {
        "text": pa.string(),
        "tokens": pa.int32(),
        "finish_reason": pa.string(),
        "seed": pa.uint64(),
        "error": pa.string(),
    }
)
_CHANGE_NOTHING = ("threads", "max_batch")
"""arguments of Stories that no story depends on"""
_MADE = b"pyllama2c"
_SECONDS_TO_OPEN = 600


class Stories:
    """Continues the prompts of a batch of rows. Ray opens it once in each actor:

        dataset.map_batches(
            Stories, fn_constructor_kwargs={"seed": 1, "max_tokens": 200},
            batch_size=250, num_cpus=2, compute=ray.data.ActorPoolStrategy(size=8))

    model: a path, which every machine has to see, or the name of a known model.
    seed: the story of a row has this + its id, modulo 2**64, so that it does not depend on how rows
    are spread; an id that is text counts as 64 bits of its BLAKE2b hash.
    id, prompt: names of the columns. A prompt is text, bytes or a list of token ids.
    threads: default: the actor's num_cpus.
    options: of Llama, such as {"dtype": "int8"}.
    max_batch and all others: as for Llama.generate_batch.

    The rows get `text`, `tokens` (how many), `finish_reason`, `seed`, and `error`: null, or what is
    wrong with this row's prompt. ValueError for ids that are neither integers nor text.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        *,
        seed: int,
        id: str = "id",
        prompt: str = "prompt",
        threads: int | None = None,
        options: dict[str, Any] | None = None,
        max_batch: int = 64,
        **parameters: Any,
    ):
        self._seed = validate.integer("seed", seed, 0, 2**64 - 1)
        self._id, self._prompt = id, prompt
        self._max_batch, self._parameters = max_batch, parameters
        if threads is None and ray.is_initialized():
            cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
            threads = max(1, int(cpus))
        self._llama = Llama(model, tokenizer, threads=threads, **(options or {}))

    def __call__(self, batch: Any) -> pa.Table:
        """Of rows in any of Ray's formats."""
        table = batch if isinstance(batch, pa.Table) else BlockAccessor.batch_to_arrow_block(batch)
        for name in (self._id, self._prompt):
            if name not in table.column_names:
                raise ValueError(f"there is no column {name!r}; there are {table.column_names}")
        if taken := set(table.column_names) & set(_ADDED.names):
            raise ValueError(f"the dataset has columns {sorted(taken)} already: rename them")
        stories = self._llama.generate_batch(
            table[self._prompt].to_pylist(),
            seed=[(self._seed + _number(id)) % 2**64 for id in table[self._id].to_pylist()],
            max_batch=self._max_batch,
            in_order=True,
            **self._parameters,
        )
        rows = [
            {
                "text": story.text,
                "tokens": len(story.tokens),
                "finish_reason": story.finish_reason,
                "seed": story.seed,
                "error": None if story.error is None else str(story.error),
            }
            for story in stories
        ]
        added = pa.Table.from_pylist(rows, _ADDED)
        for name in _ADDED.names:
            table = table.append_column(_ADDED.field(name), added[name])
        return table


def _number(id: Any) -> int:
    if isinstance(id, str):
        return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")
    if type(id) is not int:
        raise ValueError(f"an id is {validate.shown(id)}; it must be an integer or text")
    return id


def write_dataset(
    dataset: Dataset,
    path: str | os.PathLike[str],
    stories: dict[str, Any] | None = None,
    *,
    id: str = "id",
    actors: int | None = None,
    cpus_per_actor: int = 1,
) -> int:
    """Tells the stories of a dataset's rows into Parquet files in the folder `path`, which every
    machine has to see, and returns how many rows it wrote.

    Rows whose ids the folder has already are left out before anything is told: run again after
    whatever ended it, it adds what is missing. Files have 250 rows at most, and get their names
    when they are whole. Ids, in the column `id`, have to be unique.

    stories: arguments of Stories; None: the rows are written as they are.
    actors: default: as many as fit beside one CPU that reads and writes.
    StoryFileError for a folder with other files or other stories, or one that another run writes
    to. ValueError for actors that the cluster has no room for.
    """
    if stories is not None:
        inspect.signature(Stories).bind(**stories, id=id)
    folder = Path(path).absolute()
    made = json.dumps(
        {k: v for k, v in (stories or {}).items() if k not in _CHANGE_NOTHING},
        sort_keys=True,
        default=str,
    )
    if not ray.is_initialized():
        ray.init()
    n = 0 if stories is None else _room_for(actors, cpus_per_actor)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as token:
        done = _ids(folder, id, made)
        rest = dataset
        if done is not None:
            rest = rest.map_batches(
                _without,
                fn_kwargs={"id": id, "known": ray.put(done)},
                batch_format="pyarrow",
                batch_size=None,
            )
        if stories is not None:
            rest = rest.repartition(target_num_rows_per_block=ROWS).map_batches(
                Stories,
                fn_constructor_kwargs={**stories, "id": id},
                batch_format="pyarrow",
                batch_size=ROWS,
                num_cpus=cpus_per_actor,
                compute=ActorPoolStrategy(size=n),
            )
        counts = rest.map_batches(
            _write,
            fn_kwargs={"folder": folder, "id": id, "made": made, "token": token},
            batch_format="pyarrow",
            batch_size=ROWS,
        )
        counts.context.wait_for_min_actors_s = _SECONDS_TO_OPEN  # others may hold the CPUs
        return sum(int(row["rows"]) for row in counts.iter_rows())


def _room_for(actors: int | None, cpus: int) -> int:
    """How many actors: those that hold every CPU would wait for ever for rows to be read."""
    cpus = validate.integer("cpus_per_actor", cpus, 1, 1 << 16, "1 or more")
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    most = sum(node // cpus for node in nodes)
    if not any(node % cpus for node in nodes):
        most -= 1
    if actors is not None:
        actors = validate.integer("actors", actors, 1, 1 << 20, "1 or more")
    if most < max(actors or 0, 1):
        raise ValueError(
            f"there is no room for {actors or 1} actors of {cpus} CPUs: the cluster's nodes have "
            f"{nodes} CPUs, one of which must be free to read and write, so that {max(most, 0)} fit"
        )
    return most if actors is None else actors


@contextmanager
def _locked(folder: Path) -> Iterator[str]:
    """For one run at a time; yields what the lock says while it is this run's."""
    with (folder / ".lock").open("a+") as file:
        try:
            lock(file.fileno())
        except BlockingIOError:
            raise StoryFileError(f"{folder} is being written by another run") from None
        token = uuid.uuid4().hex
        file.truncate(0)
        file.write(token)
        file.flush()
        for cut in folder.glob(".*.tmp"):
            cut.unlink(missing_ok=True)
        yield token


def _ids(folder: Path, id: str, made: str) -> Any:
    """Ids that are in the folder's files, as an Arrow array; None where there are none."""
    found: list[Any] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            table = pq.read_table(path, columns=[id], partitioning=None)
            was = table.schema.metadata[_MADE].decode()
            ids = table[id]
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise StoryFileError(f"{path} is not a file of write_dataset's: {error}") from None
        if was != made:
            raise StoryFileError(
                f"{path} was made with {was}, and this run is of {made}; name another folder"
            )
        found += ids.chunks
    return pa.concat_arrays(found) if found else None


def _without(rows: pa.Table, id: str, known: Any) -> pa.Table:
    column = rows[id]
    done = ray.get(known).cast(column.type)
    return rows.filter(pc.invert(pc.is_in(column, value_set=done)))


def _write(rows: pa.Table, folder: Path, id: str, made: str, token: str) -> pa.Table:
    """A file, named by its ids: a task that Ray runs twice writes the same file twice."""
    if len(rows):
        name = hashlib.blake2b(repr(rows[id].to_pylist()).encode(), digest_size=16).hexdigest()
        new = folder / f".{name}-{uuid.uuid4().hex}.tmp"
        try:
            with new.open("xb") as file:
                pq.write_table(rows.replace_schema_metadata({_MADE: made.encode()}), file)
                file.flush()
                os.fsync(file.fileno())
            if (folder / ".lock").read_text() != token:  # the driver was killed, and run again
                raise StoryFileError(f"{folder} is being written by another run")
            new.replace(folder / f"{name}.parquet")
        finally:
            new.unlink(missing_ok=True)
    return pa.table({"rows": pa.array([len(rows)], pa.int64())})
