"""The fake driver is as strict as its header says: otherwise what passes on it proves little."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path

import fake_cuda
import pytest

pytestmark = pytest.mark.skipif(not fake_cuda.possible(), reason=fake_cuda.NEEDS)

PTX = """.version 7.4
.target sm_75
.visible .entry add( .param .align 8 .b8 add_param_0[16] ) .maxntid 256 { ret; }
.visible .entry reach_past( .param .align 8 .b8 reach_past_param_0[16] ) { ret; }
.visible .entry wait_for_nobody( .param .u64 out, .param .u32 n, .param .u32 unused ) { ret; }
.visible .entry fill_shared( .param .align 8 .b8 fill_shared_param_0[16] ) { ret; }
.visible .entry unknown( .param .u64 x ) { ret; }
"""
INVALID, NO_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED, NOT_READY = 1, 2, 700, 719, 600
KIB = 1024


class Trial(ctypes.Structure):
    _fields_ = [("out", c_uint64), ("n", c_int)]


class Driver:
    """The library with a context, a stream that blocks nobody, and a module."""

    def __init__(self, library: ctypes.CDLL, settings: str, ptx: str = PTX) -> None:
        self.library = library
        defaults = "cards=80,memory=64,eager=0,held=0,mode=0,init=0,retain=0,load=0,seed=1"
        defaults += ",launch_us=10"
        library.fake_cuda_configure(f"{defaults},{settings}".encode())
        assert self("cuInit", 0) == 0
        self.context, self.stream, self.module = c_void_p(), c_void_p(), c_void_p()
        assert self("cuDevicePrimaryCtxRetain", byref(self.context), 0) == 0
        assert self("cuCtxPushCurrent_v2", self.context) == 0
        assert self("cuStreamCreate", byref(self.stream), 1) == 0
        assert self("cuModuleLoadData", byref(self.module), c_char_p(ptx.encode())) == 0

    def __call__(self, name: str, *arguments: object) -> int:
        return int(getattr(self.library, name)(*arguments))

    def count(self, name: str) -> int:
        return int(self.library.fake_cuda_count(name.encode()))

    def configure(self, settings: str) -> None:
        self.library.fake_cuda_configure(settings.encode())

    def alloc(self, n_bytes: int) -> c_uint64:
        at = c_uint64()
        assert self("cuMemAlloc_v2", byref(at), c_size_t(n_bytes)) == 0
        return at

    def pin(self, n_bytes: int) -> ctypes.Array[c_uint]:
        at = c_void_p()
        assert self("cuMemHostAlloc", byref(at), c_size_t(n_bytes), 2) == 0
        assert at.value
        return (c_uint * (n_bytes // 4)).from_address(at.value)

    def function(self, name: str) -> c_void_p:
        found = c_void_p()
        assert self("cuModuleGetFunction", byref(found), self.module, name.encode()) == 0
        return found

    def launch(
        self, name: str, out: c_uint64, n: int, *, threads: int = 64, shared: int = 0
    ) -> int:
        trial = Trial(out.value, n)
        fields = (c_void_p * 3)(*(ctypes.addressof(trial) + at for at in (0, 8, 12)))
        shape = (-(-n // threads), 1, 1, threads, 1, 1, shared)
        return self("cuLaunchKernel", self.function(name), *shape, self.stream, fields, None)

    def close(self) -> None:
        self("cuCtxPopCurrent_v2", None)
        assert self("cuDevicePrimaryCtxRelease_v2", 0) == 0


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(fake_cuda.build("trial")))


@pytest.fixture
def driver(library: ctypes.CDLL, request: pytest.FixtureRequest) -> Iterator[Driver]:
    made = Driver(library, getattr(request, "param", "eager=0"))
    yield made
    made.close()


def test_work_is_done_only_when_waited_for(driver: Driver) -> None:
    out, given, fetched = driver.alloc(400), driver.pin(400), driver.pin(400)
    given[:] = [0] * 100
    copied = (c_size_t(400), driver.stream)
    assert driver("cuMemcpyHtoDAsync_v2", out, given, *copied) == 0
    assert driver.launch("add", out, 100) == 0
    assert driver("cuMemcpyDtoHAsync_v2", fetched, out, *copied) == 0
    given[7] = 1000  # pinned memory is read when the copy is done
    assert set(fetched) == {0xFFFFFFFF}
    assert driver("cuStreamQuery", driver.stream) == NOT_READY
    assert driver("cuStreamQuery", driver.stream) == 0
    assert list(fetched) == [i + 1 + 1000 * (i == 7) for i in range(100)]


def test_a_copy_by_the_default_stream_does_not_wait_for_ours(driver: Driver) -> None:
    out, host = driver.alloc(400), (c_uint * 100)()
    assert driver("cuMemsetD32Async", out, 5, c_size_t(100), driver.stream) == 0
    assert driver("cuMemcpyDtoH_v2", host, out, c_size_t(400)) == 0
    assert set(host) == {0xFFFFFFFF}
    assert driver("cuStreamSynchronize", driver.stream) == 0
    assert driver("cuMemcpyDtoH_v2", host, out, c_size_t(400)) == 0
    assert set(host) == {5}


@pytest.mark.parametrize("driver", ["eager=1"], indirect=True)
def test_eager_work_is_done_at_once(driver: Driver) -> None:
    out, fetched = driver.alloc(400), driver.pin(400)
    assert driver("cuMemsetD32Async", out, 5, c_size_t(100), driver.stream) == 0
    assert driver.launch("add", out, 100) == 0
    assert driver("cuMemcpyDtoHAsync_v2", fetched, out, c_size_t(400), driver.stream) == 0
    assert list(fetched) == [5 + i + 1 for i in range(100)]


def test_an_event_waits_for_the_work_before_it(driver: Driver) -> None:
    out, other, event = driver.alloc(4), c_void_p(), c_void_p()
    fetched = driver.pin(4)
    assert driver("cuStreamCreate", byref(other), 1) == 0
    assert driver("cuEventCreate", byref(event), 0) == 0
    assert driver("cuMemsetD32Async", out, 5, c_size_t(1), driver.stream) == 0
    assert driver("cuEventRecord", event, driver.stream) == 0
    assert driver("cuMemsetD32Async", out, 6, c_size_t(1), driver.stream) == 0
    assert driver("cuStreamWaitEvent", other, event, 0) == 0
    assert driver("cuMemcpyDtoHAsync_v2", fetched, out, c_size_t(4), other) == 0
    assert driver("cuStreamSynchronize", other) == 0
    assert fetched[0] == 5


@pytest.mark.parametrize("driver", ["launch_us=2500"], indirect=True)
def test_launches_alone_take_time(driver: Driver) -> None:
    """As much as was asked for, so that whatever follows from it does every time."""
    out, events = driver.alloc(400), [c_void_p(), c_void_p()]
    milliseconds = c_float()
    for event in events:
        assert driver("cuEventCreate", byref(event), 0) == 0
    assert driver("cuEventRecord", events[0], driver.stream) == 0
    assert driver.launch("add", out, 100) == 0
    assert driver.launch("add", out, 100) == 0
    assert driver("cuEventRecord", events[1], driver.stream) == 0
    assert driver("cuEventElapsedTime", byref(milliseconds), *events) == NOT_READY
    assert driver("cuStreamSynchronize", driver.stream) == 0
    assert driver("cuEventElapsedTime", byref(milliseconds), *events) == 0
    assert milliseconds.value == 5


@pytest.mark.parametrize(
    ("kernel", "error"), [("reach_past", ILLEGAL_ADDRESS), ("wait_for_nobody", LAUNCH_FAILED)]
)
def test_an_error_of_the_device_sticks_until_its_context_is_released(
    library: ctypes.CDLL, kernel: str, error: int
) -> None:
    driver = Driver(library, "memory=64")
    out = driver.alloc(400)
    assert driver.launch(kernel, out, 100) == 0
    assert driver("cuStreamSynchronize", driver.stream) == error
    assert driver("cuMemFree_v2", out) == error
    assert driver("cuCtxSynchronize") == error
    driver.close()
    again = Driver(library, "memory=64")
    assert again.launch("add", again.alloc(400), 100) == 0
    assert again("cuStreamSynchronize", again.stream) == 0
    again.close()


@pytest.mark.parametrize(
    ("capability", "kib"),
    [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)],
)
def test_shared_memory_is_what_the_card_has_and_asked_for(
    library: ctypes.CDLL, capability: int, kib: int
) -> None:
    driver = Driver(library, f"cards={capability}")
    n = kib * KIB // 4
    out, function, host = driver.alloc(4 * n), driver.function("fill_shared"), (c_uint * n)()
    assert driver.launch("fill_shared", out, n, threads=1024, shared=kib * KIB) == INVALID
    assert driver("cuFuncSetAttribute", function, 8, kib * KIB + 1) == INVALID
    assert driver("cuFuncSetAttribute", function, 8, kib * KIB) == 0
    driver.configure("sms=1")
    trial = Trial(out.value, n)
    fields = (c_void_p * 3)(*(ctypes.addressof(trial) + at for at in (0, 8, 12)))
    one_block = (1, 1, 1, 1024, 1, 1, kib * KIB)
    assert driver("cuLaunchCooperativeKernel", function, *one_block, driver.stream, fields) == 0
    two_blocks = (2, *one_block[1:])
    assert driver("cuLaunchCooperativeKernel", function, *two_blocks, driver.stream, fields) == 720
    assert driver("cuStreamSynchronize", driver.stream) == 0
    assert driver("cuMemcpyDtoH_v2", host, out, c_size_t(4 * n)) == 0
    assert list(host) == list(reversed(range(n)))
    driver.close()


def test_memory_runs_out_and_faults_come_when_they_are_due(driver: Driver) -> None:
    at, free, total = c_uint64(), c_size_t(), c_size_t()
    assert driver("cuMemAlloc_v2", byref(at), c_size_t(65 << 20)) == NO_MEMORY
    kept = driver.alloc(40 << 20)
    assert driver("cuMemGetInfo_v2", byref(free), byref(total)) == 0
    assert (free.value, total.value) == (24 << 20, 64 << 20)
    assert driver("cuMemAlloc_v2", byref(at), c_size_t(25 << 20)) == NO_MEMORY
    assert driver("cuMemFree_v2", kept) == 0
    driver.configure("alloc_fails=2,pin_fails=1,launch_refused=1")
    out = driver.alloc(4)
    assert driver("cuMemAlloc_v2", byref(at), c_size_t(4)) == NO_MEMORY
    assert driver("cuMemHostAlloc", byref(c_void_p()), c_size_t(4), 0) == NO_MEMORY
    assert driver.launch("add", out, 1) == 701
    assert driver.launch("add", out, 1) == 0
    driver.configure("lost=2")
    assert driver("cuStreamSynchronize", driver.stream) == 0
    assert driver("cuStreamSynchronize", driver.stream) == 46
    assert driver("cuCtxSynchronize") == 46


def test_everything_is_counted(driver: Driver) -> None:
    assert [driver.count(name) for name in ("contexts", "streams", "modules")] == [1, 1, 1]
    out = driver.alloc(100)
    assert (driver.count("allocations"), driver.count("bytes")) == (1, 256)
    assert driver("cuMemFree_v2", out) == 0
    assert (driver.count("allocations"), driver.count("bytes")) == (0, 0)


def test_a_module_is_ptx_for_this_card_and_this_driver(driver: Driver) -> None:
    def load(ptx: str) -> int:
        return driver("cuModuleLoadData", byref(c_void_p()), c_char_p(ptx.encode()))

    assert load("no PTX") == 200
    assert load(PTX.replace("sm_75", "sm_86")) == 209
    assert load(PTX.replace("7.4", "9.0")) == 0
    driver.configure("ptx=74")
    assert load(PTX.replace("7.4", "9.0")) == 222
    assert load(PTX.replace("add_param_0[16]", "add_param_0[24]")) == 200
    found = c_void_p()
    for name in (b"unknown", b"missing"):
        assert driver("cuModuleGetFunction", byref(found), driver.module, name) == 500
    assert driver.launch("add", driver.alloc(4), 1, threads=288) == INVALID  # .maxntid 256


def test_linked_ptx_loads_on_cards_of_its_kind(driver: Driver) -> None:
    link, image, size = c_void_p(), c_void_p(), c_size_t()
    text = c_char_p(PTX.encode())
    assert driver("cuLinkCreate_v2", 0, None, None, byref(link)) == 0
    assert (
        driver("cuLinkAddData_v2", link, 1, text, c_size_t(len(PTX) + 1), b"x", 0, None, None) == 0
    )
    assert driver("cuLinkComplete", link, byref(image), byref(size)) == 0
    cubin = ctypes.string_at(image, size.value)
    assert driver("cuLinkDestroy", link) == 0
    assert driver("cuModuleLoadData", byref(c_void_p()), c_char_p(cubin)) == 0
    other = cubin.replace(b"sm_80", b"sm_90")
    assert driver("cuModuleLoadData", byref(c_void_p()), c_char_p(other)) == 209


def test_a_forked_child_is_refused(driver: Driver) -> None:
    child = os.fork()
    if child == 0:
        os._exit(driver("cuCtxSynchronize"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_the_host_cannot_touch_memory_of_the_device(library: ctypes.CDLL) -> None:
    code = (
        "import ctypes, sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_fake_cuda import Driver\n"
        "driver = Driver(ctypes.CDLL(sys.argv[1]), 'memory=64')\n"
        "out = driver.alloc(4)\n"
        "print('touches', flush=True)\n"
        "ctypes.c_uint.from_address(out.value).value = 1\n"
    )
    folders = (Path(__file__).parent, Path(fake_cuda.__file__).parent)
    command = [sys.executable, "-c", code, str(fake_cuda.build("trial")), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("touches\n", -signal.SIGSEGV)


@pytest.mark.skipif(fake_cuda.toolkit() is None, reason="needs the CUDA toolkit's cuda.h")
def test_its_functions_are_those_of_the_real_header() -> None:
    assert fake_cuda.symbols(real_header=True) == fake_cuda.symbols(real_header=False)
