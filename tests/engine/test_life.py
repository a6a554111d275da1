"""Library life: memory, threads, fork, signals, and leaving in the middle."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from environment import DATA, run_python
from tiny import Shape, TinyLlama

import pyllama2c
from pyllama2c import Llama
from pyllama2c.engine.session import Session


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter; its argv[1:] are `arguments`."""
    return run_python("-c", textwrap.dedent(code), *map(str, arguments))


def test_a_thousand_lives_take_no_memory(
    tiny_path: Path, resident_kilobytes: Callable[[], int]
) -> None:
    def live(i: int) -> None:
        with Llama(tiny_path, threads=1 + i % 3) as llama:
            llama.generate("ab", seed=i, max_tokens=5).read()
            next(llama.generate("ab", seed=i))  # abandoned
            llama.score("abc")

    for i in range(100):
        live(i)
    before = resident_kilobytes()
    for i in range(1000):
        live(i)
    assert resident_kilobytes() - before < 4096


def test_many_threads_on_one_model(llama: Llama) -> None:
    expected = [llama.generate("ab", seed=s, max_tokens=40).read() for s in range(1, 9)]
    got: dict[int, list[str]] = {}

    def tell(seed: int) -> None:
        got[seed] = [llama.generate("ab", seed=seed, max_tokens=40).read() for _ in range(10)]

    threads = [threading.Thread(target=tell, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[seed] for seed in range(1, 9)] == [[text] * 10 for text in expected]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_fork_after_use(tiny_path: Path, threads: int) -> None:
    code = """
        import os, sys
        from pyllama2c import Llama
        llama = Llama(sys.argv[1], threads=int(sys.argv[2]))
        expected = llama.generate("ab", seed=1, max_tokens=30).read()
        half = llama.generate("ab", seed=1, max_tokens=30)
        first = next(half)
        child = os.fork()
        same = half.read() == expected
        same = same and llama.generate("ab", seed=1, max_tokens=30).read() == expected
        llama.close()
        if child == 0:
            os._exit(0 if same else 1)
        assert same and os.waitpid(child, 0)[1] == 0
    """
    done = python(code, tiny_path, threads)
    assert done.returncode == 0, done.stderr


def test_fork_in_the_middle_of_an_async_story(tiny_path: Path) -> None:
    """The thread that took its steps is the parent's."""
    code = """
        import asyncio, os, sys
        from pyllama2c import Llama
        llama = Llama(sys.argv[1])
        expected = llama.generate("ab", seed=1, max_tokens=30).read()
        story = llama.generate("ab", seed=1, max_tokens=30)
        asyncio.run(anext(story))
        child = os.fork()
        same = asyncio.run(story.aread()) == expected
        if child == 0:
            os._exit(0 if same else 1)
        assert same and os.waitpid(child, 0)[1] == 0
    """
    done = python(code, tiny_path)
    assert done.returncode == 0, done.stderr


def test_leaving_with_a_live_generator(tiny_path: Path) -> None:
    code = """
        import sys
        from pyllama2c import Llama
        story = Llama(sys.argv[1], threads=2).generate("ab", seed=1)
        next(story)
    """
    done = python(code, tiny_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_generation_keeps_its_model_alive(tiny_path: Path) -> None:
    story = Llama(tiny_path).generate("ab", seed=1, max_tokens=20)
    with Llama(tiny_path) as llama:
        assert story.read() == llama.generate("ab", seed=1, max_tokens=20).read()


def test_ctrl_c_in_the_middle(tiny_path: Path) -> None:
    """Within one token, and everything is usable afterwards."""
    code = """
        import signal, sys
        from pyllama2c import Llama
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
        llama = Llama(sys.argv[1], threads=2)
        expected = llama.generate("ab", seed=1, max_tokens=30).read()
        try:
            print("ready", flush=True)
            while True:
                story = llama.generate("ab", seed=2)
                for piece in story:
                    pass
        except KeyboardInterrupt:
            pass
        assert llama.generate("ab", seed=1, max_tokens=30).read() == expected
        print("usable")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tiny_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=DATA) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=600)[0] == "usable\n"
    assert process.returncode == 0


def test_no_finalizer_loses_ctrl_c() -> None:
    """Python looks for signals when it enters __del__, and cannot raise what it finds there."""
    sources = [p.read_text(encoding="utf-8") for p in Path(pyllama2c.__file__).parent.rglob("*.py")]
    assert sources and not any("def __del__" in source for source in sources)


def test_cancel_from_another_thread(tiny_path: Path) -> None:
    with Llama(tiny_path) as llama:

        def cancel_at_the_fifth(tokens: list[int], logits: np.ndarray) -> None:
            logits[1:3] = -np.inf
            if len(tokens) == 7:
                other = threading.Thread(target=story.cancel)
                other.start()
                other.join()

        story = llama.generate([1, 5], logits_processor=cancel_at_the_fifth, seed=1)
        story.read()
        assert story.finish_reason == "cancelled" and len(story.tokens) <= 6


def test_cancel_at_any_moment(tiny_path: Path) -> None:
    """In the prompt, in a draft, between tokens: it ends that story, and no other."""
    with Llama(tiny_path, threads=1, speculative=True) as llama:
        expected = llama.generate("ab", seed=1, max_tokens=30).read()
        for moment in range(60):
            story = llama.generate([1, *[5] * 20], seed=moment + 1, temperature=1.0)
            stopper = threading.Timer(moment * 1e-5, story.cancel)
            stopper.start()
            while stopper.is_alive() and next(story, None) is not None:
                pass
            stopper.join()
            assert len(list(story)) <= 1 and story.finish_reason is not None
            assert llama.generate("ab", seed=1, max_tokens=30).read() == expected


def test_a_cancel_that_the_session_has_not_seen(tiny_path: Path) -> None:
    """It stops the next step; once the story has ended it is not left to the next one's."""
    for speculative in (True, False):
        with Llama(tiny_path, speculative=speculative) as llama:
            expected = llama.generate("ab", seed=1, max_tokens=30).read()
            story = llama.generate("ab", seed=2, max_tokens=40)
            next(story)
            while story._ready:  # what a draft brought is told first
                next(story)
            session = story._session
            assert session is not None
            told = list(story.tokens)
            session.cancel()  # but not story.cancel(), which the next step would look for
            list(story)
            assert (story.tokens, story.finish_reason) == (told, "cancelled")
            session.cancel()
            assert llama.generate("ab", seed=1, max_tokens=30).read() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")
def test_workers_go_where_the_program_may_run(tiny_path: Path) -> None:
    """taskset -ap while it runs: the workers do not undo it."""
    code = """
        import os, sys, threading, time
        from pathlib import Path
        from pyllama2c import Llama
        def threads():
            return [int(t) for t in os.listdir("/proc/self/task")]
        def asleep(thread):
            stat = Path(f"/proc/self/task/{thread}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] == "S"
        llama = Llama(sys.argv[1], threads=2)
        workers = set(threads()) - {threading.get_native_id()}
        assert workers
        def tell():
            llama.generate("ab", seed=1, max_tokens=20).read()
            while not all(map(asleep, workers)):  # a worker parks, and moves before it does
                time.sleep(0.001)
        tell()
        for cpu in sorted(os.sched_getaffinity(0)):
            for thread in threads():
                os.sched_setaffinity(thread, {cpu})
            for _ in range(10):
                tell()
                masks = [os.sched_getaffinity(thread) for thread in threads()]
                assert masks == [{cpu}] * len(masks), (cpu, masks)
    """
    done = python(code, tiny_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")
@pytest.mark.parametrize("when", ["before", "later"])
def test_threads_on_one_processor_do_not_spin(tiny_path: Path, when: str) -> None:
    """Waiting costs the processor time that the others need: about what the switches take, not 50
    times as much as the work."""
    code = """
        import os, sys, time
        from pyllama2c import Llama
        cpu = min(os.sched_getaffinity(0))
        def confine():
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), {cpu})
        if sys.argv[2] == "before":
            confine()
        spent = []
        for threads in (1, 2):
            llama = Llama(sys.argv[1], threads=threads)
            llama.generate("ab", seed=1, max_tokens=5).read()
            confine()
            started = time.process_time()
            for seed in range(1, 8):
                llama.generate("ab", seed=seed).read()
            spent.append(time.process_time() - started)
        assert spent[1] < 12 * spent[0], spent
    """
    done = python(code, tiny_path, when)
    assert done.returncode == 0, done.stderr


def test_packing_keeps_to_the_threads_that_were_asked_for() -> None:
    """With one, all of its processor time is the caller's."""
    image = TinyLlama.random(Shape(dim=512, hidden_dim=1024, n_layers=8, vocab_size=4000)).v0()
    before = time.process_time(), time.thread_time()
    for dtype in ("int8", "int4", "int8"):
        Llama.from_buffer(image, dtype=dtype, threads=1).close()
    process, thread = time.process_time() - before[0], time.thread_time() - before[1]
    assert process - thread < 0.1 * process


def test_sessions_commit_memory_as_it_is_used(resident_kilobytes: Callable[[], int]) -> None:
    """The first as the third and the tenth, whatever memory was given back before."""
    shape = Shape(dim=256, n_layers=2, seq_len=2048, n_heads=2, n_kv_heads=2)
    with Llama.from_buffer(TinyLlama.random(shape).v0(), threads=1) as llama:
        engine = llama._engine
        arguments = (engine.model, engine.pool, engine.session_options)
        for _ in range(4):
            sessions = [Session(*arguments) for _ in range(3)]
            for session in sessions:
                session.feed([5] * 8, 0)
        del sessions, session
        before = resident_kilobytes()
        kept = [Session(*arguments) for _ in range(8)]
        assert resident_kilobytes() - before < 1024
        del kept


def test_a_weight_that_has_no_int8_ends_drafting_not_the_story(tokenizer_path: Path) -> None:
    """Plain decoding tells it, as no token before the last looks at that row of the embedding."""
    model = TinyLlama.random(Shape(tied=False))
    model.weights["embedding"][250] = np.nan
    image = model.v0()
    told = []
    for speculative in (True, False):
        with Llama.from_buffer(image, tokenizer_path, speculative=speculative) as llama:
            story = llama.generate([1, 5], seed=3, max_tokens=20, stop_tokens=[250])
            list(story)
            told.append((story.tokens, story.finish_reason, story.rng_state))
            assert story.stats.drafted_tokens == 0
    assert told[0] == told[1] and told[0][0]


def test_more_threads_than_processors_do_not_stall(tiny_path: Path) -> None:
    with Llama(tiny_path, threads=4 * (os.cpu_count() or 1)) as llama:
        assert len(llama.generate("ab", seed=1, max_tokens=60).read()) > 0


def test_weights_are_held_once(tmp_path: Path) -> None:
    """int8 files stay mapped; float32 files may move to huge pages, but then leave the mapping."""
    code = """
        import sys
        from pathlib import Path
        from pyllama2c import Llama
        def resident(kind):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(l.split()[1]) for l in lines if l.startswith(kind))
        kind, limit = sys.argv[2], int(sys.argv[3])
        before = resident(kind)
        llama = Llama(sys.argv[1], threads=1)
        llama._engine.sessions.lease().feed([5], 0)
        assert resident(kind) - before < limit, (resident(kind), before, limit)
    """
    model = TinyLlama.random(Shape(dim=256, vocab_size=40_000, group_size=64))
    for data, kind in ((model.v2(), "RssAnon"), (model.v0(), "VmRSS")):
        path = tmp_path / "large.bin"
        path.write_bytes(data)
        size = 0 if kind == "RssAnon" else len(data) // 1024
        done = python(code, path, kind, size + 8192)
        assert done.returncode == 0, done.stderr


def test_a_story_in_a_cycle_gives_its_session_back_whole(tiny_path: Path) -> None:
    """The collector finalizes a cycle in any order; what it returns must still be alive."""
    gc.freeze()  # it need not look at all that pytest holds, each time
    with Llama(tiny_path) as llama:
        expected = llama.generate("ab", seed=3, max_tokens=9).read()
        for _ in range(50):
            story = llama.generate("ab", seed=3, max_tokens=9)
            next(story)
            cycle: list[object] = [story]
            cycle.append(cycle)
            del story, cycle
            gc.collect()
            assert llama.generate("ab", seed=3, max_tokens=9).read() == expected
        gc.unfreeze()
        assert not llama._engine.sessions.in_use
        abandoned = llama.generate("ab", seed=3)
        next(abandoned)
        assert llama._engine.sessions.in_use
        del abandoned
        assert not llama._engine.sessions.in_use  # at once, without the collector
