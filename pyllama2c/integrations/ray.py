"""Stories on many machines, with Ray Data (`pip install 'pyllama2c[ray]'`).

`Stories` is a class for `Dataset.map_batches`; `write_dataset` tells a whole dataset into a folder
that every machine sees, and continues there when it is run again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import ray
    from ray import cloudpickle
    from ray.data import ActorPoolStrategy, Dataset
    from ray.data.block import BlockAccessor
    from ray.exceptions import GetTimeoutError
except ImportError as error:
    raise ImportError(f"{error}: pip install 'pyllama2c[ray]'") from None

from pyllama2c import validate
from pyllama2c.errors import Llama2cError, in_words
from pyllama2c.integrations.story_folder import (
    ids_in,
    ids_of,
    locked,
    no_column,
    one_array,
    write_rows,
)
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
        ids = ids_of(table, self._id).to_pylist()
        if self._prompt not in table.column_names:
            raise no_column(self._prompt, table)
        if taken := set(table.column_names) & set(_ADDED.names):
            raise ValueError(f"the dataset has columns {sorted(taken)} already: rename them")
        stories = self._llama.generate_batch(
            table[self._prompt].to_pylist(),
            seed=[(self._seed + _number(id)) % 2**64 for id in ids],
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


class _Writer(Stories):
    """Writes what it tells at once: a task for that would wait for a CPU, and lose more to a kill.

    A model that does not open is an answer too: Ray would start the actor again for ever.
    """

    def __init__(self, file: dict[str, Any], stories: dict[str, Any]):
        self._file, self._error = file, None
        try:
            super().__init__(**stories)
        except Exception as error:
            self._error = Llama2cError(f"on the machine {socket.gethostname()}: {in_words(error)}")

    def __call__(self, batch: Any) -> pa.Table:
        return _written(batch, self._tell, **self._file)

    def _tell(self, batch: Any) -> pa.Table:
        if self._error:
            raise self._error
        return super().__call__(batch)


def _written(
    rows: pa.Table, tell: Callable[[pa.Table], pa.Table] | None, id: str, kind: Any, **file: Any
) -> pa.Table:
    """The ids in a new file, or an exception: one that is raised, Ray hides in its own."""
    answer: pa.Array | Exception
    try:
        ids = ids_of(rows, id)
        answer = one_array([*ids.chunks, pa.array([], kind or ids.type)])
        if len(answer):
            write_rows(tell(rows) if tell else rows, answer, **file)
    except Exception as error:
        answer = error
    return pa.table({"answer": [cloudpickle.dumps(answer)]})


def _number(id: int | str) -> int:
    if isinstance(id, int):
        return id
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


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
    actors: default: as many as fit beside one CPU that reads.
    StoryFileError for a folder with other files or other stories, or one that another run writes
    to. ValueError for ids that are wrong, and for actors that the cluster has no room for;
    Llama2cError where other jobs hold the CPUs for 10 minutes, or a machine cannot open the model.
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
    with locked(folder) as token:
        done = ids_in(folder, id, made)
        file = {"folder": folder, "id": id, "made": made, "token": token}
        file["kind"] = None if done is None else done.type
        rest = dataset
        if done is not None:
            rest = rest.map_batches(
                _without,
                fn_kwargs={"id": id, "known": ray.put(done)},
                batch_format="pyarrow",
                batch_size=None,
            )
        rest = rest.repartition(target_num_rows_per_block=ROWS, strict=True)
        batches: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": ROWS}
        if stories is None:
            answers = rest.map_batches(_written, fn_kwargs={"tell": None, **file}, **batches)
        else:
            answers = rest.map_batches(
                _Writer,
                fn_constructor_kwargs={"file": file, "stories": {**stories, "id": id}},
                num_cpus=cpus_per_actor,
                compute=ActorPoolStrategy(size=n),
                **batches,
            )
        answers.context.wait_for_min_actors_s = _SECONDS_TO_OPEN  # others may hold the CPUs
        try:
            return _count(answers)
        except GetTimeoutError:
            raise Llama2cError(
                f"no CPUs for {n} actors within {_SECONDS_TO_OPEN} seconds: other jobs hold them "
                "(`ray status` shows it)"
            ) from None


def _count(answers: Dataset) -> int:
    """How many ids were written, each of them once."""
    written: list[pa.Array] = []
    look = 2 * ROWS
    for row in answers.iter_rows():
        answer = cloudpickle.loads(row["answer"])
        if isinstance(answer, Exception):
            raise answer
        written.append(answer)
        if sum(map(len, written)) >= look:
            written = [one_array(written)]
            look = 2 * len(written[0])
    return len(one_array(written)) if written else 0


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
            f"{nodes} CPUs, one of which must be free to read, so that {max(most, 0)} fit"
        )
    return most if actors is None else actors


def _without(rows: pa.Table, id: str, known: Any) -> pa.Table:
    try:
        ids = ids_of(rows, id)
    except ValueError:
        return rows  # _written says what is wrong
    done = ray.get(known)
    return rows.filter(pc.invert(pc.is_in(ids, done))) if ids.type == done.type else rows
