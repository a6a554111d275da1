"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `target` at the end; after an exception what was there
    stays. Others may write the same target meanwhile: the last one to end wins, whole.

    It gets the permissions that `open` would give. A symbolic link stays one, and what it leads to
    is written. A pipe, a device or an open stream (/dev/stdout) gets the bytes at the end, all or
    none, behind what it has. OSError names the target.
    """
    try:
        there = os.stat(target)
    except FileNotFoundError:
        there = None
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; name the file to write", str(target))
    if there is not None and (not stat.S_ISREG(there.st_mode) or _is_a_stream(target)):
        with _through(target) as file:
            yield file
    else:
        with _replacing(target, there) as file:
            yield file


def _is_a_stream(target: Path) -> bool:
    """Whether this is /dev/stdout, /dev/fd/3 or the like, and not the file that it leads to."""
    path = target
    for _ in range(40):  # links, as many as Linux follows
        if re.fullmatch(r"/proc/\d+(/task/\d+)?/fd", os.path.realpath(path.parent)):
            return True
        if not path.is_symlink():
            return False
        path = path.parent / os.readlink(path)
    return False


@contextmanager
def _through(target: Path) -> Iterator[BinaryIO]:
    with tempfile.NamedTemporaryFile() as file:
        yield file  # type: ignore[misc]  # a wrapper that does what a BinaryIO does
        file.seek(0)
        with _errors_of(target, target), target.open("ab") as pipe:
            shutil.copyfileobj(file, pipe)


@contextmanager
def _replacing(target: Path, there: os.stat_result | None) -> Iterator[BinaryIO]:
    if there is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    real = Path(os.path.realpath(target))
    partial = real.with_name(f"{real.name[:40]}.{secrets.token_hex(8)}.part")
    with _errors_of(target, partial):
        try:
            with open(partial, "xb") as file:
                if there is not None:
                    _keep_owner(file, there)
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave the name without the bytes
            os.replace(partial, real)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()


def _keep_owner(file: BinaryIO, there: os.stat_result) -> None:
    with suppress(PermissionError):  # only root gives files away
        os.fchown(file.fileno(), there.st_uid, there.st_gid)
    os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))


@contextmanager
def _errors_of(target: Path, partial: Path) -> Iterator[None]:
    """Errors that name the partial file, or no file as those of a full disk, name the target."""
    try:
        yield
    except OSError as error:
        nameless = error.filename is None and error.errno in _NO_ROOM
        if not nameless and error.filename != str(partial):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None
