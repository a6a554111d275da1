"""The fake libcuda.so.1 as tests configure it; fake_cuda builds it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULTS = (
    "cards=80,memory=4096,held=0,driver=13000,ptx=90,sms=2,seed=1,eager=0,init=0,retain=0,load=0,"
    "mode=0,mig=0,stays=0,launch_us=10,alloc_fails=0,pin_fails=0,launch_refused=0,launch_fails=0,"
    "lost=0,lost_error=46"
)


class Fake:
    """A loaded libcuda.so.1 that runs the kernels on this processor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))

    def configure(self, settings: str) -> None:
        self._library.fake_cuda_configure(settings.encode())

    @contextmanager
    def current(self) -> Iterator[int | None]:
        """Has the first card's context current in this thread, as another library would; gives its
        address."""
        call, context = self._library, ctypes.c_void_p()
        assert call.cuInit(0) == 0
        assert call.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
        assert call.cuCtxPushCurrent_v2(context) == 0
        try:
            yield context.value
        finally:
            call.cuCtxPopCurrent_v2(None)
            call.cuDevicePrimaryCtxRelease_v2(0)

    def context(self) -> int | None:
        """The address of the one that is current in this thread."""
        context = ctypes.c_void_p()
        assert self._library.cuCtxGetCurrent(ctypes.byref(context)) == 0
        return context.value

    def count(self, name: str) -> int:
        return int(self._library.fake_cuda_count(name.encode()))
