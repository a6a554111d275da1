"""One forward pass for everything: the same bits, together or apart, whoever computes them."""

from __future__ import annotations

import numpy as np
import pytest
from sequences import Row, Sequences, model
from tiny import Shape

from pyllama2c import BusyError, CancelledError, ContextLengthError, Llama, OutOfMemoryError
from pyllama2c._ffi import lib
from pyllama2c.engine.session import MAX_ROWS

SHAPES = [
    Shape(),
    Shape(dim=90, hidden_dim=57, n_heads=9, n_kv_heads=3, vocab_size=301, tied=False),
    Shape(dim=64, hidden_dim=96, n_heads=4, n_kv_heads=4, group_size=32),
]


LONG = {
    "one head": Shape(dim=50, hidden_dim=64, n_heads=1, n_kv_heads=1, seq_len=420),
    "shared keys": Shape(dim=132, hidden_dim=64, n_heads=6, n_kv_heads=2, seq_len=420),
    "int8": Shape(dim=64, hidden_dim=96, n_heads=1, n_kv_heads=1, seq_len=420, group_size=32),
    "runq": Shape(group_size=24, hidden_dim=80, n_heads=1, n_kv_heads=1, seq_len=420),
}


@pytest.mark.filterwarnings("ignore:.*group_size")
@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", LONG)
def test_threads_that_share_a_head_give_the_same_bits(name: str, kv_dtype: str, isa: str) -> None:
    """Long contexts, and fewer heads than threads: each takes some of the blocks of positions."""
    tokens = np.random.default_rng(4).integers(0, 300, 419).tolist()
    with model(LONG[name], isa="scalar", threads=1, kv_dtype=kv_dtype) as llama:
        expected = llama.logits(tokens)
    # a prompt, single rows, and runs that end on, before and after a block of 64
    parts = [250, 1, 3, 1, 1, 1, 60, 1, 1, 2, 1, 64, 1, 1, 1, 6, 1, 4, 1, 17, 1]
    assert sum(parts) == len(tokens)
    for threads, n_sequences in ((1, 1), (2, 1), (5, 1), (5, 2), (8, 1), (8, 2)):
        with model(LONG[name], isa=isa, threads=threads, kv_dtype=kv_dtype) as llama:
            sequences, at = Sequences(llama, n_sequences), 0
            for n in parts:
                for s in range(0, n_sequences, 1 if n > 100 else n_sequences):
                    these = [s] if n > 100 else range(n_sequences)
                    places = range(at, at + n)
                    got = sequences.feed([(t, i, tokens[i]) for t in these for i in places])
                    assert got.tobytes() == expected[at : at + n].tobytes() * len(these)
                at += n


@pytest.mark.parametrize("shape", SHAPES, ids=["grouped", "odd", "int8"])
def test_same_bits_for_every_isa_thread_count_and_split(shape: Shape, isa: str) -> None:
    tokens = np.random.default_rng(3).integers(0, shape.vocab_size, 90).tolist()
    with model(shape, isa="scalar", threads=1) as llama:
        expected = llama.logits(tokens)
        one_by_one = Sequences(llama, 1)
        apart = np.vstack([one_by_one.feed([(0, i, t)]) for i, t in enumerate(tokens)])
    assert apart.tobytes() == expected.tobytes()
    for threads in (1, 2, 3, 5, 7):
        with model(shape, isa=isa, threads=threads) as llama:
            assert llama.logits(tokens).tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=["grouped", "odd", "int8"])
def test_sequences_together_equal_sequences_apart(shape: Shape, isa: str) -> None:
    rng = np.random.default_rng(4)
    stories = [rng.integers(0, shape.vocab_size, n).tolist() for n in (20, 5, 13)]
    with model(shape, isa=isa, threads=2) as llama:
        alone = [llama.logits(story) for story in stories]
        together = Sequences(llama, 3)
        for position in range(20):
            rows = [(s, position, t[position]) for s, t in enumerate(stories) if position < len(t)]
            rng.shuffle(rows)
            for row, logits in zip(rows, together.feed(rows), strict=True):
                assert logits.tobytes() == alone[row[0]][position].tobytes()
        mixed = Sequences(llama, 3)  # two prompts and a decode step in one call
        mixed.feed([(1, i, t) for i, t in enumerate(stories[1][:4])])
        rows = [(0, i, t) for i, t in enumerate(stories[0])] + [(1, 4, stories[1][4])]
        rows += [(2, i, t) for i, t in enumerate(stories[2])]
        got = mixed.feed(rows)
        assert got.tobytes() == np.vstack([alone[0], alone[1][4:5], alone[2]]).tobytes()


