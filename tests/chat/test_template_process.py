"""The process that renders templates: kept, ended by its limits, started anew, forked away from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from environment import DATA, run_python
from templates import parts, said, worker

from pyllama2c import ChatTemplateError
from pyllama2c.chat import template as chat_template
from pyllama2c.chat.template_process import PROCESS

pytest.importorskip("jinja2", reason="chat templates need the jinja2 package")


def gone(pid: int) -> bool:
    """Whether a process is neither running nor waiting to be waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many workers were started since."""
    started = []
    real = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        started.append(real(*arguments, **options))
        return started[-1]

    PROCESS.stop()
    monkeypatch.setattr(subprocess, "Popen", popen)
    return lambda: len(started)


def test_one_process_for_many_renderings(count: Callable[[], int]) -> None:
    for i in range(20):
        assert said(str(i)) == [str(i)]
        with pytest.raises(ChatTemplateError, match="TemplateError: no"):  # refusing costs nothing
            parts("{{ raise_exception('no') }}")
    assert count() == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'a' * 10**10 }}", "more than 512 MB"),
        ("{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}", "nested too deeply"),
        ("{{ 'x' * 20000000 }}", "its text has 20000000 characters"),
        ("{{ (7**(10**9)) % 10 }}", "more than 1 seconds of CPU time"),
    ],
)
def test_a_new_one_after_a_limit(
    source: str, message: str, count: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    assert said("a") == ["a"]
    old = worker()
    with pytest.raises(ChatTemplateError, match=message):
        parts(source)
    assert said("b") == ["b"]
    assert count() == 2 and gone(old)


def processor_seconds(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        pytest.skip("needs /proc to look at another process's times")
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_limits_are_each_renderings_own(
    count: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processor time of many renderings does not add up, nor does memory."""
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    busy = "{% for i in range(99999) %}{% endfor %}{{ ('x' * 10**8)|length }}"
    assert parts(busy) == ["100000000"]
    while processor_seconds(worker()) < 2:
        assert parts(busy) == ["100000000"]
    assert count() == 1


def test_timeout(count: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does nothing uses no processor time, and is waited for no longer than that."""
    assert said("a") == ["a"]
    os.kill(worker(), signal.SIGSTOP)
    monkeypatch.setattr(chat_template, "_TIMEOUT", 0.1)
    with pytest.raises(ChatTemplateError, match=r"it takes more than 0.1 seconds"):
        said("b")
    monkeypatch.undo()
    assert said("c") == ["c"]


def test_a_worker_that_was_killed_in_between(count: Callable[[], int]) -> None:
    assert said("a") == ["a"]
    os.kill(worker(), signal.SIGKILL)
    assert said("b") == ["b"] and count() == 2


def test_a_worker_that_dies_of_a_template(count: Callable[[], int], tmp_path: Any) -> None:
    """Twice: by then it is the template."""
    (tmp_path / "jinja2.py").write_text("import os; os._exit(3)")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ChatTemplateError, match=r"x.gguf: .*its process ended with 3"):
            said("a")
    finally:
        sys.path.remove(str(tmp_path))
    assert said("b") == ["b"]


def test_nothing_stays_from_one_rendering_to_the_next() -> None:
    source = (
        "{% set n = namespace(x=0) %}{{ y is defined }}{{ n.x }}{% set n.x = 1 %}{% set y = 1 %}"
    )
    assert parts(source) == parts(source) == ["False0"]
    assert parts(
        "{% macro m() %}{% endmacro %}{% set raise_exception = 1 %}{{ m is defined }}"
    ) == ["True"]
    assert parts("{{ m is defined }}{{ y is defined }}{{ raise_exception is number }}") == [
        "FalseFalseFalse"
    ]
    with pytest.raises(ChatTemplateError, match="SecurityError"):
        parts("{{ namespace.__init__.__globals__.clear() }}")


def test_threads_take_turns(count: Callable[[], int]) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = [f"{i}" * (1 + i * 997 % 5000) for i in range(200)]
        assert list(pool.map(said, texts)) == [[text] for text in texts]
    assert count() == 1


def test_it_has_no_files_of_ours() -> None:
    """Pipes and sockets that are inheritable, too: it could keep them open."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to look at another process's files")
    PROCESS.stop()
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        assert said("a") == ["a"]
        pipe = os.readlink(f"/proc/self/fd/{writer}")
        theirs = os.listdir(f"/proc/{worker()}/fd")
        assert pipe not in [os.readlink(f"/proc/{worker()}/fd/{fd}") for fd in theirs]
        assert len(theirs) == 3
    finally:
        os.close(reader), os.close(writer)


FORK = """
import os, sys
from pyllama2c.chat.template import ChatTemplate
from pyllama2c.chat.template_process import PROCESS
from templates import said, worker
assert said("a") == ["a"]
mine = worker()
PROCESS._lock.acquire()  # as another thread would hold it
child = os.fork()
if child == 0:
    assert PROCESS._process is None
    assert said("b") == ["b"] and worker() != mine
    PROCESS.stop()
    os._exit(7)
PROCESS._lock.release()
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7
assert said("c") == ["c"] and worker() == mine
print(mine)
"""


def in_tests(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(DATA.parent / "helpers")}
    # Python warns of forks beside threads, of which there may be one: that waits with patience.
    flags = ("-W", "error", "-W", "ignore::DeprecationWarning")
    return run_python(*flags, "-c", code, env=environment, **options)


def test_a_forked_child_has_its_own() -> None:
    done = in_tests(FORK)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert gone(int(done.stdout))  # with its parent


@pytest.mark.parametrize(
    "end",
    [
        "",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        # a rendering that is under way in another thread
        "from pyllama2c.chat import template as chat_template; import threading\n"
        "from templates import parts\n"
        "threading.excepthook = lambda _: None\n"  # it may yet hear that its process ended
        "threading.Thread(target=parts, args=('{{ 7**10**9 }}',), daemon=True).start()\n"
        "while not PROCESS._lock.locked(): pass",
    ],
    ids=["end", "exit", "_exit", "killed", "rendering"],
)
def test_it_ends_with_us(end: str) -> None:
    code = (
        "from templates import said, worker\n"
        "from pyllama2c.chat.template_process import PROCESS\n"
        f"said('a')\nprint(worker(), flush=True)\n{end}"
    )
    done = in_tests(code)
    pid = int(done.stdout)
    assert not done.stderr, done.stderr
    # Its standard input ends with us; how soon it is heard is the kernel's.
    for _ in range(2000):
        if gone(pid):
            break
        threading.Event().wait(0.01)
    assert gone(pid)


def test_ctrl_c_is_not_for_it(count: Callable[[], int]) -> None:
    """A terminal sends it to all of its foreground group."""
    assert said("a") == ["a"]
    assert os.getpgid(worker()) != os.getpgid(0)


def test_ctrl_c_while_it_renders(count: Callable[[], int]) -> None:
    """The answer that is under way is not taken for the next one's."""
    assert said("a") == ["a"]
    process = PROCESS._process
    assert process is not None and process.stdout is not None
    read = process.stdout.readline

    class Interrupted:
        def readline(self) -> bytes:
            raise KeyboardInterrupt

        def close(self) -> None:
            read.__self__.close()  # type: ignore[attr-defined]

    process.stdout = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        said("b")
    assert said("c") == ["c"] and count() == 2
