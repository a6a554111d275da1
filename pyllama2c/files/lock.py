"""Files that one process at a time may write."""

from __future__ import annotations

import errno
import os
import sys

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 62  # Windows keeps others from the locked bytes: none that a file has

    def _take(fd: int) -> None:
        at = os.lseek(fd, 0, os.SEEK_CUR)
        os.lseek(fd, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
        finally:
            os.lseek(fd, at, os.SEEK_SET)

else:
    import fcntl

    def _take(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock(fd: int) -> None:
    """Until the descriptor is closed; BlockingIOError where another holds it. On a file system
    without locks, nothing."""
    try:
        _take(fd)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