def test_going_back_cuts_the_sequence(llama: Llama) -> None:
    session = Sequences(llama, 1)
    session.feed([(0, i, t) for i, t in enumerate([1, 5, 6, 7])])
    changed = session.feed([(0, 2, 9)])
    assert changed.tobytes() == llama.logits([1, 5, 9])[2].tobytes()
    with pytest.raises(ContextLengthError, match="position is 4, but the next one"):
        session.feed([(0, 4, 1)])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([(0, 1, 5)], ContextLengthError, "next one of sequence 0 is 0"),
        ([(0, 0, 5), (0, 2, 5)], ContextLengthError, "next one of sequence 0 is 1"),
        ([(0, 0, 5), (0, 0, 5)], ContextLengthError, "next one"),
        ([(0, -1, 5)], ContextLengthError, "position is -1"),
        ([(0, 96, 5)], ContextLengthError, "position is 96; the context has 96"),
        ([(0, 2**31 - 1, 5)], ContextLengthError, "the context has 96"),
        ([(1, 0, 5)], ValueError, "sequence is 1; there are 1"),
        ([(-1, 0, 5)], ValueError, "sequence is -1"),
        ([(0, 0, 300)], ValueError, "token is 300; the vocabulary has 300"),
        ([(0, 0, -1)], ValueError, "token is -1"),
        ([], ValueError, "0 rows"),
        ([(0, i, 5) for i in range(MAX_ROWS + 1)], ValueError, "a forward call takes 1 to 256"),
    ],
)
def test_wrong_rows(llama: Llama, rows: list[Row], error: type, message: str) -> None:
    session = Sequences(llama, 1)
    with pytest.raises(error, match=message):
        session.feed(rows)
    session.feed([(0, 0, 5)])  # still usable


def test_wrong_sessions(llama: Llama) -> None:
    with pytest.raises(ValueError, match="context of 97 positions; the model has 96"):
        Sequences(llama, 1, 97)
    with pytest.raises(ValueError, match="n_sequences is 0"):
        Sequences(llama, 0)
    with pytest.raises(OutOfMemoryError, match="out of memory for a session of 2147483647 x 96"):
        Sequences(llama, 2**31 - 1)
    with pytest.raises(ValueError, match="threads is 0; it must be 1 to 256"):
        model(Shape(), threads=0)
    with pytest.raises(ValueError, match="unknown isa 'mmx'"):
        model(Shape(), isa="mmx")


def test_isa_from_the_environment(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    monkeypatch.setenv("PYLLAMA2C_ISA", isa)
    with model(Shape()) as llama:
        assert llama.isa == isa
    monkeypatch.setenv("PYLLAMA2C_ISA", "sse9")
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
        model(Shape())


def test_one_session_from_two_threads(llama: Llama) -> None:
    """The second caller is turned away (or comes later); nothing breaks."""
    import threading

    big = Sequences(llama, 1)
    rows = [(0, i, 5) for i in range(64)]
    outcomes: list[str] = []

    def use() -> None:
        for _ in range(200):
            try:
                big.feed(rows)
                outcomes.append("ok")
            except BusyError:
                outcomes.append("busy")

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "ok" in outcomes and len(outcomes) == 600
    assert big.feed(rows).tobytes() == llama.logits([5] * 64).tobytes()


def feed_often(session: Sequences, rows: list[Row]) -> None:
    for _ in range(50):
        session.feed(rows)


def test_cancel_from_another_thread() -> None:
    import threading

    with model(Shape(n_layers=40, dim=288, hidden_dim=768, n_heads=6, n_kv_heads=6)) as llama:
        session = Sequences(llama, 1)
        rows = [(0, i, 5) for i in range(64)]
        expected = session.feed(rows)
        stop = threading.Event()

        def cancel() -> None:
            while not stop.is_set():
                lib.l2c_session_cancel(session.handle)

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            with pytest.raises(CancelledError, match="cancelled"):
                feed_often(session, rows)
        finally:
            stop.set()
            thread.join()
        lib.l2c_session_resume(session.handle)  # what was asked for last nobody answered
        assert session.feed(rows).tobytes() == expected.tobytes()


def test_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLAMA2C_THREADS", "3")
    with model(Shape()) as llama:
        assert llama.threads == 3
    with model(Shape(), threads=2) as llama:
        assert llama.threads == 2
    for wrong in ("0", "-1", "many"):
        monkeypatch.setenv("PYLLAMA2C_THREADS", wrong)
        with pytest.raises(ValueError, match="PYLLAMA2C_THREADS is"):
            model(Shape())
