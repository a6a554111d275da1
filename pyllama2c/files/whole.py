"""Files that appear under their name only once they are complete."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `target` at the end; after an exception, `target` is
    unchanged. If several processes write the same target, the last to finish wins.

    The permissions are those that `open` would give. A symbolic link is kept and followed. A pipe,
    a device or an open stream (/dev/stdout) gets all bytes at the end, appended, or none. OSError
    names the target.
    """
    try:
        existing = os.stat(target)
    except FileNotFoundError:
        existing = None
    if existing is not None and stat.S_ISDIR(existing.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; name the file to write", str(target))
    if existing is not None and (not stat.S_ISREG(existing.st_mode) or _is_a_stream(target)):
        with _through(target) as file:
            yield file
    else:
        with _replacing(target, existing) as file:
            yield file


def _is_a_stream(target: Path) -> bool:
    """Whether this is /dev/stdout, /dev/fd/3 or the like, rather than the file it leads to."""
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
def _replacing(target: Path, existing: os.stat_result | None) -> Iterator[BinaryIO]:
    if existing is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    real = Path(os.path.realpath(target))
    partial = real.with_name(f"{real.name[:40]}.{secrets.token_hex(8)}.part")
    with _errors_of(target, partial):
        try:
            with open(partial, "xb") as file:
                if existing is not None:
                    _keep_owner(file, existing)
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave the name without the bytes
            os.replace(partial, real)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()


def _keep_owner(file: BinaryIO, existing: os.stat_result) -> None:
    if sys.platform == "win32":
        return
    with suppress(PermissionError):  # only root may change a file's owner
        os.fchown(file.fileno(), existing.st_uid, existing.st_gid)
    os.fchmod(file.fileno(), stat.S_IMODE(existing.st_mode))


@contextmanager
def _errors_of(target: Path, partial: Path) -> Iterator[None]:
    """Errors about the partial file, or about no file (such as a full disk), name the target."""
    try:
        yield
    except OSError as error:
        nameless = error.filename is None and error.errno in _NO_ROOM
        if not nameless and error.filename != str(partial):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None
