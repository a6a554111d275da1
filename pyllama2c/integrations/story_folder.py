"""A folder of Parquet files with stories, which write_dataset adds to until it is whole."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pyllama2c.errors import StoryFileError
from pyllama2c.files.lock import lock

_MADE = b"pyllama2c"


def no_column(name: str, rows: pa.Table) -> ValueError:
    return ValueError(f"there is no column {name!r}; there are {rows.column_names}")


def ids_of(rows: pa.Table, column: str) -> pa.ChunkedArray:
    """As int64 (uint64's upper half wraps around) or large_string, whatever width they have."""
    if column not in rows.column_names:
        raise no_column(column, rows)
    ids = rows[column]
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    if pa.types.is_integer(ids.type):
        ids = ids.cast(pa.int64(), safe=False)
    elif pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        ids = ids.cast(pa.large_string())
    else:
        raise ValueError(f"ids in the column {column!r} are {ids.type}: integers or text are fine")
    if ids.null_count:
        raise ValueError(f"an id in the column {column!r} is missing (null)")
    return ids


def one_array(ids: Sequence[pa.Array]) -> pa.Array:
    """Of ids that are there once. ValueError for those of two types, or there twice."""
    if len(types := {str(part.type) for part in ids}) > 1:
        raise ValueError(f"ids are of several types ({', '.join(sorted(types))}): choose one")
    joined = pa.concat_arrays(ids)
    if len(pc.unique(joined)) < len(joined):
        counted = pc.value_counts(joined)
        twice = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
        raise ValueError(
            f"{len(twice):,} ids are there more than once, such as {twice[0].as_py()!r}"
        )
    return joined


@contextmanager
def locked(folder: Path) -> Iterator[str]:
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


def ids_in(folder: Path, column: str, made: str) -> pa.Array | None:
    """Ids that are in the folder's files; None where there are none."""
    found: list[pa.Array] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            table = pq.read_table(path, columns=[column], partitioning=None)
            was = table.schema.metadata[_MADE].decode()
            ids = ids_of(table, column)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise StoryFileError(f"{path} is not a file of write_dataset's: {error}") from None
        if was != made:
            raise StoryFileError(
                f"{path} was made with {was}, and this run is of {made}; name another folder"
            )
        found += ids.chunks
    try:
        return one_array(found) if found else None
    except ValueError as error:
        raise StoryFileError(f"{folder}: {error}") from None


def write_rows(rows: pa.Table, ids: pa.ChunkedArray, folder: Path, made: str, token: str) -> None:
    """A file, named by its ids: a task that Ray runs twice writes the same file twice."""
    name = hashlib.blake2b(repr(ids.to_pylist()).encode(), digest_size=16).hexdigest()
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
